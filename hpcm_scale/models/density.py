"""Densities of the quantised latents and the bits they cost.

Generalised Gaussian of shape β = 1.5 and zero mean, per arXiv 2507.19125:
F(v) = (1 + sign(v)·P(1/β, |v|^β)) / 2 with v = x / scale, P the regularised lower incomplete gamma.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

SHAPE = 1.5
"""β of the generalised Gaussian."""
# The published program keeps both bounds in single precision, and its goldens show it: at double
# precision the bits of a float64 pass would differ by 2e-9.
SCALE_BOUND = torch.tensor(0.12, dtype=torch.float32).item()
"""Smallest scale: smaller ones are coded as this one."""
LIKELIHOOD_BOUND = torch.tensor(1e-9, dtype=torch.float32).item()
"""Smallest likelihood: keeps the rate of an outlier finite."""


class _Cdf(torch.autograd.Function):
    """The cumulative distribution function at unit scale; its derivative is the density."""

    @staticmethod
    def forward(ctx: FunctionCtx, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        power = v.abs().pow(SHAPE)
        half = torch.special.gammainc(torch.full_like(power, 1 / SHAPE), power).mul_(0.5)
        return torch.copysign(half, v).add_(0.5)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        log_density = -v.abs().pow(SHAPE) - math.lgamma(1 / SHAPE)
        return grad * log_density.exp() * (SHAPE / 2)


class _LowerBound(torch.autograd.Function):
    """max(x, bound); below the bound the gradient may move x up, never further down."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return grad


def ste_round(x: Tensor) -> Tensor:
    """round(x) with the gradient of x (straight-through estimator)."""
    return _Round.apply(x)


def upcast_half(x: Tensor) -> Tensor:
    """`x`, in float32 if it is of half precision: a likelihood is a difference of close numbers."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def bits(residual: Tensor, scale: Tensor) -> Tensor:
    """What it costs to code `residual` = symbol (or y − mean + noise), in bits.

    Args:
        residual: (B, ...), in units of the quantisation step 1.
        scale: broadcast against `residual`; bounded below at `SCALE_BOUND` here.

    Returns:
        −log2 of F((r+½)/scale) − F((r−½)/scale), same shape; the likelihood is bounded below.
    """
    scale = _LowerBound.apply(scale, SCALE_BOUND)
    likelihood = _Cdf.apply((residual + 0.5) / scale) - _Cdf.apply((residual - 0.5) / scale)
    return -_LowerBound.apply(likelihood, LIKELIHOOD_BOUND).log2()


class ZPrior(nn.Module):
    """The density of the hyper-latents: a learned mean and scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, z: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Quantise and price z.

        Args:
            z: (B, N, h, w).
            noise: uniform in [−½, ½), like z, for the training rate; None prices the symbols.

        Returns:
            ẑ like z, and the bits of each element.
        """
        mean = upcast_half(self.mean)
        residual = upcast_half(z) - mean
        symbols = ste_round(residual)
        rated = symbols if noise is None else residual + noise
        return (symbols + mean).to(z.dtype), bits(rated, upcast_half(self.scale))
