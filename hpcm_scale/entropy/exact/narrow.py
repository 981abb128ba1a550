"""Exact matrix products of grid tensors with weights of one byte: arithmetic 2 of EXACT.md.

A sum over a layer's inputs is an integer, whatever computes it; what is done with it afterwards are
single-precision operations on one number at a time, each rounded once, as every processor does.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpcm_scale.entropy.exact.integer_weights import NOTHING, Addend
from hpcm_scale.entropy.exact.neighbourhoods import largest_of, patches
from hpcm_scale.entropy.exact.product import (
    LARGEST_INPUTS,
    TOP,
    Views,
    multiplies_bytes,
    split_digits,
    split_top,
)
from hpcm_scale.entropy.exact.scaled_weights import (
    BYTE,
    FLOAT_INPUTS,
    FLOAT_SUM,
    TAP_WEIGHT,
    TWO_DIGIT_MAX,
    ScaledWeights,
)
from hpcm_scale.models.linear import use_onednn
from hpcm_scale.models.torch_internals import int_mm, linear_pointwise


class NarrowProduct:
    """Rows (R, K) of grid integers times weights of a byte, plus the bias: (R, O) float32.

    Results are in grid points, not rounded to them.

    Args: as for `ScaledWeights`, the parameters as tensors on any device.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, name: str, addend: Addend = NOTHING
    ) -> None:
        if bias is None:
            bias = weight.new_zeros(len(weight))
        w, b = (p.detach().cpu().numpy() for p in (weight, bias))
        scaled = ScaledWeights(w, b, name, addend)
        transposed = np.ascontiguousarray(scaled.weight.T, np.int8)
        self._weight, self._unit, self._bias = (
            torch.from_numpy(array).to(weight.device)
            for array in (transposed, scaled.unit, scaled.bias)
        )
        self._reach, self.roundoff = scaled.reach, scaled.roundoff

    @property
    def outputs(self) -> int:
        """Output channels, O."""
        return self._weight.shape[1]

    def operand(self) -> Tensor:
        """Weights in the form that `multiply` takes; made once for all the rows of a tensor."""
        if multiplies_bytes(self._weight.device) and len(self._weight) < LARGEST_INPUTS:
            return self._weight
        return self._weight.to(torch.float32 if self._float_is_exact else torch.float64)

    def multiply(self, rows: Tensor, operand: Tensor, largest: float | None = None) -> Tensor:
        """The product of `rows` (R, K), float32 or float64.

        Args:
            largest: what no magnitude in `rows` is above, if it is known.
        """
        return self._in_grid_points(self.sums(rows, operand, largest))

    def multiply_patches(self, around: Tensor, side: int, operand: Tensor) -> Tensor:
        """The product of what the positions of some image rows meet: (r·W, O).

        Args:
            around: as `patches` takes it.
        """
        largest = largest_of(around)
        if operand.dtype != torch.int8 or largest > TWO_DIGIT_MAX:
            return self.multiply(patches(around, side), operand, largest)
        digits = around.new_empty(2, *around.shape, dtype=torch.int8)
        split_digits(around, digits[0], digits[1])
        return self._in_grid_points(
            self._from_digits(patches(digits, side).flatten(0, 1), operand, largest)
        )

    def _in_grid_points(self, sums: Tensor) -> Tensor:
        return sums.mul_(self._unit).add_(self._bias)

    @property
    def _float_is_exact(self) -> bool:
        # Some matrix units of GPUs round their inputs.
        return len(self._weight) <= FLOAT_INPUTS and self._weight.device.type == "cpu"

    def sums(self, rows: Tensor, operand: Tensor, largest: float | None = None) -> Tensor:
        """Σ W·a of `rows`, each rounded to float32 once: (R, O); arguments as of `multiply`."""
        if operand.dtype == torch.float64:
            return (rows.double() @ operand).float()
        rows = rows.float()
        if largest is None:
            largest = largest_of(rows) if rows.numel() else 0.0
        rows, top, wide = split_top(rows, largest)
        count, inputs = rows.shape
        in_bytes = operand.dtype == torch.int8
        digits = rows.new_empty(2 * count, inputs, dtype=operand.dtype)
        split_digits(rows, digits[:count], digits[count:])
        multiply = int_mm if in_bytes else _in_floats
        if top is not None:
            sums = multiply(digits, operand)
            return _added_up(sums, multiply(top.to(operand.dtype), operand[wide]))
        # In place where it can be: fresh memory costs more than the arithmetic.
        if not in_bytes:
            high, low = multiply(digits, operand).chunk(2)
            return low.add_(high, alpha=BYTE)  # a power of two: rounded once
        return self._from_digits(digits, operand, largest)

    def _from_digits(self, digits: Tensor, operand: Tensor, largest: float) -> Tensor:
        """Sums (R, O) of activations' digits (2R, K) int8, the high ones first."""
        high, low = int_mm(digits, operand).chunk(2)
        if largest * self._reach < 1 << 31:
            return low.add_(high, alpha=BYTE).float()
        return low.double().add_(high, alpha=BYTE).float()


