"""A file of the kit decoded by an engine, watched step by step."""

import zlib
from dataclasses import dataclass

import numpy as np

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.coding_result import Timing
from hpcm_scale.codec.engines.engine import Engine
from hpcm_scale.codec.images import Picture
from hpcm_scale.codec.tile_coding import TileCoder
from hpcm_scale.codec.tiles import LATENT, canvas, coding_tiles
from hpcm_scale.conformance.kit import Group
from hpcm_scale.entropy.coder import SymbolDigest
from hpcm_scale.errors import BitstreamError


@dataclass(frozen=True)
class Seen:
    """Contents that an engine found in a file."""

    groups: tuple[Group, ...]
    """Groups up to the first fault."""
    latents: int | None
    """None if decoding ended early."""
    error: str | None
    """Why it did."""


def watched(engine: Engine, data: bytes) -> Seen:
    """Decode the latents of a file, noting each group of symbols."""
    parsed = container.read(data)
    header = parsed.header
    multiple = engine.transforms.image_multiple
    sides = canvas(header.height, header.width, multiple)
    y_hat = engine.transforms.empty(sides[0] // LATENT, sides[1] // LATENT)
    groups: list[Group] = []

    def noted(table: np.ndarray, symbols: np.ndarray) -> None:
        groups.append(
            Group(
                zlib.crc32(np.ascontiguousarray(table, "<u2").tobytes()),
                zlib.crc32(np.ascontiguousarray(symbols, "<i4").tobytes()),
            )
        )

    coder = TileCoder(engine, noted)
    digest = SymbolDigest(container.digest_seed(parsed))
    tiles = coding_tiles(header.height, header.width, multiple, header.tile)
    try:
        with engine.computing():
            for i, tile in enumerate(tiles):
                part = coder.decode(
                    tile,
                    parsed.payloads[i :: len(tiles)],
                    digest,
                    Timing(),
                    header.portable,
                    progressive=header.scales > 1,
                )
                tile.place.of(y_hat)[...] = part
    except BitstreamError as error:
        return Seen(tuple(groups), None, str(error))
    values = np.ascontiguousarray(np.asarray(y_hat), "<f4")
    fault = None if digest.value == header.digest else "the digest does not fit"
    return Seen(tuple(groups), zlib.crc32(values.tobytes()), fault)


def picture_in(engine: Engine, data: bytes) -> Picture:
    """The picture of a file.

    Raises:
        BitstreamError: if it does not decode.
    """
    return Codec(engine).decompress(data).picture
