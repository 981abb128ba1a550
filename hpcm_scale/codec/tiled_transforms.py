"""Pixels to latents and back, in pieces of bounded size that overlap by what the network sees."""

from collections.abc import Callable

import numpy as np

from hpcm_scale.codec.coding_result import OnProgress, unheard
from hpcm_scale.codec.engines.engine import Latents, Transforms
from hpcm_scale.codec.tiles import LATENT, Grid, canvas, in_pieces


def analyse(
    transforms: Transforms, pixels: np.ndarray, memory: int, on_progress: OnProgress = unheard
) -> Latents:
    """g_a of a picture padded to its canvas.

    Args:
        pixels: uint8, (H, W, 3) or (H, W).
        memory: bytes to work in, about.
        on_progress: told how far it is.

    Returns:
        (1, M, h, w), h and w those of the canvas over 16.
    """
    height, width = pixels.shape[:2]
    rows, columns = (side // LATENT for side in canvas(height, width, transforms.image_multiple))
    y = transforms.empty(rows, columns)

    def run(read: Grid, keep: Grid) -> None:
        # Past its edge the picture is continued by its last row and column.
        down = np.arange(read.top * LATENT, (read.top + read.height) * LATENT)
        across = np.arange(read.left * LATENT, (read.left + read.width) * LATENT)
        window = np.ix_(down.clip(max=height - 1), across.clip(max=width - 1))
        latents = transforms.analyse(_rgb(pixels[window]))
        keep.of(y)[...] = _within(read, keep).of(latents)
        on_progress(_done(keep, (rows, columns)))

    in_pieces(rows, columns, *transforms.piece(0, memory), run)
    return y


def synthesise(
    transforms: Transforms,
    y_hat: Latents,
    size: tuple[int, int],
    grey: bool,
    on_progress: OnProgress,
    memory: int,
    synthesis: Callable[[Latents, bool], np.ndarray] | None = None,
) -> np.ndarray:
    """g_s as 8-bit pixels.

    Args:
        y_hat: (1, M, h, w), covering at least the picture.
        size: height and width of the picture.
        on_progress: told how far it is.
        memory: bytes to work in, about.
        synthesis: instead of `transforms.synthesise`.

    Returns:
        uint8 (height, width, 3), or (height, width) if `grey`: the mean of the channels.
    """
    height, width = size
    pixels = np.empty((height, width) if grey else (height, width, 3), np.uint8)
    side, reach = transforms.piece(1, memory)
    if reach:  # else it may have to see all of the canvas
        y_hat = y_hat[..., : -(-height // LATENT), : -(-width // LATENT)]
    rows, columns = y_hat.shape[-2:]

    def run(read: Grid, keep: Grid) -> None:
        x = (synthesis or transforms.synthesise)(read.of(y_hat), grey)
        within = _within(read, keep)
        top, left = LATENT * within.top, LATENT * within.left
        x = x[top : top + LATENT * keep.height, left : left + LATENT * keep.width]
        top, left = LATENT * keep.top, LATENT * keep.left
        place = pixels[top : top + x.shape[0], left : left + x.shape[1]]
        place[:] = x[: place.shape[0], : place.shape[1]]
        on_progress(_done(keep, (rows, columns)))

    in_pieces(rows, columns, side, reach, run)
    return pixels


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)


def _done(piece: Grid, sides: tuple[int, int]) -> float:
    """The share of a grid that is covered once a piece is, row after row of pieces."""
    rows, columns = sides
    before = piece.top * columns + piece.height * piece.left
    return (before + piece.height * piece.width) / (rows * columns)


def _within(read: Grid, keep: Grid) -> Grid:
    """`keep` in the coordinates of `read`."""
    return Grid(keep.top - read.top, keep.left - read.left, keep.height, keep.width)
