"""Rates of this machine's matrix products, which speeds are measured against."""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from hpcm_scale.models.linear import linear_nograd

PEAK_SIDE = 2048
"""Side of the matrices that are multiplied."""


def sgemm_rate(
    side: int = PEAK_SIDE, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Operations a second of one large product by torch's BLAS, measured now."""
    return _rate(torch.mm, side, device, dtype)


def peak_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations a second of one large product by the fastest means, measured now."""
    by_blas = sgemm_rate(PEAK_SIDE, device, dtype)
    return max(by_blas, _rate(linear_nograd, PEAK_SIDE, device, dtype))


def _rate(
    multiply: Callable[[Tensor, Tensor], Tensor],
    side: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> float:
    a = torch.rand(side, side, device=device).to(dtype)
    multiply(a[:1], a).sum().item()  # .item() waits for the device
    start = perf_counter()
    multiply(a, a)[0, 0].item()
    return 2 * side**3 / (perf_counter() - start)
