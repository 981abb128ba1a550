"""Rates of this machine's matrix products, which speeds are measured against."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from hpcm_scale.models.linear import linear_nograd
from hpcm_scale.models.torch_internals import has_native_bf16, has_vnni, int_mm

PEAK_SIDE = 2048
"""Side of the matrices that are multiplied on a CPU."""
UNSUITED_SIDE = 256
"""On a CPU without bf16, where larger ones take half a minute in it."""
ACCELERATOR_SIDE = 8192
"""On an accelerator, which multiplies smaller ones in less time than ordering it takes."""


def peak_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations a second of one large product by the fastest means, measured now."""
    return max(_rate(multiply, device, dtype) for multiply in (torch.mm, linear_nograd))


class ProductRates:
    """Rates of large products on this CPU, measured again beside whatever is timed: on a shared
    machine only the ratio of two times taken together means something."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def measure(self) -> dict[str, float]:
        """Operations a second of fp32, and of bf16 and int8 where instructions multiply those."""
        rates = {"fp32": peak_rate("cpu", torch.float32)}
        if has_native_bf16():
            rates["bf16"] = peak_rate("cpu", torch.bfloat16)
        if has_vnni():
            rates["int8"] = _rate(int_mm, "cpu", torch.int8)
        for name, rate in rates.items():
            self.found.setdefault(name, []).append(rate)
        return rates

    def __str__(self) -> str:
        """Medians of all that was measured."""
        medians = ", ".join(
            f"{name} {median(found) / 1e9:.0f}" for name, found in self.found.items()
        )
        return f"large products: {medians} GFLOP/s"


def _rate(
    multiply: Callable[[Tensor, Tensor], Tensor],
    device: torch.device | str,
    dtype: torch.dtype,
) -> float:
    on_cpu = torch.device(device).type == "cpu"
    side = PEAK_SIDE if on_cpu else ACCELERATOR_SIDE
    if on_cpu and dtype == torch.bfloat16 and not has_native_bf16():
        side = UNSUITED_SIDE
    a = (64 * torch.rand(side, side, device=device)).to(dtype)
    # An accelerator loads and chooses its kernel at the first product of a shape.
    multiply(a[:1] if on_cpu else a, a)[0, 0].item()  # .item() waits for the device
    start = perf_counter()
    multiply(a, a)[0, 0].item()
    return 2 * side**3 / (perf_counter() - start)
