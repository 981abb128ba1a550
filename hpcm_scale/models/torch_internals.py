"""Every undocumented name of torch that networks and exact arithmetic use.

Each has a fallback where it is used, so that a torch without it is slower and no different. Those
of training are in training/deepspeed_internals.py.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

NAMES = ("torch.ops.mkldnn._linear_pointwise", "torch._int_mm", "torch.cpu._is_vnni_supported")
"""What is used, for the test that the installed torch has it."""

# torch.compile emits them; plain products do without.
HAS_LINEAR_POINTWISE = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
"""Whether oneDNN's fused linear operators can be called."""


def linear_pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, scalars: list[float]
) -> Tensor:
    """activation(x Wᵀ + b) by oneDNN: rows x (n, I), weight (O, I), bias (O,) -> (n, O)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, scalars, "")


def linear_add_pointwise(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """residual + x Wᵀ + b by oneDNN: rows x (n, I), residual (n, O) -> (n, O)."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")


int_mm = cast(Callable[[Tensor, Tensor], Tensor], getattr(torch, "_int_mm", None))
"""Product of int8 matrices, summed in int32: (R, K), (K, O) -> (R, O)."""


def has_vnni() -> bool:
    """Whether the processor multiplies bytes and sums them in 32 bits (AVX512-VNNI)."""
    return int_mm is not None and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
