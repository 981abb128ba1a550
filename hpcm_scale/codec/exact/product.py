"""Exact matrix products of grid tensors with integer weights.

Two kernels compute the same numbers. In float64 every sum is of integers below 2^53, so no order of
summation, no fused multiply-add and no library changes it. Where the CPU multiplies bytes, weights
and activations are split into digits of base 128, whose products are summed in 32-bit integers:
several times faster than a product in single precision.
"""

import os
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.codec.exact.grid import EXACT, GRID_BITS, LIMIT
from hpcm_scale.errors import CheckpointError

WEIGHT_BITS = 13
"""log2 of the largest integer weight; the largest of every output channel is at least half that."""
LARGEST_SHIFT = 24
"""Largest exponent k: an output channel of tiny weights rounds them to multiples of 2^-24."""
SLOPE_NUMERATOR, SLOPE_DENOMINATOR = 41, 4096
"""LeakyReLU's slope, 0.01 as a ratio."""
DIGIT = 128
"""Base of the digits; they are at most 127, those of weights at most 64."""
OUTPUTS = 256
"""Output channels whose weights are made integers at a time."""
LARGEST_DIGITS = 1 << 17
"""So many products of digits stay below 2^31 in sum."""


class Added(NamedTuple):
    """What is added to a layer's sum before it is rounded."""

    largest: int
    """Its largest magnitude, in grid points."""
    bits: int = 0
    """It is a multiple of 2^-bits grid points."""


NOTHING = Added(0)


class IntegerWeights:
    """The weights of a linear layer as integers times a power of two per output channel.

    Args:
        weight: (O, K), finite.
        bias: (O,).
        name: of the layer, for errors.
        added: what is added to the sum before it is rounded.
        sloped: whether LeakyReLU's slope multiplies the sum before it is rounded.

    Raises:
        CheckpointError: if a sum could leave what float64 represents exactly.
    """

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        name: str,
        added: Added = NOTHING,
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
        finest = np.maximum(shift, added.bits)
        bound = np.abs(self.weight).sum(axis=1) * LIMIT + np.abs(self.bias)
        bound = np.ldexp(bound, finest - shift) + np.ldexp(float(added.largest), finest)
        if sloped:
            bound *= SLOPE_NUMERATOR
        if bound.max() >= EXACT:
            raise CheckpointError(
                f"{name}: its sums could reach 2^{np.log2(bound.max()):.1f}, exact arithmetic "
                "allows less than 2^53; the training diverged, export an earlier checkpoint"
            )


class Product:
    """Rows (R, K) of grid integers times integer weights, plus the bias: (R, O) float64, exact.

    Results are in grid points, not rounded: multiples of 2^-k of them.

    Args: as for `IntegerWeights`, the parameters as tensors on any device.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        name: str,
        added: Added = NOTHING,
        sloped: bool = False,
    ) -> None:
        outputs, inputs = weight.shape
        digits = np.empty((2 * inputs, outputs), np.int8)  # low, then high
        units, biases = np.empty(outputs), np.empty(outputs)
        # Some outputs at a time: in float64, whole layers of a large network would fill memory.
        for start in range(0, outputs, OUTPUTS):
            part = slice(start, start + OUTPUTS)
            arrays = (p[part].detach().cpu().numpy() for p in (weight, bias))
            integers = IntegerWeights(*arrays, name, added, sloped)
            high = np.rint(integers.weight / DIGIT)
            digits[inputs:, part] = high.T
            digits[:inputs, part] = (integers.weight - DIGIT * high).T
            units[part] = np.ldexp(1.0, -integers.shift)
            biases[part] = integers.bias * units[part]
        self._digits, self._unit, self._bias = (
            torch.from_numpy(array).to(weight.device) for array in (digits, units, biases)
        )

    @property
    def outputs(self) -> int:
        """O."""
        return self._digits.shape[1]

    def operand(self) -> Tensor:
        """What `multiply` takes the weights as; made once for all the rows of a tensor."""
        if multiplies_bytes(self._digits.device) and len(self._digits) < LARGEST_DIGITS:
            return self._digits
        low, high = self._digits.chunk(2)
        return high.double().mul_(DIGIT).add_(low).mul_(self._unit)

    def multiply(self, rows: Tensor, operand: Tensor) -> Tensor:
        """The product of `rows` (R, K), float32 or float64."""
        if operand.dtype != torch.int8:
            return torch.addmm(self._bias, rows.double(), operand)
        k = rows.shape[1]
        low, high = operand[:k], operand[k:]
        digits = _digits(rows)
        # From the products of the highest digits down, each time one digit lower.
        out = torch._int_mm(digits[:, :k], high).double()
        for left, right in (
            (digits[:, : 2 * k], operand),
            (digits[:, k:], operand),
            (digits[:, 2 * k :], low),
        ):
            out.mul_(DIGIT).add_(torch._int_mm(left, right))
        return out.mul_(self._unit).add_(self._bias)


def _digits(rows: Tensor) -> Tensor:
    """(R, K) integers of at most LIMIT as (R, 3K) int8: highest, middle and lowest digits."""
    k = rows.shape[1]
    digits = torch.empty(len(rows), 3 * k, dtype=torch.int8, device=rows.device)
    # Single precision holds the integers exactly, and is the fastest to round.
    rest = rows.float()
    for i, place in enumerate((DIGIT * DIGIT, DIGIT)):
        digit = torch.mul(rest, 1 / place).round_()
        digits[:, i * k : (i + 1) * k] = digit
        rest = torch.sub(rest, digit, alpha=place)
    digits[:, 2 * k :] = rest
    return digits


@cache
def multiplies_bytes(device: torch.device) -> bool:
    """Whether products of bytes are summed in 32 bits here, and so exact.

    Without VNNI, oneDNN adds pairs of products in 16 bits, which saturate. It can be told by
    environment not to use VNNI; the trial catches what else might keep it from it.
    """
    if device.type != "cpu" or not torch.cpu._is_vnni_supported():
        return False
    if {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys():
        return False
    left = torch.full((64, 256), 127, dtype=torch.int8)
    right = torch.full((256, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(left, right) == 256 * 127 * 127).all())
