"""An engine that keeps within so many bytes: whole pictures through its networks, in pieces."""

import zlib
from functools import partial

import numpy as np

from hpcm_scale.codec import container
from hpcm_scale.codec.aim import LARGEST_RATE
from hpcm_scale.codec.coding_result import OnProgress, unheard
from hpcm_scale.codec.engines.engine import Engine, Latents
from hpcm_scale.codec.tile_coding import TileCoder
from hpcm_scale.codec.tiled_transforms import analyse, synthesise
from hpcm_scale.codec.tiles import (
    LARGEST_TILE,
    balanced_tile,
    check_memory,
    largest_tile,
)
from hpcm_scale.errors import CheckpointError

TRANSFORM_SHARE = 0.35
"""Share of a call's time that g_a or g_s takes, for the progress alone."""


class BoundedEngine:
    """A model's engine, its tile coder, and the memory they may work in.

    Args:
        engine: that computes the model's networks.
        memory: bytes to work in, beside the parameters and 8 bytes a pixel or so.

    Raises:
        CheckpointError: if the network's windows ask for absurd multiples of pixels.
    """

    def __init__(self, engine: Engine, memory: int) -> None:
        self.engine = engine
        self.info = engine.info
        self.memory = memory
        self.tile_coder = TileCoder(engine)
        self.multiple = multiple = engine.transforms.image_multiple
        """Pixels that the sides of a canvas and of coding tiles are multiples of."""
        if multiple > LARGEST_TILE or multiple % container.TILE_UNIT:
            raise CheckpointError(
                f"{self.info.path}: needs pictures padded to multiples of {multiple} pixels, not "
                f"of {container.TILE_UNIT} up to {LARGEST_TILE}; it cannot code"
            )
        self.largest_tile = largest_tile(self.info.config, multiple, memory)
        """Side of the largest coding tile that keeps within the memory, in pixels."""

    @property
    def identity(self) -> bytes:
        """The first bytes of the model's identity, which every file it makes carries."""
        return bytes.fromhex(self.info.identity)[: container.IDENTITY_BYTES]

    @property
    def scales(self) -> int:
        """Scales of the model: payloads of a progressive file's tile."""
        return max(self.engine.step_scales) + 1

    def check_memory(self, height: int, width: int, name: str) -> None:
        """Raises DataError if a part that must see all of a picture has not the memory for it."""
        whole, config = self.engine.whole_bytes, self.info.config
        check_memory(whole, config, (height, width), self.multiple, self.memory, name)

    def coding_tile(self, height: int, width: int) -> tuple[int, int] | None:
        """Width and height of the coding tiles that a picture is cut into; None for one tile."""
        if self.engine.global_context:
            return None
        return balanced_tile(height, width, self.multiple, self.largest_tile)

    def gain(self, rate: int | None) -> Latents | None:
        """Factors of the latents before coding, (1, M, 1, 1); None of a model of one rate."""
        if rate is None:
            return None
        return self.engine.gain(rate * (len(self.info.config.rates) - 1) / LARGEST_RATE)

    def latents(self, pixels: np.ndarray, on_progress: OnProgress) -> Latents:
        """y (1, M, H/16, W/16) that g_a gives for a picture (H, W, 3) or (H, W)."""
        return analyse(self.engine.transforms, pixels, self.memory, on_progress)

    def pixels(
        self, y_hat: Latents, header: container.Header, on_progress: OnProgress = unheard
    ) -> np.ndarray:
        """Pixels that g_s gives for the latents of a picture, which are overwritten."""
        size = (header.height, header.width)
        synthesis = None
        if header.pixel_digest is not None:
            synthesis = partial(self.engine.exact_pixels, rate=header.rate)
        elif (gain := self.gain(header.rate)) is not None:
            y_hat /= gain
        transforms, memory = self.engine.transforms, self.memory
        return synthesise(transforms, y_hat, size, header.grey, on_progress, memory, synthesis)


def pixel_digest(pixels: np.ndarray) -> int:
    """CRC-32 of pixels, row by row."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)
