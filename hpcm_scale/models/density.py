"""Densities of the quantised latents and the bits they cost.

y of HPCM has a generalised Gaussian of shape β = 1.5 and zero mean (arXiv 2507.19125):
F(v) = (1 + sign(v)·P(1/β, |v|^β)) / 2 with v = x / scale, P the regularised lower incomplete gamma.
y of the peers has a Gaussian. z has one density per channel: `ZPrior` (HPCM) or
`FactorizedPrior` (the peers).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def single(value: float) -> float:
    """`value` as single precision holds it, as the published programs keep their bounds.

    Their goldens show it: at double precision the bits of a float64 pass would differ by 2e-9.
    """
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()


SHAPE = 1.5
"""β of the generalised Gaussian."""
SCALE_BOUND = single(0.12)
"""Smallest scale of the generalised Gaussian: smaller ones are coded as this one."""
LIKELIHOOD_BOUND = 1e-9
"""Smallest likelihood: keeps the rate of an outlier finite."""


class _LowerBound(torch.autograd.Function):
    """max(x, bound); below the bound the gradient may move x up, never further down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        return _stop_below(x, ctx.bound, grad), None


def _stop_below(x: Tensor, bound: float, grad: Tensor) -> Tensor:
    """`grad` of max(x, bound): below the bound 0, unless descent would raise x."""
    return torch.where(x >= bound, grad, grad.clamp_max(0))


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return grad


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound); the gradient passes where x ≥ bound, or where descent would raise x."""
    return _LowerBound.apply(x, bound)


def ste_round(x: Tensor) -> Tensor:
    """round(x) with the gradient of x (straight-through estimator)."""
    return _Round.apply(x)


class _Quantise(torch.autograd.Function):
    """round(x − mean) + mean. Straight through, the mean cancels: all of the gradient is x's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor) -> Tensor:
        return (x - mean).round_().add_(mean)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad, None


def ste_quantise(x: Tensor, mean: Tensor | None) -> Tensor:
    """round(x − mean) + mean, like x, with the gradient of x (straight-through estimator).

    Args:
        mean: like x, or of a narrower type; None for 0.
    """
    return ste_round(x) if mean is None else _Quantise.apply(x, mean)


