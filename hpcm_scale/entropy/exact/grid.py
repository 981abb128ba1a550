"""The grid of the exact entropy path and how a value comes to lie on it (EXACT.md).

A *grid tensor* holds integers of at most `LIMIT` in float32, which holds them exactly; the value
meant is the integer over `GRID`. Between two grid tensors a layer computes in float64 on multiples
of a power of two that stay below `EXACT` of them, so that every product and sum is exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GRID_BITS = 10
GRID = 1 << GRID_BITS
"""Grid points per unit: scales and means are multiples of 1/1024."""
LIMIT = 127 << 14
"""Largest integer of a grid tensor, for the value 2032; what lies beyond is clamped."""
EXACT = 1 << 53
"""float64 represents every integer up to this."""


def requantize(x: Tensor, most: float = math.inf) -> Tensor:
    """The nearest grid integers (halves to even), clamped to ±LIMIT, in place.

    Args:
        most: that no magnitude in x is above; where it is within the grid, nothing need be clamped.
    """
    x = x.round_()
    return x if most < LIMIT else x.clamp_(-LIMIT, LIMIT)


def divide(x: Tensor, divisor: float) -> Tensor:
    """x / divisor in place, each quotient the nearest floating-point number.

    By a number of the host CUDA does not divide: it multiplies by the number's reciprocal, which
    puts some quotients on the other side of a half.
    """
    return x.div_(x.new_full((), divisor))
