"""The codec: pictures to `.hpcm` bytes and back, by a trained model.

codec = Codec.load("model.safetensors")
data = codec.encode(image)
image = codec.decode(data)
"""

from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hpcm_scale.codec import container
from hpcm_scale.codec.coding_result import (
    Decoded,
    Encoded,
    OnProgress,
    Timing,
    part_of,
    unheard,
)
from hpcm_scale.codec.images import Picture, check_size, picture_of
from hpcm_scale.codec.metadata import Metadata
from hpcm_scale.codec.sections import (
    pack_alpha,
    pack_icc,
    pack_metadata,
    unpack_alpha,
    unpack_icc,
    unpack_metadata,
)
from hpcm_scale.codec.tile_coding import TileCoder
from hpcm_scale.codec.tiled_transforms import analyse, synthesise
from hpcm_scale.codec.tiles import (
    LARGEST_TILE,
    LATENT,
    balanced_tile,
    canvas,
    check_memory,
    coding_tiles,
    largest_tile,
)
from hpcm_scale.entropy.coder import SymbolDigest
from hpcm_scale.errors import BitstreamError, CheckpointError, DataError
from hpcm_scale.units import gib
from hpcm_scale.weights.model_file import LoadedModel, load_model

MEMORY = 2 << 30
"""Default bytes that the network may work in, beside its parameters."""
_TRANSFORM = 0.35
"""Share of a call's time that g_a or g_s takes, for the progress alone."""
_SLACK_BITS = 64
"""Bits an entropy coder's state may hold beyond the information in its payload."""