def _in_floats(rows: Tensor, operand: Tensor) -> Tensor:
    """Rows (R, K) times weights (K, O) in float32, which holds every partial sum."""
    # Even of factors rounded to bfloat16, as oneDNN may be told to: digits and weights are bytes.
    if use_onednn(rows):
        return linear_pointwise(rows, operand.t(), None, "none", [])
    return rows @ operand


def _added_up(sums: Tensor, top: Tensor) -> Tensor:
    """Sums by three digits, the high ones before the low ones (2R, O) and the top ones (R, O), each
    exact, as one rounded to float32 once."""
    high, low = sums.chunk(2)
    total = low.double().add_(high.double(), alpha=BYTE)
    return total.add_(top.double(), alpha=TOP).float()


class NarrowDepthwise:
    """A depthwise convolution of grid integers with weights of 12 bits, plus the bias: float32.

    Args: as of `Depthwise`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, name: str) -> None:
        w, b = (p.detach().cpu().numpy() for p in (weight, bias))
        scaled = ScaledWeights(w, b, name, most=TAP_WEIGHT)
        self.taps = torch.from_numpy(scaled.weight.T.astype(np.int32)).to(weight.device)
        """(taps, C) int32."""
        self._unit, self._bias = (
            torch.from_numpy(array).to(weight.device) for array in (scaled.unit, scaled.bias)
        )
        self._reach, self.roundoff = scaled.reach, scaled.roundoff

    def sums(self, around: Tensor, views: Views, taps: Tensor) -> Tensor:
        """Sums as `Depthwise.sums` gives them."""
        largest = int(largest_of(around))
        whole = self._in_floats(around, largest)
        if whole is None:
            fits = largest * self._reach < 1 << 31
            integers = around.to(torch.int32 if fits else torch.int64)
            for view, tap in zip(views(integers), taps.to(integers.dtype), strict=True):
                whole = view * tap if whole is None else whole.addcmul_(view, tap)
            assert whole is not None  # a kernel has taps
        return whole.float().mul_(self._unit).add_(self._bias)

    def _in_floats(self, around: Tensor, largest: int) -> Tensor | None:
        """The sums, each rounded to float32 once, by a convolution of two digits; None if it could
        round before or would not be quicker."""
        base = 1 << max(1, math.floor(math.log2(2 * FLOAT_SUM / max(1, self._reach))))
        highest = largest // base + 1
        if around.device.type != "cpu" or max(base // 2, highest) * self._reach > FLOAT_SUM:
            return None
        side = math.isqrt(len(self.taps))
        kernel = self.taps.T.float().unflatten(1, (1, side, side))
        digits = around.new_empty(2, *around.shape)
        torch.mul(around, 1 / base, out=digits[1]).round_()
        torch.sub(around, digits[1], alpha=base, out=digits[0])
        low, high = F.conv2d(digits.permute(0, 3, 1, 2), kernel, groups=len(kernel))
        return low.add_(high, alpha=base).permute(1, 2, 0)  # a power of two: rounded once
