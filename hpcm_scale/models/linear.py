"""Matrix products over rows of positions, by the fastest means the device has.

On CPUs torch's own products go to MKL, which leaves processors that are not Intel's at half their
speed; the products of oneDNN, which torch uses for convolutions, reach all of it, and add bias,
LeakyReLU and residual on the way.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from hpcm_scale.models.torch_internals import (
    HAS_LINEAR_POINTWISE,
    has_native_bf16,
    linear_add_pointwise,
    linear_pointwise,
)

SLOPE = 0.01
"""Negative slope of every LeakyReLU (the published program's default)."""

WGRAD_MIN_CHANNELS, WGRAD_MIN_PRODUCTS = 12, 1 << 22
"""Channels and multiplications from which on oneDNN's weight gradients are faster than BLAS's in
float32, measured."""


def use_onednn(x: Tensor) -> bool:
    """Whether products of x are oneDNN's fused ones."""
    # torch.compile takes the operators for its own, with weights packed before.
    if not HAS_LINEAR_POINTWISE or torch.compiler.is_compiling():
        return False
    if x.device.type != "cpu" or x.numel() == 0:
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and has_native_bf16())


CONVOLUTION_POSITIONS = 4096
"""Positions up to which a training step's 1×1 convolutions on a CPU are torch's own: one operation
a way where a product over rows takes a dozen, two or three times as fast for few channels. Of more
positions, products over some at a time are as fast."""
CONVOLUTION_PRODUCTS = 5 << 19
"""Multiplications from which on oneDNN's 1×1 convolutions are faster than the BLAS product that
torch takes for them on one thread, measured."""


def use_convolution(x: Tensor) -> bool:
    """Whether 1×1 convolutions of x (B, C, H, W) are `convolution`: in passes that learn.

    Coding keeps its products over rows, whose last bits are others for many channels.
    """
    few = x.numel() <= CONVOLUTION_POSITIONS * x.shape[1]
    return few and torch.is_grad_enabled() and use_onednn(x)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution of x (B, I, H, W) by weight (O, I, 1, 1), with its gradient."""
    # On one thread torch gives oneDNN those that are dilated, forward and backward. A kernel of one
    # position stays what it is.
    is_large = x.numel() * len(weight) >= CONVOLUTION_PRODUCTS
    return F.conv2d(x, weight, bias, dilation=2 if is_large else 1)


def linear_nograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b of rows x (n, I), weight (O, I) and bias (O,); no gradient."""
    if use_onednn(x):
        return linear_pointwise(x, weight, bias, "none", [])
    return F.linear(x, weight, bias)


def linear_leaky_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LeakyReLU(x Wᵀ + b); no gradient."""
    if use_onednn(x):
        return linear_pointwise(x, weight, bias, "leaky_relu", [SLOPE])
    return F.leaky_relu_(F.linear(x, weight, bias), SLOPE)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """residual + x Wᵀ + b, residual (n, O); no gradient."""
    if use_onednn(x):
        return linear_add_pointwise(x, residual, weight, bias)
    # In place: out of place, an accelerator first copies what is added to.
    # FLOP counters do not know addmm_.
    total = residual + bias
    return torch.addmm(total, x, weight.t(), out=total)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x (O, I) of grad (n, O) and x (n, I), both contiguous; no gradient.

    For others oneDNN has only its reference loops, a hundred times slower. The result may be a view
    that lies by columns.
    """
    if grad.shape[1] > x.shape[1] and x.device.type == "cpu":
        return weight_gradient(x, grad).t()  # up to five times as fast
    if _repays_onednn(grad, x):
        return linear_pointwise(grad.t(), x.t(), None, "none", [])
    return grad.t() @ x


def _repays_onednn(grad: Tensor, x: Tensor) -> bool:
    """Whether oneDNN multiplies gradᵀ x, of grad (n, O) and x (n, I), faster than BLAS."""
    # It first copies both to turn them over.
    is_large = grad.numel() * x.shape[1] >= WGRAD_MIN_PRODUCTS
    is_large = is_large and min(grad.shape[1], x.shape[1]) >= WGRAD_MIN_CHANNELS
    return is_large and x.dtype == torch.float32 and use_onednn(x)


class WeightGradient:
    """Σ gradᵀ x (O, I) over parts of the rows of a product by `weight` (O, I); no gradient."""

    def __init__(self, weight: Tensor) -> None:
        self.dtype = weight.dtype
        self.sum: Tensor | None = None

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Take in rows: grad (n, O) and x (n, I), both contiguous."""
        if self.sum is None:
            self.sum = weight_gradient(grad, x)
        elif self.sum.dtype == x.dtype == torch.float32 and not _repays_onednn(grad, x):
            self.sum.addmm_(grad.t(), x)
        else:
            # Sums over many parts: half precision would lose the later ones.
            wide = self.sum.to(torch.promote_types(self.dtype, torch.float32))
            self.sum = wide.add_(weight_gradient(grad, x))

    def total(self) -> Tensor:
        """The sum, in the weight's precision."""
        assert self.sum is not None
        return self.sum.to(self.dtype)


class GradientStore(Protocol):
    """Takes what weight gradients are products of: `delayed_gradients.WeightGradientStore`."""

    token: Tensor

    def add(self, weight: int, grad: Tensor, x: Tensor) -> None: ...


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        store: GradientStore | None,
        key: int,
        _: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.store, ctx.key = store, key
        return linear_nograd(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        of_x = linear_nograd(grad, weight.t())
        if ctx.store is not None:
            ctx.store.add(ctx.key, grad, x)
            return of_x, None, None, None, None, None
        of_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, weight_gradient(grad, x), of_bias, None, None, None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    store: GradientStore | None = None,
    key: int = 0,
    own: bool = False,
) -> Tensor:
    """F.linear over the last dimension of x (..., I), with its gradient.

    Args:
        store: given the gradients of weight and bias, as those of the layer `key`.
        own: whether what is saved for the backward pass is the same with a store and without.
    """
    if not (own or use_onednn(x)):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = _Linear.apply(rows, weight, bias, store, key, store and store.token)
    return out.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """nn.Linear by `linear`: (..., I) -> (..., O)."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return linear(x, self.weight, self.bias)


if HAS_LINEAR_POINTWISE:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
        return 2 * x.numel() * out_shape[-1]
