"""Rows of grid integers times a layer's integer weights, in either exact arithmetic (EXACT.md).

Within a layer of arithmetic 1 grid integers are in float64, whose sums of such products are exact
in any order, so that any BLAS gives the same; in arithmetic 2 so are sums of digits in float32.
"""

import numpy as np

from hpcm_scale.entropy.exact.grid import LIMIT
from hpcm_scale.entropy.exact.integer_weights import NOTHING, Addend, IntegerWeights
from hpcm_scale.entropy.exact.scaled_weights import (
    BYTE,
    FLOAT_INPUTS,
    FLOAT_SUM,
    TWO_DIGIT_MAX,
    ScaledWeights,
)
from hpcm_scale.numpy_engine.parameters import Parameters


def requantize(x: np.ndarray) -> np.ndarray:
    """The nearest grid integers (halves to even), clamped to ±LIMIT, in place."""
    np.rint(x, out=x)
    return np.clip(x, -LIMIT, LIMIT, out=x)


class Product:
    """Rows (R, K) of grid integers times integer weights, plus the bias: (R, O) float64, exact.

    Results are in grid points, not rounded: multiples of 2^-k of them.

    Args:
        weight: (O, K).
        bias: (O,).
        name, addend, sloped: as for `IntegerWeights`.

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
        integers = IntegerWeights(weight, bias, name, addend, sloped)
        self.outputs = len(bias)
        # A quarter of the memory that float64 would take; made wide for a layer at a time.
        self._integers = np.ascontiguousarray(integers.weight.T, np.int16)
        self._unit = np.ldexp(1.0, -integers.shift)
        self._bias = integers.bias * self._unit

    def operand(self) -> np.ndarray:
        """Weights in the form that `multiply` takes; made once for all the rows of an array."""
        return self._integers * self._unit

    def multiply(self, rows: np.ndarray, operand: np.ndarray) -> np.ndarray:
        """The product of `rows` (R, K), float32 or float64."""
        out = rows.astype(np.float64, copy=False) @ operand
        out += self._bias
        return out


class NarrowProduct:
    """Rows (R, K) of grid integers times weights of a byte, plus the bias: (R, O) float32.

    Results are in grid points, not rounded to them.

    Args: as for `ScaledWeights`.
    """

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray, name: str, addend: Addend = NOTHING
    ) -> None:
        scaled = ScaledWeights(weight, bias, name, addend)
        self.outputs = len(bias)
        self._integers = np.ascontiguousarray(scaled.weight.T, np.int8)
        self._unit, self._bias = scaled.unit, scaled.bias
        self._reach = scaled.reach

    def operand(self) -> np.ndarray:
        """Weights in the form that `multiply` takes; made once for all the rows of an array."""
        exact = len(self._integers) <= FLOAT_INPUTS
        return self._integers.astype(np.float32 if exact else np.float64)

    def multiply(self, rows: np.ndarray, operand: np.ndarray) -> np.ndarray:
        """The product of `rows` (R, K), float32 or float64."""
        out = self._sums(rows, operand)
        out *= self._unit
        out += self._bias
        return out

    def _sums(self, rows: np.ndarray, operand: np.ndarray) -> np.ndarray:
        """Σ W·a of `rows`, each rounded to float32 once: (R, O)."""
        if operand.dtype == np.float64:
            return (rows.astype(np.float64, copy=False) @ operand).astype(np.float32)
        rows = rows.astype(np.float32, copy=False)
        largest = max(rows.max(initial=0), -rows.min(initial=0))
        if largest * self._reach < FLOAT_SUM:
            return rows @ operand
        if largest > TWO_DIGIT_MAX:
            # Few channels have values that large, and only they need more than float32 holds.
            wide = (np.abs(rows) > TWO_DIGIT_MAX).any(axis=0)
            more = rows[:, wide].astype(np.float64) @ operand[wide].astype(np.float64)
            rows = np.where(wide, np.float32(0), rows)
            high, low = _digits(rows)
            more += (high @ operand).astype(np.float64) * BYTE
            more += low @ operand
            return more.astype(np.float32)
        # Digits of a byte, whose sums float32 holds; their own sum is rounded once.
        high, low = _digits(rows)
        out = high @ operand
        out *= np.float32(BYTE)
        out += low @ operand
        return out


def _digits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers of at most `TWO_DIGIT_MAX` in float32 as 256·high + low, both −128 to 127."""
    high = np.floor(rows * np.float32(1 / BYTE) + np.float32(0.5))
    return high, rows - high * np.float32(BYTE)


def product(
    p: Parameters,
    weight: np.ndarray,
    bias: np.ndarray,
    name: str,
    addend: Addend = NOTHING,
    sloped: bool = False,
) -> Product | NarrowProduct:
    """The products of one layer in the model's arithmetic; arguments as of `Product`."""
    if p.arithmetic.is_narrow(name):
        return NarrowProduct(weight, bias, name, addend)
    return Product(weight, bias, name, addend, sloped)
