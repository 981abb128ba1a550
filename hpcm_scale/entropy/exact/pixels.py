"""Exact pixels: the integers that g_s's ends are made of, in NumPy alone (EXACT.md).

Between them g_s has the layers of arithmetic 1. Before them latents are divided by the gains of
their rate, in fixed point; after them the last layer's sums become 8-bit levels.
"""

from typing import NamedTuple

import numpy as np

from hpcm_scale.entropy.exact.grid import EXACT, GRID, LIMIT
from hpcm_scale.entropy.exact.integer_weights import IntegerWeights
from hpcm_scale.entropy.exact.softmax import LOG2_E, POWER_BITS
from hpcm_scale.errors import CheckpointError

LARGEST_RATE = 65535
"""Rates of a model are numbered from 0, its first λ, to this, its last."""
OCTAVE_BITS = 16
"""Logarithms of gains are integers over 2^16, to base 2."""
MOST_OCTAVES = 64
"""Gains of a model lie between 2^-64 and 2^64."""
LARGEST_LATENT = 1 << 28
"""Latents beyond this, in grid points, are clamped before they are divided by a gain."""
LEVELS = 255
"""Largest level of a pixel."""
GREY_BITS = 8
"""The three channels of a grey pixel are rounded to so many bits beyond a level before the mean."""
STRIDE = 2


def inverse_gains(logs: np.ndarray, rate: int) -> np.ndarray:
    """Factors of ŷ before g_s: (M,) float64, integers of 25 bits over powers of two.

    Args:
        logs: `gains.logs` (n + 1, M) float32, natural logarithms.
        rate: of the file, 0 to `LARGEST_RATE`.

    Raises:
        CheckpointError: if a gain is beyond `MOST_OCTAVES`.
    """
    unit = 1 << OCTAVE_BITS
    # The product is rounded to double precision once, as every processor does.
    octaves = np.rint(logs.astype(np.float64) * (LOG2_E * unit))
    if not np.abs(octaves).max() <= MOST_OCTAVES * unit:
        raise CheckpointError(
            f"gains.logs: is up to {np.abs(logs).max():.4g}, exact arithmetic allows "
            f"{MOST_OCTAVES / LOG2_E:.4g}; the training diverged, export an earlier checkpoint"
        )
    whole = octaves.astype(np.int64)
    low = min(rate * (len(logs) - 1) // LARGEST_RATE, len(logs) - 2)
    share = rate * (len(logs) - 1) - low * LARGEST_RATE
    between = whole[low] * (LARGEST_RATE - share) + whole[low + 1] * share
    # The nearest integer: the divisor is odd, so no quotient is a half.
    between = (2 * between + LARGEST_RATE) // (2 * LARGEST_RATE)
    octave, within = between >> OCTAVE_BITS, between & unit - 1
    # None of the 2^16 powers is nearer than 10^-6 to a half, and float64's are right to 10^-8.
    power = np.rint(2.0 ** (POWER_BITS - within / unit))
    return np.ldexp(power, -POWER_BITS - octave)


class PixelWeights(NamedTuple):
    """The last layer: a transposed convolution of stride 2 that gives three channels.

    A place is a position (a, b) in a block of 2×2 pixels. T² of the kernel's weights meet each.
    """

    weight: np.ndarray
    """(2, 2, T, T, 3, I) float64: for each place and tap."""
    bias: np.ndarray
    """(2, 2, 3) float64, in grid points."""
    offsets: np.ndarray
    """(2, T): for the places of row (or column) a, how many positions on each tap's input lies."""


def pixel_weights(weight: np.ndarray, bias: np.ndarray, name: str) -> PixelWeights:
    """
    Args:
        weight: (I, 3, k, k), of padding k/2 − 1, k even.
        bias: (3,).
        name: of the layer, for errors.

    Raises:
        CheckpointError: if a sum times `LEVELS` could leave what float64 represents exactly.
    """
    inputs, outputs, side = weight.shape[:3]
    places = range(STRIDE)
    # Output row 2i + a meets input row i + d by the kernel's row a + padding − 2d.
    padding, reach = side // 2 - 1, side // 4
    offsets = np.array(
        [
            [d for d in range(-reach, reach + 1) if 0 <= a + padding - STRIDE * d < side]
            for a in places
        ]
    )
    rows = np.arange(STRIDE)[:, None] + padding - STRIDE * offsets  # (2, T)
    # (I, 3, 2, T, 2, T) -> (2, 2, T, T, 3, I)
    by_place = weight[:, :, rows][..., rows].transpose(2, 4, 3, 5, 1, 0)
    taps = offsets.shape[1]
    # A row for each place and output: (2, 2, 3, T, T, I).
    flat = by_place.transpose(0, 1, 4, 2, 3, 5).reshape(-1, taps * taps * inputs)
    integers = IntegerWeights(flat, np.tile(bias, STRIDE * STRIDE), name)
    bound = LEVELS * (np.abs(integers.weight).sum(axis=1) * LIMIT + np.abs(integers.bias)).max()
    if not bound < EXACT:
        raise CheckpointError(
            f"{name}: its levels could reach 2^{np.log2(bound):.1f}, exact arithmetic allows less "
            "than 2^53; the training diverged, export an earlier checkpoint"
        )
    unit = np.ldexp(1.0, -integers.shift)
    scaled = (integers.weight * unit[:, None]).reshape(STRIDE, STRIDE, outputs, taps, taps, inputs)
    return PixelWeights(
        np.ascontiguousarray(scaled.transpose(0, 1, 3, 4, 2, 5)),
        (integers.bias * unit).reshape(STRIDE, STRIDE, outputs),
        offsets,
    )


COLOUR_FACTOR = LEVELS / GRID
"""From a sum in grid points to a level."""
GREY_FACTOR = (LEVELS << GREY_BITS) / GRID
"""From a sum in grid points to 2^-8 levels."""
GREY_DIVISOR = 3 << GREY_BITS
"""From the sum of three channels in 2^-8 levels to their mean in levels."""
