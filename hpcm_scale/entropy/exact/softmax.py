"""The exact softmax of windowed attention: its constants, bounds and table, in NumPy alone."""

from functools import cache

import numpy as np

from hpcm_scale.entropy.exact.grid import EXACT, GRID, GRID_BITS, LIMIT
from hpcm_scale.entropy.exact.integer_weights import Addend
from hpcm_scale.errors import CheckpointError

POWER_BITS = 24
"""The table's powers of two are integers over 2^24."""
WEIGHT_BITS = 15
"""Attention weights are integers over 2^15."""
FACTOR_BITS = 12
"""Logits are multiplied by an integer over 2^12."""
LOG2_E = 1.4426950408889634
LARGEST_DROP = (POWER_BITS + 1) << GRID_BITS
"""Logits that far below the largest have a power of two that rounds to 0."""


def logit_factor(size: int, name: str) -> float:
    """The factor of logits of heads of `size` channels, to base 2: an integer over 2^12.

    Args:
        name: of the layer, for errors.

    Raises:
        CheckpointError: if sums over a head's channels could overflow.
    """
    if size * LIMIT**2 >= EXACT:
        raise CheckpointError(
            f"{name}: heads of {size} channels; exact arithmetic allows {EXACT // LIMIT**2}"
        )
    return round(LOG2_E * (1 << FACTOR_BITS) / size**0.5) / (1 << FACTOR_BITS)


def attended_addend(window: int) -> Addend:
    """Bounds of the attended values that are added to the projection of ψ."""
    # Rounding lets a row of weights exceed 1, by half a unit each.
    return Addend(LIMIT + (LIMIT * window**2 >> WEIGHT_BITS + 1) + 1, WEIGHT_BITS)


@cache
def powers_of_two() -> np.ndarray:
    """2^24 · 2^(−d/1024) for d = 0, 1, ..., LARGEST_DROP: integers in float64, never to be changed.

    The first 1024 are the nearest integers; the others are these over a power of two, halves to
    even.
    """
    # None of them is nearer than 0.0001 to a half, and float64's powers are right to 1e-8.
    octave = np.rint(2.0 ** (POWER_BITS - np.arange(GRID) / GRID))
    halved = np.rint(octave * 2.0 ** -np.arange(POWER_BITS + 1.0)[:, None])
    powers = np.append(halved.ravel(), 0)
    powers.flags.writeable = False
    return powers
