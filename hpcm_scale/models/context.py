"""The context model's nets: step adaptors, shared nets, and the progressive fusion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hpcm_scale.config import SharedNetConfig
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.residual import DWConvRB
from hpcm_scale.models.delayed_gradients import Delayable
from hpcm_scale.models.linear import GradientStore


class SharedNet(nn.Module):
    """The net that all steps of a scale share: (B, channels, h, w) -> ψ (B, 2M, h, w).

    Args:
        channels: the papers' 3M, or fewer.
    """

    def __init__(self, latent_channels: int, channels: int, config: SharedNetConfig) -> None:
        super().__init__()
        m = latent_channels
        self.before = nn.Sequential(*(DWConvRB(channels) for _ in range(config.before)))
        self.after = nn.Sequential(
            *(DWConvRB(channels) for _ in range(config.after)),
            Conv1x1(channels, 2 * m),
            *(DWConvRB(2 * m) for _ in range(config.out)),
        )

    def forward(self, x: Tensor, step_scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Args: step_scale: multiplies the channels of the net's middle."""
        return self.after(step_scale(self.before(x)))


class _StepScale(torch.autograd.Function):
    """x (B, C, h, w) times factors of its channels, whose gradient may be left to a store."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, store: GradientStore | None, key: int, _: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.store, ctx.key = store, key
        return x * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale = ctx.saved_tensors
        if ctx.store is None:
            return grad * scale, (grad * x).sum_to_size(scale.shape), None, None, None
        ctx.store.add(ctx.key, grad, x)
        return grad * scale, None, None, None, None


class ContextStep(nn.Module, Delayable):
    """One coding step: its adaptor and its scale on the shared net's middle.

    The shared net is passed in rather than held, so that it has one owner; it runs inside this
    forward, because ZeRO-3 gathers `scale` only for as long as its owner's forward lasts.
    """

    def __init__(self, latent_channels: int, channels: int, adaptor_depth: int) -> None:
        super().__init__()
        self.adaptor = (
            nn.Sequential(*(DWConvRB(channels) for _ in range(adaptor_depth)))
            if adaptor_depth
            else Conv1x1(3 * latent_channels, channels)
        )
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, context: Tensor, y_hat: Tensor, shared: SharedNet) -> Tensor:
        """ψ (B, 2M, h, w) from the context (B, 2M, h, w) and the latents so far (B, M, h, w)."""
        return shared(self.adaptor(torch.cat([context, y_hat], dim=1)), self._scaled)

    def _scaled(self, x: Tensor) -> Tensor:
        store = self.delayed and self.delayed.store
        return _StepScale.apply(x, self.scale, store, id(self.scale), store and store.token)


class _Attention(torch.autograd.Function):
    """out + softmax(factor · Q Kᵀ) V in the windows and heads of maps (B, C, h, w).

    In few operations: the maps are cut and put together as one. Written out: windows are too short
    for a fused kernel to gain anything, and FLOP counters see matrix products on every device.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, out: Tensor, heads: int, window: int
    ) -> Tensor:
        q, k, v = _windows(torch.cat([query, key, value]), heads, window).chunk(3)
        ctx.factor = (query.shape[1] // heads) ** -0.5
        weights = _scaled(q, k.transpose(1, 2), ctx.factor).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.heads, ctx.window = heads, window
        found = _at_places(torch.bmm(weights, v), out.shape, heads, window)
        rows = out.permute(0, 2, 3, 1)
        total = rows.reshape(found.shape) + found
        return total.reshape(rows.shape).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        grad = _windows(grads[0], ctx.heads, ctx.window)
        of_weights = torch.bmm(grad, v.transpose(1, 2))
        logits = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_maps = q.new_empty(3, *q.shape)
        _scaled(logits, k, ctx.factor, out=of_maps[0])
        _scaled(logits.transpose(1, 2), q, ctx.factor, out=of_maps[1])
        torch.bmm(weights.transpose(1, 2), grad, out=of_maps[2])
        b, c, h, w = grads[0].shape
        maps = _at_places(of_maps, torch.Size((3 * b, c, h, w)), ctx.heads, ctx.window)
        maps = maps.reshape(3 * b, h, w, c).permute(0, 3, 1, 2)
        return *maps.chunk(3), grads[0], None, None


def _scaled(a: Tensor, b: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """factor · a b, the factor within the product."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=factor, out=out)


def _windows(x: Tensor, heads: int, window: int) -> Tensor:
    """(B, C, h, w) -> (B·windows·heads, s·s, C/heads) for windows of side s."""
    b, c, h, w = x.shape
    s, d = window, c // heads
    x = x.permute(0, 2, 3, 1).reshape(b, h // s, s, w // s, s, heads, d)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, s * s, d)


def _at_places(x: Tensor, shape: torch.Size, heads: int, window: int) -> Tensor:
    """What `_windows` made of a map of that shape as (B, h/s, s, w/s, s, heads, C/heads): a view.

    Its axes are those of (B, h, w, C).
    """
    b, c, h, w = shape
    s, d = window, c // heads
    return x.view(b, h // s, w // s, heads, s, s, d).permute(0, 1, 4, 2, 5, 3, 6)


class WindowFusion(nn.Module):
    """Progressive context fusion: C <- Attn(Q = ψ, K = V = C) in windows + W_o ψ.

    All four projections are 1×1; heads are contiguous channels. Source: arXiv 2507.19125.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.query = Conv1x1(channels, channels)
        self.key = Conv1x1(channels, channels)
        self.value = Conv1x1(channels, channels)
        self.out = Conv1x1(channels, channels)

    def forward(self, psi: Tensor, context: Tensor) -> Tensor:
        """(B, 2M, h, w) twice -> (B, 2M, h, w); h and w multiples of the window."""
        maps = self.query(psi), self.key(context), self.value(context)
        return _Attention.apply(*maps, self.out(psi), self.heads, self.window)