def upcast_half(x: Tensor) -> Tensor:
    """`x`, in float32 if it is of half precision: a likelihood is a difference of close numbers."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _rate(likelihood: Tensor, bound: float) -> Tensor:
    return -lower_bound(likelihood, bound).log2()


@dataclass(frozen=True)
class ScaleDensity(ABC):
    """A symmetric density of zero mean and a scale of its own for every latent."""

    scale_bound: float
    """Smallest scale: smaller ones are estimated and coded as this one."""
    likelihood_bound: float = LIKELIHOOD_BOUND
    """Smallest likelihood, likewise."""

    @abstractmethod
    def bits(self, residual: Tensor, scale: Tensor) -> Tensor:
        """Rate in bits of `residual` = symbol (or y − mean + noise).

        Args:
            residual: (B, ...), in units of the quantisation step 1.
            scale: broadcast against `residual`; bounded below here.

        Returns:
            −log2 of F((r+½)/scale) − F((r−½)/scale), same shape; the likelihood is bounded below.
        """


class _GeneralizedGaussianBits(torch.autograd.Function):
    """The rate by the generalised Gaussian, both ends of the unit interval in one tensor.

    Written out for autograd it takes three times as many operations.
    """

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, scale: Tensor, scale_bound: float, likelihood_bound: float
    ) -> Tensor:
        dtype = torch.promote_types(residual.dtype, scale.dtype)  # symbols may be integers
        v = residual.new_empty(2, *residual.shape, dtype=dtype)
        torch.add(residual, 0.5, out=v[0])
        torch.sub(residual, 0.5, out=v[1])
        v /= scale.clamp_min(scale_bound)
        power = v.abs().pow_(SHAPE)
        half = torch.special.gammainc(torch.full_like(power, 1 / SHAPE), power).mul_(0.5)
        cdf = torch.copysign(half, v).add_(0.5)
        likelihood = cdf[0] - cdf[1]
        ctx.save_for_backward(scale, v, power, likelihood)
        ctx.bounds = scale_bound, likelihood_bound
        return likelihood.clamp_min(likelihood_bound).log2_().neg_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale, v, power, likelihood = ctx.saved_tensors
        scale_bound, likelihood_bound = ctx.bounds
        of_likelihood = grads[0] / likelihood.clamp_min(likelihood_bound).mul_(-math.log(2))
        of_likelihood = _stop_below(likelihood, likelihood_bound, of_likelihood)
        # The derivative of the cumulative distribution function is the density.
        log_factor = math.log(SHAPE / 2) - math.lgamma(1 / SHAPE)
        of_v = torch.rsub(power, log_factor).exp_().mul_(of_likelihood)
        bounded = scale.clamp_min(scale_bound)
        of_residual = (of_v[0] - of_v[1]).div_(bounded)
        if not ctx.needs_input_grad[1]:
            return of_residual, None, None, None
        of_v *= v
        of_scale = (of_v[1] - of_v[0]).div_(bounded).sum_to_size(scale.shape)
        return of_residual, _stop_below(scale, scale_bound, of_scale), None, None


class GeneralizedGaussian(ScaleDensity):
    """The generalised Gaussian of shape 1.5 (arXiv 2507.19125)."""

    def bits(self, residual: Tensor, scale: Tensor) -> Tensor:
        bounds = self.scale_bound, self.likelihood_bound
        return _GeneralizedGaussianBits.apply(residual, scale, *bounds)


class Gaussian(ScaleDensity):
    """The normal density, as CompressAI prices it: both tails from the same side, by erfc."""

    def bits(self, residual: Tensor, scale: Tensor) -> Tensor:
        scale = lower_bound(scale, self.scale_bound)
        magnitude = residual.abs()
        upper = _normal_cdf((0.5 - magnitude) / scale)
        lower = _normal_cdf((-0.5 - magnitude) / scale)
        return _rate(upper - lower, self.likelihood_bound)


def _normal_cdf(v: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-(2**-0.5) * v)


GENERALIZED_GAUSSIAN = GeneralizedGaussian(SCALE_BOUND, single(LIKELIHOOD_BOUND))
GAUSSIAN = Gaussian(0.11)


class HyperPrior(nn.Module, ABC):
    """The density of the hyper-latents z, one per channel; symbols are round(z − centre)."""

    @property
    def auxiliary_parameters(self) -> tuple[nn.Parameter, ...]:
        """Those that the auxiliary loss trains, and it alone."""
        return ()

    @property
    @abstractmethod
    def centre(self) -> Tensor:
        """(1, N, 1, 1): what is taken from z before it is rounded."""

    @abstractmethod
    def forward(
        self, z: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor], Tensor | None]:
        """Quantise and price z.

        Args:
            z: (B, N, h, w).
            noise: uniform in [−½, ½), like z, for the training rate; None prices the symbols.

        Returns:
            ẑ like z, the bits of each element, and the auxiliary loss of the prior's own
            parameters, a scalar (None where it has none).
        """

    def bits_given(self, density: ScaleDensity) -> bool:
        """Whether `forward` can leave the estimate to `density`, to be made with that of y.

        Then `forward(z, noise, apart=False)` returns, in place of the bits, what `density` takes:
        residual and scale, (B, elements of an image) each.
        """
        return False

    @abstractmethod
    def bits(self, symbols: Tensor) -> Tensor:
        """Rate in bits of symbols (B, N, h, w)."""


class ZPrior(HyperPrior):
    """A learned mean and scale per channel of the generalised Gaussian: HPCM's prior of z."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    @property
    def centre(self) -> Tensor:
        return self.mean

    def bits_given(self, density: ScaleDensity) -> bool:
        return density == GENERALIZED_GAUSSIAN

    def forward(
        self, z: Tensor, noise: Tensor | None, apart: bool = True
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor], None]:
        mean = upcast_half(self.mean)
        residual = upcast_half(z) - mean
        symbols = ste_round(residual)
        rated = symbols if noise is None else residual + noise
        z_hat, scale = (symbols + mean).to(z.dtype), upcast_half(self.scale)
        if apart:
            return z_hat, GENERALIZED_GAUSSIAN.bits(rated, scale), None
        rows = [part.permute(0, 2, 3, 1).flatten(1) for part in (rated, scale.expand_as(rated))]
        return z_hat, (rows[0], rows[1]), None

    def bits(self, symbols: Tensor) -> Tensor:
        return GENERALIZED_GAUSSIAN.bits(symbols, self.scale)


FILTERS = (1, 3, 3, 3, 3, 1)
"""Widths of the factorised density's nets (Ballé et al., arXiv 1802.01436, appendix 6.1)."""
INITIAL_SPREAD = 10.0
"""Half the range the factorised density covers at first."""
TAIL = 1e-9
"""Mass outside the outer two quantiles."""


