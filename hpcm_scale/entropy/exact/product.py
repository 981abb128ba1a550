"""Exact matrix products of grid tensors with integer weights.

Two kernels compute the same numbers. In float64 every sum is of integers below 2^53, so no order of
summation, no fused multiply-add and no library changes it. Where the CPU multiplies bytes, weights
and activations are split into digits of a byte, whose products are summed in 32-bit integers:
three times as fast.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.entropy.exact.integer_weights import NOTHING, Addend, IntegerWeights
from hpcm_scale.entropy.exact.neighbourhoods import largest_of, patches
from hpcm_scale.entropy.exact.scaled_weights import BYTE, TWO_DIGIT_MAX
from hpcm_scale.models.torch_internals import has_byte_products, has_vnni, int_mm

DIGIT = 128
"""Base of the two digits of a weight: the low one is -64..63, the high one -64..64."""
TOP = 1 << 15
LARGEST_INPUTS = 1 << 16
"""So many products of digits stay below 2^31 in sum."""
ELEMENTS = 1 << 15
"""Weights that are put together from their digits at a time."""
TRIAL = 4096
"""Bytes of each sum that is tried before byte products are relied on."""
OUTPUTS = 256
"""Output channels whose weights are made integers at a time."""
LEAST_CHANNELS = 96
"""Of fewer inputs or outputs, sums are as quick in float64 on a CPU as in bytes: taking digits
apart and putting sums together costs what is won."""


Views = Callable[[Tensor], Iterator[Tensor]]
"""What surrounds some rows -> the (r, W, C) that each tap of a kernel meets."""


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
        units, biases, reaches = np.empty(outputs), np.empty(outputs), np.empty(outputs)
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
            reaches[part] = np.abs(integers.weight).sum(axis=1) * units[part]
        self._reach, self._offset = float(reaches.max()), float(np.abs(biases).max())
        # What products of digits come to at most, of inputs of two digits.
        high, low = (np.abs(part, dtype=np.int64).sum(0) for part in np.split(digits, 3)[1:])
        most = BYTE // 2 * (BYTE * high + high + 2 * low)
        self._adds_up_in_32_bits = int(most.max()) < 1 << 31
        self._digits, self._unit, self._bias = (
            torch.from_numpy(array).to(weight.device) for array in (digits, units, biases)
        )

    @property
    def outputs(self) -> int:
        """Output channels, O."""
        return self._digits.shape[1]

    def largest_sum(self, largest: float) -> float:
        """What no magnitude of a product is above, of inputs up to `largest`; at least that of
        halves rounded up."""
        return self._reach * (largest + 0.5) + self._offset

    def operand(self) -> Tensor:
        """Weights in the form that `multiply` takes; made once for all the rows of a tensor."""
        device, inputs = self._digits.device, len(self._digits) // 3
        is_large = min(inputs, self.outputs) >= LEAST_CHANNELS or device.type != "cpu"
        if inputs < LARGEST_INPUTS and is_large and multiplies_bytes(device):
            return self._digits
        _, high, low = self._digits.chunk(3)
        whole = low.new_empty(len(low) + 1, low.shape[1], dtype=torch.float64)
        out, whole[-1] = whole[:-1], self._bias
        # A few rows at a time, which stay in the processor's cache: this is most of what small
        # pictures cost.
        count = max(1, ELEMENTS // low.shape[1])
        for part, *digits in zip(*(t.split(count) for t in (out, high, low)), strict=True):
            part.copy_(digits[0]).mul_(DIGIT).add_(digits[1]).mul_(self._unit)
        return whole

    def multiply(self, rows: Tensor, operand: Tensor, largest: float | None = None) -> Tensor:
        """The product of `rows`, float32 or float64: (R, K), or (R, K + 1) with ones in the last.

        Ones are for operands in float64, and spare it adding the bias.

        Args:
            largest: what no magnitude in `rows` is above, if it is known.
        """
        if operand.dtype == torch.int8:
            largest = largest_of(rows) if largest is None else largest
            return self._in_grid_points(self._in_bytes(rows.float(), operand, largest))
        if rows.shape[1] == len(operand):
            return rows.double() @ operand
        return torch.addmm(self._bias, rows.double(), operand[:-1])

    def multiply_patches(self, around: Tensor, side: int, operand: Tensor) -> Tensor:
        """The product of what the positions of some image rows meet: (r·W, O).

        Args:
            around: as `patches` takes it.
        """
        if operand.dtype != torch.int8:
            # In float64 before there are side² of each.
            return self.multiply(patches(around.double(), side), operand)
        largest = largest_of(around)
        if largest > TWO_DIGIT_MAX:
            return self.multiply(patches(around, side), operand, largest)
        digits = around.new_empty(2, *around.shape, dtype=torch.int8)
        split_digits(around, digits[0], digits[1])
        return self._in_grid_points(
            self._sums(torch.cat(patches(digits, side).unbind(), 1), operand)
        )

    def _in_grid_points(self, sums: Tensor) -> Tensor:
        """Sums of integers (R, O), overwritten, as products in grid points."""
        # All of it is exact, so it does not matter whether the two are rounded as one.
        return torch.addcmul(self._bias, sums, self._unit, out=sums)

    def _in_bytes(self, rows: Tensor, digits: Tensor, largest: float) -> Tensor:
        """Sums of rows (R, K), float32, times integer weights by their digits: (R, O) in float64.

        Args:
            digits: (3K, O) int8: twice the weights' low digits, the high ones, the low ones.
            largest: what no magnitude in `rows` is above.
        """
        k = rows.shape[1]
        rows, top, wide = split_top(rows, largest)
        pair = torch.empty(len(rows), 2 * k, dtype=torch.int8, device=rows.device)
        split_digits(rows, pair[:, :k], pair[:, k:])
        out = self._sums(pair, digits)
        if top is not None:
            _, high_weights, low_weights = digits.chunk(3)
            top = top.to(torch.int8)
            more = int_mm(top, high_weights[wide]).double()
            more = int_mm(top, low_weights[wide]).double().add_(more, alpha=DIGIT)
            out.add_(more, alpha=TOP)
        return out

    def _sums(self, pair: Tensor, digits: Tensor) -> Tensor:
        """Sums (R, O) in float64 of activations' digits (R, 2K) int8, the high ones first."""
        k = pair.shape[1] // 2
        _, high_weights, low_weights = digits.chunk(3)
        # In place where it can be: fresh memory costs more than the arithmetic.
        # high·high, then high·low + low·high (of which the former weighs double), then low·low.
        top, middle = int_mm(pair[:, :k], high_weights), int_mm(pair, digits[: 2 * k])
        if self._adds_up_in_32_bits:
            out = middle.add_(top, alpha=BYTE).double()
        else:
            out = middle.double().add_(top.double(), alpha=BYTE)
        return int_mm(pair[:, k:], low_weights).double().add_(out, alpha=DIGIT)


