"""Image rows at a time, and what surrounds each position: for layers that work in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 384 * 1024
"""Positions times channels that a layer handles at a time, about."""


def largest_of(x: Tensor) -> float:
    """The largest magnitude in a tensor that is not empty."""
    low, high = torch.aminmax(x)
    return max(-float(low), float(high))


def strips(v: Tensor, multiple: int = 1, taps: int = 1) -> Iterator[tuple[int, slice]]:
    """Indices of some image rows of (B, H, W, C) at a time, a multiple of `multiple`, in order.

    Args:
        taps: positions whose channels are put side by side for every position.
    """
    b, h, w, c = v.shape
    count = max(1, ELEMENTS // (w * c * taps * multiple)) * multiple
    for i in range(b):
        for top in range(0, h, count):
            yield i, slice(top, min(top + count, h))


def bordered(v: Tensor, part: tuple[int, slice], reach: int = 1) -> Tensor:
    """Image rows of (B, H, W, C) with `reach` positions around them, zeros outside."""
    i, rows = part
    h, w, c = v.shape[1:]
    height = rows.stop - rows.start + 2 * reach
    out = v.new_zeros(height, w + 2 * reach, c)
    first, last = max(rows.start - reach, 0), min(rows.stop + reach, h)
    start = first - (rows.start - reach)
    out[start : start + last - first, reach : reach + w] = v[i, first:last]
    return out


def patches(around: Tensor, side: int) -> Tensor:
    """What `bordered` gives (..., r + side − 1, W + side − 1, C), contiguous -> all that each
    position meets: (..., r·W, side²·C)."""
    *others, height, w, c = around.shape
    shape = (*others, height - side + 1, w - side + 1, side, side * c)
    # A kernel's row of channels is one run of memory.
    strides = (*around.stride()[:-3], w * c, c, w * c, 1)
    return around.as_strided(shape, strides).flatten(-2).flatten(-3, -2)


def neighbours(around: Tensor, reach: int = 1) -> Iterator[Tensor]:
    """What `bordered` gives -> the (r, W, C) that each tap of a kernel meets, row by row."""
    r, w = around.shape[0] - 2 * reach, around.shape[1] - 2 * reach
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            yield around[dy : dy + r, dx : dx + w]
