"""Smooth functions of grid integers as tables, in NumPy alone: their constants (EXACT.md).

A table holds the function's nearest integers at every grid point up to where it is within half a
unit of its limit. None of them lies within 1e-7 of a half, so that any machine's exponential and
error function, right to 1e-12, round to the same.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from hpcm_scale.entropy.exact.grid import GRID

GATE_BITS = 15
"""A sigmoid is an integer over 2^15."""
GELU_REACH, SIGMOID_REACH, TANH_REACH = 4 * GRID, 12 * GRID, 4 * GRID
SILU_REACH, STEP_REACH = 10 * GRID, 15 * GRID
"""From there on a function is its limit."""
STEP_BITS = 20
"""Step sizes of a scan, small numbers, are integers over 2^20."""
FINE_BITS, OCTAVE_PARTS = 16, 256
"""Powers of two of octaves over 2^16, of which the first table has every 256th."""
FRACTION_BITS = 30
"""The entries of both tables are integers over 2^30."""
POWER_REACH = 31 << FINE_BITS
"""From there on a power is that of 31 octaves."""


def _table(value: Callable[[float], float], scale: float, first: int, last: int) -> np.ndarray:
    """round(scale · value(a / 1024)) for a = first ... last: float32, never to be changed."""
    table = np.array([round(scale * value(a / GRID)) for a in range(first, last + 1)], np.float32)
    table.flags.writeable = False
    return table


@cache
def gelu_drop() -> np.ndarray:
    """ReLU minus GELU at ±n grid points: (GELU_REACH + 1,) float32."""
    return _table(lambda v: v * math.erfc(v / math.sqrt(2)) / 2, GRID, 0, GELU_REACH)


@cache
def silu_drop() -> np.ndarray:
    """ReLU minus SiLU at ±n grid points: (SILU_REACH + 1,) float32."""
    return _table(lambda v: v / (1 + math.exp(v)), GRID, 0, SILU_REACH)


@cache
def step_rise() -> np.ndarray:
    """2^20 times what softplus is above ReLU at ±n grid points: (STEP_REACH + 1,) float32."""
    return _table(lambda v: math.log1p(math.exp(-v)), 1 << STEP_BITS, 0, STEP_REACH)


@cache
def coarse_powers() -> np.ndarray:
    """2^30 · 2^(−n/256) for n = 0, 1, ..., 31·256: float64."""
    return np.rint(2.0 ** (FRACTION_BITS - np.arange((POWER_REACH >> 8) + 1) / OCTAVE_PARTS))


@cache
def fine_powers() -> np.ndarray:
    """2^30 · 2^(−n/65536) for n = 0, 1, ..., 255: float64."""
    return np.rint(2.0 ** (FRACTION_BITS - np.arange(OCTAVE_PARTS) / (1 << FINE_BITS)))


@cache
def sigmoid_gate() -> np.ndarray:
    """2^15 times the sigmoid, from −SIGMOID_REACH to SIGMOID_REACH: float32."""
    return _table(lambda v: 1 / (1 + math.exp(-v)), 1 << GATE_BITS, -SIGMOID_REACH, SIGMOID_REACH)


@cache
def half_tanh() -> np.ndarray:
    """½·tanh in grid points, from −TANH_REACH to TANH_REACH: float32."""
    return _table(math.tanh, GRID / 2, -TANH_REACH, TANH_REACH)
