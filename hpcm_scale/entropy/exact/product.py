"""Exact matrix products of grid tensors with integer weights.

Two kernels compute the same numbers. In float64 every sum is of integers below 2^53, so no order of
summation, no fused multiply-add and no library changes it. Where the CPU multiplies bytes, weights
and activations are split into digits of a byte, whose products are summed in 32-bit integers:
three times as fast.
"""

import os
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.entropy.exact.grid import EXACT, GRID_BITS, LIMIT
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.torch_internals import has_vnni, int_mm

WEIGHT_BITS = 13
"""log2 of the largest integer weight; the largest of every output channel is at least half that."""
LARGEST_SHIFT = 24
"""Largest exponent k: an output channel of tiny weights rounds them to multiples of 2^-24."""
SLOPE_NUMERATOR, SLOPE_DENOMINATOR = 41, 4096
"""LeakyReLU's slope, 0.01 as a ratio."""
DIGIT = 128
"""Base of the two digits of a weight: the low one is -64..63, the high one -64..64."""
BYTE = 256
"""Base of the two digits of an activation, -128..127."""
TWO_DIGIT_MAX = 127 * BYTE + 127
"""Activations up to this have two digits; of the few beyond, multiples of `TOP` are taken apart."""
TOP = 1 << 15
LARGEST_INPUTS = 1 << 16
"""So many products of digits stay below 2^31 in sum."""
ELEMENTS = 1 << 15
"""Weights that are put together from their digits at a time."""
TRIAL = 4096
"""Bytes of each sum that is tried before byte products are relied on."""
OUTPUTS = 256
"""Output channels whose weights are made integers at a time."""


class Addend(NamedTuple):
    """An addend of a layer's sum, added before it is rounded."""

    largest: int
    """Its largest magnitude, in grid points."""
    bits: int = 0
    """It is a multiple of 2^-bits grid points."""


NOTHING = Addend(0)


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


class Product:
    """Rows (R, K) of grid integers times integer weights, plus the bias: (R, O) float64, exact.

    Results are in grid points, not rounded: multiples of 2^-k of them.

    Args: as for `IntegerWeights`, the parameters as tensors on any device.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        name: str,
        addend: Addend = NOTHING,
        sloped: bool = False,
    ) -> None:
        outputs, inputs = weight.shape
        if bias is None:
            bias = weight.new_zeros(outputs)
        digits = np.empty((3 * inputs, outputs), np.int8)
        units, biases = np.empty(outputs), np.empty(outputs)
        # Some outputs at a time: in float64, whole layers of a large network would fill memory.
        for start in range(0, outputs, OUTPUTS):
            part = slice(start, start + OUTPUTS)
            w, b = (p[part].detach().cpu().numpy() for p in (weight, bias))
            integers = IntegerWeights(w, b, name, addend, sloped)
            high = np.floor((integers.weight + DIGIT / 2) / DIGIT).T
            low = integers.weight.T - DIGIT * high
            digits[:, part] = np.concatenate([2 * low, high, low])
            units[part] = np.ldexp(1.0, -integers.shift)
            biases[part] = integers.bias * units[part]
        self._digits, self._unit, self._bias = (
            torch.from_numpy(array).to(weight.device) for array in (digits, units, biases)
        )

    @property
    def outputs(self) -> int:
        """Output channels, O."""
        return self._digits.shape[1]

    def operand(self) -> Tensor:
        """Weights in the form that `multiply` takes; made once for all the rows of a tensor."""
        if multiplies_bytes(self._digits.device) and len(self._digits) < 3 * LARGEST_INPUTS:
            return self._digits
        _, high, low = self._digits.chunk(3)
        out = torch.empty(low.shape, dtype=torch.float64, device=low.device)
        # A few rows at a time, which stay in the processor's cache: this is most of what small
        # pictures cost.
        count = max(1, ELEMENTS // low.shape[1])
        for part, *digits in zip(*(t.split(count) for t in (out, high, low)), strict=True):
            part.copy_(digits[0]).mul_(DIGIT).add_(digits[1]).mul_(self._unit)
        return out

    def multiply(self, rows: Tensor, operand: Tensor) -> Tensor:
        """The product of `rows` (R, K), float32 or float64."""
        if operand.dtype != torch.int8:
            return torch.addmm(self._bias, rows.double(), operand)
        return _in_bytes(rows, operand).mul_(self._unit).add_(self._bias)


def _in_bytes(rows: Tensor, digits: Tensor) -> Tensor:
    """Rows (R, K) of grid integers times weights (K, O) by their digits: (R, O) in float64.

    Args:
        digits: (3K, O) int8: twice the weights' low digits, the high ones, the low ones.
    """
    k = rows.shape[1]
    _, high_weights, low_weights = digits.chunk(3)
    # Single precision holds the integers exactly, and is the quickest to round.
    rest, wide, top = rows.float(), None, None
    if max(map(abs, torch.aminmax(rest))) > TWO_DIGIT_MAX:
        # Few channels have values that large, and only they need a third digit.
        wide = (rest.abs() > TWO_DIGIT_MAX).any(0).nonzero().flatten()
        top = rest[:, wide].mul_(1 / TOP).round_()
        rest = rest.index_add(1, wide, top, alpha=-TOP)
    pair = torch.empty(len(rows), 2 * k, dtype=torch.int8, device=rows.device)
    high = torch.add(rest.new_tensor(0.5), rest, alpha=1 / BYTE).floor_()
    pair[:, :k] = high
    pair[:, k:] = torch.sub(rest, high, alpha=BYTE)
    # In place where it can be: fresh memory costs more than the arithmetic.
    # high·high, then high·low + low·high (of which the former weighs double), then low·low.
    out = int_mm(pair[:, :k], high_weights).double()
    out = int_mm(pair, digits[: 2 * k]).double().add_(out, alpha=BYTE)
    out = int_mm(pair[:, k:], low_weights).double().add_(out, alpha=DIGIT)
    if wide is not None and top is not None:
        top = top.to(torch.int8)
        more = int_mm(top, high_weights[wide]).double()
        more = int_mm(top, low_weights[wide]).double().add_(more, alpha=DIGIT)
        out.add_(more, alpha=TOP)
    return out


@cache
def multiplies_bytes(device: torch.device) -> bool:
    """Whether products of bytes are summed in 32 bits here, and so exact.

    Without VNNI, oneDNN adds pairs of products in 16 bits, which saturate. It can be told by
    environment not to use VNNI; the trial catches what else might keep it from it.
    """
    if device.type != "cpu" or not has_vnni():
        return False
    if {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys():
        return False
    return all(_trial(a, b) for a in (127, -128) for b in (127, -128))


def _trial(a: int, b: int) -> bool:
    """Whether products of extreme bytes are right, as sums that float32 would round."""
    left = torch.full((64, 2 * TRIAL), a, dtype=torch.int8)[:, :TRIAL]
    right = torch.full((TRIAL, 64), b, dtype=torch.int8)
    left[:, 0], right[0] = 1, 1
    return bool((int_mm(left, right) == (TRIAL - 1) * a * b + 1).all())
