"""Weights of a byte or so, in NumPy alone: what layers of arithmetic 2 are made of (EXACT.md)."""

import numpy as np

from hpcm_scale.entropy.exact.grid import GRID, LIMIT
from hpcm_scale.entropy.exact.integer_weights import NOTHING, Addend
from hpcm_scale.errors import CheckpointError

BYTE_WEIGHT = 127
"""Largest integer weight of a product: that of every output channel."""
TAP_WEIGHT = 2047
"""That of a depthwise convolution, whose arithmetic is little and whose rounding shows."""
BYTE = 256
"""Base of the two digits of an activation, -128..127."""
TWO_DIGIT_MAX = 127 * BYTE + 127
"""Activations up to this have two digits."""
FLOAT_SUM = 1 << 24
"""float32 represents every integer up to this."""
FLOAT_INPUTS = FLOAT_SUM // (BYTE // 2 * BYTE_WEIGHT)
"""So many products of a digit and a weight have a sum that float32 holds."""
SMALLEST = 2.0**-60
"""Weights of a channel, and biases, below this are taken for 0: no product is subnormal."""
LARGEST = 2.0**100
"""Sums, in grid points, that single precision holds with room to spare."""


class ScaledWeights:
    """The weights of a linear layer as integers times a single-precision unit per output channel.

    Args:
        weight: (O, K), finite, in single precision.
        bias: (O,).
        name: of the layer, for errors.
        addend: what is added to the sum before it is rounded.
        most: largest integer weight.

    Raises:
        CheckpointError: if sums could leave single precision's range.
    """

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        name: str,
        addend: Addend = NOTHING,
        most: int = BYTE_WEIGHT,
    ) -> None:
        wide = weight.astype(np.float64)
        largest = np.abs(wide).max(axis=1)
        none = largest < SMALLEST
        self.unit = (np.where(none, 1.0, largest) / most).astype(np.float32)
        """(O,) float32: a weight is its integer times this."""
        integers = np.rint(wide / self.unit[:, None].astype(np.float64)).clip(-most, most)
        integers[none] = 0
        self.weight = integers.astype(np.int16)
        """(O, K)."""
        self._exact = wide
        scaled = bias.astype(np.float64) * GRID
        scaled[np.abs(scaled) < SMALLEST] = 0
        self.bias = scaled.astype(np.float32)
        """(O,) float32, in grid points."""
        reach = np.abs(integers).sum(axis=1)
        self.reach = int(reach.max())
        """The largest sum for each unit of the largest activation."""
        bound = (reach * float(LIMIT) * self.unit + np.abs(scaled)).max() + addend.largest
        if not bound < LARGEST:  # a NaN is no bound either
            raise CheckpointError(
                f"{name}: its sums could reach {bound:.2g}, exact arithmetic allows less than "
                f"{LARGEST:.2g}; the training diverged, export an earlier checkpoint"
            )

    @property
    def roundoff(self) -> float:
        """Energy of what rounding changes, over that of the weights."""
        error = self.weight * self.unit[:, None].astype(np.float64) - self._exact
        energy = np.square(self._exact).sum()
        return float(np.square(error).sum() / energy) if energy else 0.0
