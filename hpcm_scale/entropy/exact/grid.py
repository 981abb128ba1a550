"""The grid of the exact entropy path and how a value comes to lie on it (EXACT.md).

A *grid tensor* holds integers of at most `LIMIT` in float32, which holds them exactly; the value
meant is the integer over `GRID`. Between two grid tensors a layer computes in float64 on multiples
of a power of two that stay below `EXACT` of them, so that every product and sum is exact.
"""

from torch import Tensor

GRID_BITS = 10
GRID = 1 << GRID_BITS
"""Grid points per unit: scales and means are multiples of 1/1024."""
LIMIT = 127 << 14
"""Largest integer of a grid tensor, for the value 2032; what lies beyond is clamped."""
EXACT = 1 << 53
"""float64 represents every integer up to this."""


def requantize(x: Tensor) -> Tensor:
    """The nearest grid integers (halves to even), clamped to ±LIMIT, in place."""
    return x.round_().clamp_(-LIMIT, LIMIT)
