"""Geometry: which latents lie inside a picture, how it splits into tiles, how far transforms see.

Two kinds of tiles. Coding tiles are part of the format: each is an independent entropy-coded
stream. Transform tiles are not: g_a and g_s run on pieces that overlap by what the transform sees,
so the result is that of the whole picture and no seam can appear.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcm_scale.config import ModelConfig
from hpcm_scale.errors import DataError
from hpcm_scale.units import gib

LATENT = 16
"""Pixels along the side of a latent."""
HYPER = 4
"""Latents along the side of a hyper-latent."""
LARGEST_TILE = 2048
"""Side of the largest coding tile, in pixels: more memory would save next to no bits."""
WHOLE = 1 << 20
"""Side of a piece, in pixels, that holds any picture."""


@dataclass(frozen=True)
class Grid:
    """A rectangle of positions."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Any) -> Any:
        """x (..., H, W) -> (..., height, width), a view; x is an array or a tensor."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Tile:
    """A coding tile, in latents."""

    place: Grid
    """Place on the padded canvas; its sides suit the network."""
    inside: tuple[int, int]
    """Rows and columns of its latents that touch the picture, from its top left; the rest is not
    coded, its symbols are 0."""

    @property
    def hyper_inside(self) -> tuple[int, int]:
        """Rows and columns of its hyper-latents that are coded."""
        return (-(-self.inside[0] // HYPER), -(-self.inside[1] // HYPER))

    @property
    def is_full(self) -> bool:
        """True if all its latents are coded."""
        return self.inside == (self.place.height, self.place.width)


def canvas(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Sides of the picture padded for the network, in pixels."""
    return (-(-height // multiple) * multiple, -(-width // multiple) * multiple)


def coding_tiles(
    height: int, width: int, multiple: int, tile: tuple[int, int] | None
) -> list[Tile]:
    """The coding tiles of a picture of `height` × `width` pixels, row by row.

    Args:
        multiple: what sides must be multiples of for the network, in pixels.
        tile: width and height of the tiles in pixels, multiples of `multiple`; None for one tile.
    """
    padded = canvas(height, width, multiple)
    tile_width, tile_height = tile or (padded[1], padded[0])
    tiles = []
    for top in range(0, padded[0], tile_height):
        for left in range(0, padded[1], tile_width):
            sides = (min(tile_height, padded[0] - top), min(tile_width, padded[1] - left))
            shown = (min(sides[0], height - top), min(sides[1], width - left))
            tiles.append(
                Tile(
                    Grid(*(value // LATENT for value in (top, left, *sides))),
                    (-(-shown[0] // LATENT), -(-shown[1] // LATENT)),
                )
            )
    return tiles


def balanced_tile(height: int, width: int, multiple: int, largest: int) -> tuple[int, int] | None:
    """Width and height of about equal tiles of at most `largest`² pixels; None if one will do.

    Args:
        largest: a multiple of `multiple`.
    """
    if math.prod(canvas(height, width, multiple)) <= largest * largest:
        return None

    def side(length: int) -> int:
        count = -(-length // largest)
        return -(-length // (count * multiple)) * multiple

    return (side(width), side(height))


def largest_tile(config: ModelConfig, multiple: int, memory: int) -> int:
    """Largest side of a coding tile, in pixels, whose walk keeps within `memory` bytes."""
    side = min(LARGEST_TILE, math.isqrt(int(memory / walk_bytes(config))))
    return max(multiple, side // multiple * multiple)


def walk_bytes(config: ModelConfig) -> float:
    """Bytes a pixel of a coding tile that a walk over its steps works in."""
    # Measured on Base: a walk holds about 45 tensors of the latents' size at once, in float32.
    return 4 * 48 * config.latent_channels / LATENT**2


def piece_side(reach: int, working_bytes: float, memory: int) -> int:
    """Side of the pieces, in pixels, on which a transform keeps within `memory` bytes."""
    side = math.isqrt(int(memory / working_bytes)) - 2 * reach
    return max(4 * LATENT, side // LATENT * LATENT)


def check_memory(
    whole_bytes: Sequence[float],
    config: ModelConfig,
    sides: tuple[int, int],
    multiple: int,
    memory: int,
    name: str,
) -> None:
    """Refuse a picture that takes more than `memory` bytes in a part that must see all of it.

    Args:
        whole_bytes: bytes a pixel of each such part.
        sides: height and width of the picture.
        multiple: what sides must be multiples of for the network, in pixels.

    Raises:
        DataError: naming `name`, what it takes and the remedy.
    """
    height, width = sides
    pixels = math.prod(canvas(height, width, multiple))
    if whole_bytes and max(whole_bytes) * pixels > memory:
        raise DataError(
            f"{name}: {width}×{height} pixels take about {gib(max(whole_bytes) * pixels)} in the "
            f"layers of {config.name} that see the whole picture, which cannot be cut into tiles; "
            f"{gib(memory)} are allowed (--memory)"
        )


def in_pieces(
    height: int,
    width: int,
    side: int,
    reach: int,
    run: Callable[[Grid, Grid], None],
) -> None:
    """Cover a canvas with transform tiles.

    Args:
        height: of the canvas, in positions; likewise `width`.
        side: largest side of what a piece yields.
        reach: positions around it that it must see.
        run: called with the part of the canvas to read and the part of it to keep.
    """
    for top in range(0, height, side):
        for left in range(0, width, side):
            keep = Grid(top, left, min(side, height - top), min(side, width - left))
            first = (max(0, top - reach), max(0, left - reach))
            last = (
                min(height, top + keep.height + reach),
                min(width, left + keep.width + reach),
            )
            run(Grid(*first, last[0] - first[0], last[1] - first[1]), keep)


def inside_mask(tile: Tile, channels: int) -> np.ndarray:
    """(1, channels, h, w) float32: 1 at the tile's latents that are coded, 0 in its padding."""
    mask = np.zeros((1, channels, tile.place.height, tile.place.width), np.float32)
    mask[..., : tile.inside[0], : tile.inside[1]] = 1
    return mask
