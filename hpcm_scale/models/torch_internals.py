"""Every undocumented name of torch that networks and exact arithmetic use.

Each has a fallback where it is used, so that a torch without it is slower and no different. Those
of training are in training/deepspeed_internals.py.
"""

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = (
    "torch.ops.mkldnn._linear_pointwise",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported",
    "torch._int_mm",
    "torch.cpu._is_vnni_supported",
    "torch.cpu._is_avx512_bf16_supported",
    "torch.cpu._is_amx_tile_supported",
)
"""Names used here, for the test that the installed torch has them."""

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


_int_mm = cast(Callable[[Tensor, Tensor], Tensor], getattr(torch, "_int_mm", None))
CUDA_ROWS, CUDA_MULTIPLE = 17, 8
"""Least rows, and what the other two sizes are multiples of, in CUDA's product of bytes."""


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """Product of int8 matrices, summed in int32: (R, K), (K, O) -> (R, O)."""
    return padded_int_mm(a, b) if a.is_cuda else _int_mm(a, b)


def padded_int_mm(
    a: Tensor, b: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """`int_mm` by a product of CUDA's shapes alone: added zeros change no sum."""
    rows, inner, columns = *a.shape, b.shape[1]
    more_inner, more_columns = -inner % CUDA_MULTIPLE, -columns % CUDA_MULTIPLE
    more_rows = max(0, CUDA_ROWS - rows)
    if more_rows or more_inner:
        a = F.pad(a, (0, more_inner, 0, more_rows))
    if more_inner or more_columns:
        b = F.pad(b, (0, more_columns, 0, more_inner))
    return (multiply or _int_mm)(a.contiguous(), b.contiguous())[:rows, :columns]


def has_vnni() -> bool:
    """Whether the processor multiplies bytes and sums them in 32 bits (AVX512-VNNI)."""
    return _int_mm is not None and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


@cache
def has_native_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX512-BF16 or AMX) and oneDNN may use it.

    Elsewhere oneDNN converts at every product, which takes 25 times as long as fp32.
    """
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = any(getattr(torch.cpu, name, lambda: False)() for name in instructions)
    # oneDNN's word includes processors without, but heeds ONEDNN_MAX_CPU_ISA.
    usable = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return native and torch.backends.mkldnn.is_available() and usable()


def has_byte_products() -> bool:
    """Whether this torch has the product of int8 matrices at all."""
    return _int_mm is not None
