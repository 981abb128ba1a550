"""Weights as integers, in NumPy alone: what every engine's exact layers are made of (EXACT.md)."""

from typing import NamedTuple

import numpy as np

from hpcm_scale.entropy.exact.grid import EXACT, GRID_BITS, LIMIT
from hpcm_scale.errors import CheckpointError

WEIGHT_BITS = 13
"""log2 of the largest integer weight; the largest of every output channel is at least half that."""
LARGEST_SHIFT = 24
"""Largest exponent k: an output channel of tiny weights rounds them to multiples of 2^-24."""
SLOPE_NUMERATOR, SLOPE_DENOMINATOR = 41, 4096
"""LeakyReLU's slope, 0.01 as a ratio."""
SCALE_BITS = 12
"""A step scale is an integer over 2^12."""


class Addend(NamedTuple):
    """An addend of a layer's sum, added before it is rounded."""

    largest: int
    """Largest magnitude of the addend, in grid points."""
    bits: int = 0
    """It is a multiple of 2^-bits grid points."""


NOTHING = Addend(0)


class IntegerWeights:
    """The weights of a linear layer as integers times a power of two per output channel.

    Args:
        weight: (O, K), finite.
        bias: (O,).
        name: of the layer, for errors.
        addend: what is added to the sum before it is rounded.
        sloped: whether LeakyReLU's slope multiplies the sum before it is rounded.

    Raises:
        CheckpointError: if a sum could leave what float64 represents exactly.
    """

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        name: str,
        addend: Addend = NOTHING,
        sloped: bool = False,
    ) -> None:
        weight, bias = weight.astype(np.float64), bias.astype(np.float64)
        largest = np.abs(weight).max(axis=1)
        _, exponent = np.frexp(largest)
        shift = np.minimum(WEIGHT_BITS - exponent, LARGEST_SHIFT)
        shift[largest == 0] = LARGEST_SHIFT
        if shift.min() < 0:
            raise CheckpointError(
                f"{name}: has a weight of {largest.max():.4g}, exact arithmetic allows less than "
                f"{1 << WEIGHT_BITS}; the training diverged, export an earlier checkpoint"
            )
        self.shift = shift
        """(O,): k of every output channel; a weight is its integer over 2^k."""
        self.weight = np.rint(np.ldexp(weight, shift[:, None]))
        """(O, K), integers of at most 2^13 in float64."""
        self.bias = np.rint(np.ldexp(bias, shift + GRID_BITS))
        """(O,), integers in float64, in units of 2^-k grid points."""
        # In units of which the sum, and what is added to it, are both multiples.
        finest = np.maximum(shift, addend.bits)
        bound = np.abs(self.weight).sum(axis=1) * LIMIT + np.abs(self.bias)
        bound = np.ldexp(bound, finest - shift) + np.ldexp(float(addend.largest), finest)
        if sloped:
            bound *= SLOPE_NUMERATOR
        if not bound.max() < EXACT:  # a NaN is no bound either
            raise CheckpointError(
                f"{name}: its sums could reach 2^{np.log2(bound.max()):.1f}, exact arithmetic "
                "allows less than 2^53; the training diverged, export an earlier checkpoint"
            )


def integer_scale(scale: np.ndarray, name: str) -> np.ndarray:
    """A step's scale (3M,) as integers over 2^12, in float64.

    Args:
        name: of the step, for errors.

    Raises:
        CheckpointError: if its products could leave what float64 represents exactly.
    """
    integers = np.rint(scale.astype(np.float64).ravel() * (1 << SCALE_BITS))
    largest = float(np.abs(integers).max())
    if not largest * LIMIT < EXACT:
        raise CheckpointError(
            f"{name}.scale: is up to {largest / (1 << SCALE_BITS):.4g}, exact arithmetic allows "
            f"{EXACT // LIMIT >> SCALE_BITS}; the training diverged, export an earlier checkpoint"
        )
    return integers
