"""Weights stored as bytes: what arithmetic 2 makes of them anyway (EXACT.md), at half of float16.

A weight W (O, ...) is kept as integers of a byte under its own name and a float32 unit for each
output channel under NAME.unit; W is their product, which is exact.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcm_scale.entropy.exact.scaled_weights import BYTE_WEIGHT, SMALLEST
from hpcm_scale.errors import CheckpointError

UNIT_SUFFIX = ".unit"
UNIT_BITS = 16
"""Significant bits of a unit: its product with any byte is a float32."""


def as_bytes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest integers of a byte to a weight (O, ...), int8, and their units (O,), float32."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    mantissa, exponent = np.frexp(np.where(largest < SMALLEST, 1.0, largest) / BYTE_WEIGHT)
    # Upwards: the largest weight of a channel stays within a byte.
    units = np.ldexp(np.ceil(mantissa * 2**UNIT_BITS) / 2**UNIT_BITS, exponent)
    integers = np.rint(rows / units[:, None])
    return integers.astype(np.int8).reshape(weight.shape), units.astype(np.float32)


def from_bytes(integers: Any, units: Any) -> Any:
    """The weight (O, ...) in float32 of `as_bytes`: arrays or torch tensors."""
    return integers * units.reshape(-1, *(1 for _ in integers.shape[1:]))


def whole_weights(tensors: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A file's tensors with every pair of bytes and units put together.

    Raises:
        CheckpointError: if one of a pair is missing or not of the type and shape of such.
    """
    whole = {name: tensor for name, tensor in tensors.items() if not name.endswith(UNIT_SUFFIX)}
    for name in tensors.keys() - whole:
        base = name.removesuffix(UNIT_SUFFIX)
        integers, units = whole.get(base), tensors[name]
        if (
            integers is None
            or _type(integers) != "int8"
            or _type(units) != "float32"
            or integers.ndim < 2
            or tuple(units.shape) != tuple(integers.shape[:1])
        ):
            raise CheckpointError(
                f"{path}: {name[:80]} belongs to no weight in bytes; export the model again"
            )
        whole[base] = from_bytes(integers, units)
    return whole


def _type(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