class Codec:
    """A loaded model, ready to code any number of pictures.

    Args:
        model: from `load_model`.
        portable: encode to files that decode anywhere, by exact arithmetic; else in the network's
            own floating point, whose files are certain to decode only where they were made.
            Decoding follows the file.
        memory: bytes the network may work in. Beside it there are the parameters and 8 bytes a
            pixel or so, for the picture and its latents. Pictures that do not fit are cut into
            tiles; decoding needs what encoding was given.

    Raises:
        CheckpointError: if the network's windows ask for absurd multiples of pixels.
    """

    def __init__(self, model: LoadedModel, portable: bool = True, memory: int = MEMORY) -> None:
        self.info = model.info
        self.portable = portable
        self._network = model.network
        self._tile_coder = TileCoder(model)
        self._device = next(model.network.parameters()).device
        self._memory = memory
        multiple = model.network.image_multiple
        if multiple > LARGEST_TILE or multiple % container.TILE_UNIT:
            raise CheckpointError(
                f"{self.info.path}: needs pictures padded to multiples of {multiple} pixels, not "
                f"of {container.TILE_UNIT} up to {LARGEST_TILE}; it cannot code"
            )
        self._largest_tile = largest_tile(self.info.config, multiple, memory)

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: torch.device | str = "cpu",
        memory: int = MEMORY,
        portable: bool = True,
    ) -> Self:
        """A codec from a model file.

        Raises:
            CheckpointError: if it is missing, damaged or not a model that can code.
        """
        return cls(load_model(path, device), portable, memory)

    @property
    def identity(self) -> bytes:
        """The first bytes of the model's identity, which every file it makes carries."""
        return bytes.fromhex(self.info.identity)[: container.IDENTITY_BYTES]

    def encode(self, image: Image.Image | np.ndarray) -> bytes:
        """The `.hpcm` bytes of a PIL image or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

        Raises:
            DataError: if the image is of a kind or size that cannot be coded.
            CheckpointError: if the model has no exact arithmetic and the codec is portable.
        """
        return self.compress(picture_of(image)).data

    def decode(self, data: bytes) -> Image.Image:
        """The picture in `.hpcm` bytes, in mode L, LA, RGB or RGBA.

        Raises:
            BitstreamError: as `decompress`.
        """
        return self.decompress(data).picture.to_pil()

    def compress(
        self,
        picture: Picture,
        estimate: bool = False,
        reconstruct: bool = False,
        on_progress: OnProgress = unheard,
    ) -> Encoded:
        """Encode one picture.

        Args:
            estimate: also add up the information content of the symbols under the model.
            reconstruct: also give the pixels that a decoder should.
            on_progress: told how far the encoding is.

        Raises:
            DataError: if it is too large, or too large for `memory` where the network must see all
                of it at once, or if the model gives latents that are not numbers.
            CheckpointError: if the model has no exact arithmetic and the codec is portable.
        """
        check_size(picture.width, picture.height, "image")
        self._tile_coder.parameters(self.portable)
        multiple = self._network.image_multiple
        check_memory(self._network, picture.height, picture.width, self._memory, "image")
        tile = None
        if not self._network.global_context:
            tile = balanced_tile(picture.height, picture.width, multiple, self._largest_tile)
        header = container.Header(
            self.identity,
            picture.width,
            picture.height,
            grey=picture.pixels.ndim == 2,
            portable=self.portable,
            tile=tile,
        )
        unfinished = container.Container(
            header,
            payloads=(),
            icc=None if picture.icc is None else pack_icc(picture.icc),
            alpha=None if picture.alpha is None else pack_alpha(picture.alpha),
            metadata=pack_metadata(picture.metadata),
        )
        digest = SymbolDigest(container.digest_seed(unfinished))
        timing = Timing()
        with timing.network_part(), torch.inference_mode():
            y = analyse(
                self._network, picture.pixels, self._memory, part_of(on_progress, 0, _TRANSFORM)
            )
            parts = coding_tiles(picture.height, picture.width, multiple, tile)
            tiles = [
                self._tile_coder.encode(
                    part,
                    part.place.of(y),
                    digest,
                    timing,
                    self.portable,
                    estimate,
                    part_of(on_progress, *_share(i, len(parts), _TRANSFORM, 1)),
                )
                for i, part in enumerate(parts)
            ]
            reconstruction = None
            if reconstruct:
                for part, coded in zip(parts, tiles, strict=True):
                    part.place.of(y).copy_(coded.y_hat)
                reconstruction = self._pixels(y, header)
        payloads = tuple(part.payload for part in tiles)
        finished = replace(
            unfinished, header=replace(header, digest=digest.value), payloads=payloads
        )
        return Encoded(
            container.write(finished),
            picture.width,
            picture.height,
            sum(map(len, payloads)),
            len(finished.metadata or b""),
            sum(part.estimated_bits for part in tiles) if estimate else None,
            timing,
            picture.notices,
            reconstruction,
        )

    def decompress(self, data: bytes, on_progress: OnProgress = unheard) -> Decoded:
        """Decode one picture.

        Args:
            on_progress: told how far the decoding is.

        Raises:
            BitstreamError: if `data` is damaged, made by another model, or decodes to other
                symbols than were encoded.
        """
        timing = Timing()
        with timing.network_part(), torch.inference_mode():
            parsed = container.read(data)
            header = parsed.header
            self._check(header, parsed.payloads)
            alpha, icc, metadata = None, None, Metadata()
            if parsed.icc is not None:
                icc = unpack_icc(parsed.icc)
            if parsed.alpha is not None:
                alpha = unpack_alpha(parsed.alpha, header.width, header.height)
            if parsed.metadata is not None:
                metadata = unpack_metadata(parsed.metadata)
            y_hat = self._decode_latents(parsed, timing, part_of(on_progress, 0, 1 - _TRANSFORM))
            pixels = self._pixels(y_hat, header, part_of(on_progress, 1 - _TRANSFORM, 1))
        return Decoded(Picture(pixels, alpha, icc, metadata=metadata), timing)

    def _pixels(
        self, y_hat: Tensor, header: container.Header, on_progress: OnProgress = unheard
    ) -> np.ndarray:
        """Pixels that g_s gives for the latents of a picture."""
        size = (header.height, header.width)
        return synthesise(self._network, y_hat, size, header.grey, on_progress, self._memory)

    def _decode_latents(
        self, parsed: container.Container, timing: Timing, on_progress: OnProgress
    ) -> Tensor:
        """ŷ (1, M, H/16, W/16) of the whole canvas."""
        header = parsed.header
        multiple = self._network.image_multiple
        sides = canvas(header.height, header.width, multiple)
        y_hat = torch.empty(
            (1, self.info.config.latent_channels, sides[0] // LATENT, sides[1] // LATENT),
            device=self._device,
            memory_format=torch.channels_last,
        )
        tiles = coding_tiles(header.height, header.width, multiple, header.tile)
        digest = SymbolDigest(container.digest_seed(parsed))
        try:
            for i, (tile, payload) in enumerate(zip(tiles, parsed.payloads, strict=True)):
                within = part_of(on_progress, *_share(i, len(tiles), 0, 1))
                decoded = self._tile_coder.decode(
                    tile, payload, digest, timing, header.portable, within
                )
                tile.place.of(y_hat).copy_(decoded)
        except BitstreamError:
            # Only wrong tables make an undamaged payload hold what no encoder writes.
            equal = False
        else:
            equal = digest.value == header.digest
        if not equal:
            raise BitstreamError(
                "decodes to other symbols than were encoded, though its arithmetic is exact: it "
                "was altered, or this machine or program is at fault"
                if header.portable
                else "decodes to other symbols than were encoded: it was encoded with --fast, and "
                "this machine's floating-point results differ from the encoder's (device, library "
                f"or number of threads; here {self._device}, {torch.get_num_threads()} threads); "
                "decode it as it was encoded, or encode it again without --fast"
            )
        return y_hat

    def _check(self, header: container.Header, payloads: tuple[bytes, ...]) -> None:
        """Refuse what this codec cannot decode, before anything of the picture's size is made."""
        if header.identity != self.identity:
            raise BitstreamError(
                f"was made by model {header.identity.hex()}, "
                f"this model is {self.identity.hex()} ({self.info.label}, {self.info.path})"
            )
        if header.portable:
            try:
                self._tile_coder.parameters(portable=True)
            except CheckpointError as error:
                raise BitstreamError(f"is portable, which its model cannot be: {error}") from None
        try:
            check_size(header.width, header.height, "its header")
            check_memory(self._network, header.height, header.width, self._memory, "its header")
        except DataError as error:
            raise BitstreamError(str(error)) from None
        multiple = self._network.image_multiple
        if header.tile is not None and any(side % multiple for side in header.tile):
            raise BitstreamError(
                f"has tiles of {header.tile[0]}×{header.tile[1]}, not multiples of {multiple}"
            )
        tiles = coding_tiles(header.height, header.width, multiple, header.tile)
        least = sum(self._tile_coder.least_bits(tile) for tile in tiles)
        total = sum(map(len, payloads))
        # The coder would take an empty payload for symbols without end.
        if least > 8 * total + _SLACK_BITS or not all(payloads):
            raise BitstreamError(
                f"claims {header.width}×{header.height} pixels in {len(payloads)} tiles, more than "
                f"its {total} bytes of payload can hold"
            )
        area = tiles[0].place.height * tiles[0].place.width * LATENT**2
        if area > self._largest_tile**2 and not self._network.global_context:
            needed = self._memory * area / self._largest_tile**2
            raise BitstreamError(
                f"has tiles of {area} pixels, which take about {gib(needed)} to decode; "
                f"{gib(self._memory)} are allowed (--memory)"
            )


def _share(i: int, count: int, start: float, end: float) -> tuple[float, float]:
    """The part from `start` to `end` that the i-th of `count` equal pieces takes."""
    return (start + (end - start) * i / count, start + (end - start) * (i + 1) / count)
