"""Arrays (H, W, C) in strips of rows, and the surroundings that a convolution reads."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

ELEMENTS = 1 << 17
"""Positions times channels that a layer handles at a time, about: they stay in the cache."""


def strips(height: int, width: int, channels: int) -> Iterator[slice]:
    """Some rows at a time, in order.

    Args:
        channels: the most that a layer holds for a position.
    """
    count = max(1, ELEMENTS // (width * channels))
    for top in range(0, height, count):
        yield slice(top, min(top + count, height))


def bordered(x: np.ndarray, rows: slice, reach: int, dtype: type[np.floating]) -> np.ndarray:
    """Rows of x (H, W, C) with `reach` positions around them, zeros outside."""
    h, w, c = x.shape
    out = np.zeros((rows.stop - rows.start + 2 * reach, w + 2 * reach, c), dtype)
    first, last = max(rows.start - reach, 0), min(rows.stop + reach, h)
    start = first - (rows.start - reach)
    out[start : start + last - first, reach : reach + w] = x[first:last]
    return out


def columns(around: np.ndarray, side: int, stride: int = 1) -> np.ndarray:
    """Inputs of each position of a side×side kernel: (h, w, side²·C) of around (H, W, C).

    In the order row, column, channel of the kernel; h and w are how often the kernel fits.
    """
    height, width, c = around.shape
    h, w = (height - side) // stride + 1, (width - side) // stride + 1
    row, column, channel = around.strides
    # A kernel's row of channels is one run of memory.
    shape = (h, w, side, side * c)
    runs = as_strided(around, shape, (stride * row, stride * column, row, channel))
    return runs.reshape(h, w, side * side * c)