class Depthwise:
    """A depthwise convolution of grid integers with integer weights, plus the bias: float64, exact.

    Args:
        weight: (C, taps), taps row by row.
        bias: (C,).
        name: of the layer, for errors.
    """

    def __init__(self, weight: Tensor, bias: Tensor, name: str) -> None:
        kernel, offset = (p.detach().cpu().numpy() for p in (weight, bias))
        integers = IntegerWeights(kernel, offset, name)
        unit = np.ldexp(1.0, -integers.shift)
        self.taps = torch.from_numpy((integers.weight * unit[:, None]).T.copy()).to(weight.device)
        """(taps, C) float64."""
        self._bias = torch.from_numpy(integers.bias * unit).to(weight.device)

    def sums(self, around: Tensor, views: Views, taps: Tensor) -> Tensor:
        """In grid points, not rounded: (r, W, C).

        Args:
            around: all that the taps meet.
            views: gives what each tap meets (r, W, C), in order.
            taps: `self.taps`.
        """
        out = None
        for view, tap in zip(views(around.double()), taps, strict=True):
            out = self._bias.expand(view.shape).clone() if out is None else out
            out.addcmul_(view, tap)
        assert out is not None  # a kernel has taps
        return out


def split_top(rows: Tensor, largest: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Integers (R, K), the largest magnitude of which is given, as rest + `TOP`·top.

    Few channels have values that need it: top is of those alone, (R, W).

    Returns:
        rest, of at most `TWO_DIGIT_MAX`; top, of a digit, and those channels (W,): None for none.
    """
    if largest <= TWO_DIGIT_MAX:
        return rows, None, None
    wide = (rows.abs() > TWO_DIGIT_MAX).any(0).nonzero().flatten()
    top = rows[:, wide].mul_(1 / TOP).round_()
    return rows.index_add(1, wide, top, alpha=-TOP), top, wide


def split_digits(rows: Tensor, high: Tensor, low: Tensor) -> None:
    """Write integers of at most `TWO_DIGIT_MAX` as 256·high + low, both from −128 to 127."""
    integers = rows.to(torch.int16)
    # The lower byte of a two's complement number is that digit.
    low.copy_(integers.to(torch.int8))
    high.copy_(integers.add_(BYTE // 2).bitwise_right_shift_(8))


@cache
def multiplies_bytes(device: torch.device) -> bool:
    """Whether products of bytes are summed in 32 bits here, and so exact.

    Without VNNI, oneDNN adds pairs of products in 16 bits, which saturate. It can be told by
    environment not to use VNNI; the trial catches what else might keep it from it. GPUs sum in 32
    bits where they multiply bytes at all.
    """
    if device.type == "cpu":
        told_not_to = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys()
        if told_not_to or not has_vnni():
            return False
    elif device.type != "cuda" or not has_byte_products():
        return False
    try:
        return all(_trial(a, b, device) for a in (127, -128) for b in (127, -128))
    except RuntimeError:  # a GPU too old for them
        return False


def _trial(a: int, b: int, device: torch.device) -> bool:
    """Whether products of extreme bytes are right, as sums that float32 would round."""
    left = torch.full((64, 2 * TRIAL), a, dtype=torch.int8, device=device)[:, :TRIAL]
    right = torch.full((TRIAL, 64), b, dtype=torch.int8, device=device)
    left[:, 0], right[0] = 1, 1
    return bool((int_mm(left, right) == (TRIAL - 1) * a * b + 1).all())