class FactorizedPrior(HyperPrior):
    """A learned monotone function per channel as cumulative density: the peers' prior of z.

    Source: Ballé et al., arXiv 1802.01436, appendix 6.1, as CompressAI's EntropyBottleneck has it.
    Logits l of a value v: l ← softplus(M_i)·l + b_i, then l ← l + tanh(f_i)·tanh(l) but after the
    last; the likelihood of v is sigmoid(l(v + ½)) − sigmoid(l(v − ½)). The middle one of three
    quantiles is the channel's median. The auxiliary loss trains the quantiles alone.
    """

    def __init__(self, channels: int, likelihood_bound: float = LIKELIHOOD_BOUND) -> None:
        super().__init__()
        self.likelihood_bound = likelihood_bound
        widths = list(pairwise(FILTERS))
        spread = INITIAL_SPREAD ** (1 / len(widths))
        # Not in lists: ZeRO-3 gathers a parameter for the forward of the module that holds it.
        for i, (inputs, outputs) in enumerate(widths):
            matrix = torch.full(
                (channels, outputs, inputs), math.log(math.expm1(1 / spread / outputs))
            )
            bias = torch.empty(channels, outputs, 1).uniform_(-0.5, 0.5)
            self.register_parameter(f"matrix{i}", nn.Parameter(matrix))
            self.register_parameter(f"bias{i}", nn.Parameter(bias))
            if i < len(widths) - 1:
                factor = torch.zeros(channels, outputs, 1)
                self.register_parameter(f"factor{i}", nn.Parameter(factor))
        start = torch.tensor([-INITIAL_SPREAD, 0.0, INITIAL_SPREAD])
        self.quantiles = nn.Parameter(start.repeat(channels, 1, 1))

    @property
    def auxiliary_parameters(self) -> tuple[nn.Parameter, ...]:
        return (self.quantiles,)

    @property
    def centre(self) -> Tensor:
        return self.quantiles[:, 0, 1].view(1, -1, 1, 1)

    def logits(self, values: Tensor, detached: bool = False) -> Tensor:
        """Logits of the cumulative density: (N, 1, n) values -> (N, 1, n).

        Args:
            detached: hold the density's own parameters; the gradient reaches `values` alone.
        """

        def held(name: str) -> Tensor:
            parameter = upcast_half(self.get_parameter(name))
            return parameter.detach() if detached else parameter

        layers = len(FILTERS) - 1
        for i in range(layers):
            values = F.softplus(held(f"matrix{i}")) @ values + held(f"bias{i}")
            if i < layers - 1:
                values = values + held(f"factor{i}").tanh() * values.tanh()
        return values

    def likelihood(self, values: Tensor) -> Tensor:
        """(N, 1, n) values -> (N, 1, n) likelihoods of the unit intervals around them."""
        lower, upper = self.logits(values - 0.5), self.logits(values + 0.5)
        # In the tail that is nearer: differences of values near 1 would lose the far symbols.
        side = torch.where(lower + upper > 0, -1.0, 1.0).to(lower.dtype).detach()
        return ((side * upper).sigmoid() - (side * lower).sigmoid()).abs()

    def auxiliary_loss(self) -> Tensor:
        """Σ |l(quantile) − (−t, 0, t)| over channels, t = log(2/1e-9 − 1); a scalar."""
        target = single(math.log(2 / TAIL - 1))
        quantiles = upcast_half(self.quantiles)
        targets = quantiles.new_tensor([-target, 0.0, target])
        return (self.logits(quantiles, detached=True) - targets).abs().sum()

    def forward(self, z: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        median = upcast_half(self.centre).detach()  # the main loss does not train the quantiles
        wide = upcast_half(z)
        z_hat = ste_round(wide - median) + median
        bits = self._bits_of(z_hat if noise is None else wide + noise)
        return z_hat.to(z.dtype), bits, self.auxiliary_loss()

    def bits(self, symbols: Tensor) -> Tensor:
        return self._bits_of(symbols + self.centre)

    def _bits_of(self, values: Tensor) -> Tensor:
        by_channel = values.transpose(0, 1)
        likelihood = self.likelihood(by_channel.reshape(len(by_channel), 1, -1))
        return _rate(likelihood.view(by_channel.shape).transpose(0, 1), self.likelihood_bound)
