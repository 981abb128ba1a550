"""The residual blocks of HPCM, on (B, C, H, W) tensors in channels_last memory."""

from typing import Any

import torch
from torch import Tensor, nn

from hpcm_scale.models.linear import (
    SLOPE,
    linear_add,
    linear_leaky_relu,
    linear_nograd,
    weight_gradient,
)

CPU_ROWS = 2048
"""Positions of a 1×1 pair handled at a time on a CPU: their hidden channels stay in its cache."""


class _ResidualPair(torch.autograd.Function):
    """x + W₂·LeakyReLU(W₁·h + b₁) + b₂ over rows of positions, some rows at a time.

    All at once, the hidden channels of a picture go to memory and back between every two
    operations, which on a CPU costs as much as the products themselves.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> Tensor:
        out, hidden = torch.empty_like(x), []
        keep = any(ctx.needs_input_grad)
        for part in _parts(x):
            t = linear_leaky_relu(h[part], w1.flatten(1), b1)
            out[part] = linear_add(t, w2.flatten(1), b2, x[part])
            if keep:
                hidden.append(t)
        if keep:
            ctx.save_for_backward(h, w1, w2, *hidden)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (grad,) = grads
        h, w1, w2, *hidden = ctx.saved_tensors
        grad = grad.contiguous()
        grad_h, grad_b1 = torch.empty_like(h), h.new_zeros(len(w1))
        grad_w1, grad_w2 = torch.zeros_like(w1.flatten(1)), torch.zeros_like(w2.flatten(1))
        for part, t in zip(_parts(h), hidden, strict=True):
            g = grad[part]
            grad_w2 += weight_gradient(g, t)
            # The slope is positive, so the sign of the result is that of what went in.
            through = torch.ops.aten.leaky_relu_backward(
                linear_nograd(g, w2.flatten(1).t()), t, SLOPE, True
            )
            grad_w1 += weight_gradient(through, h[part])
            grad_b1 += through.sum(0)
            grad_h[part] = linear_nograd(through, w1.flatten(1).t())
        return grad, grad_h, grad_w1.view_as(w1), grad_b1, grad_w2.view_as(w2), grad.sum(0)


def _rows(x: Tensor) -> int:
    """Positions handled at a time."""
    return CPU_ROWS if x.device.type == "cpu" else max(1, len(x))


def _parts(x: Tensor) -> list[slice]:
    """The positions of x (n, C), cut into what is handled at a time."""
    rows = _rows(x)
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


class ResidualPair(nn.Module):
    """x + a pair of 1×1 convolutions C -> mC -> C of h, with LeakyReLU between them.

    Owns both convolutions' parameters itself, because it uses them in one operation and ZeRO-3
    gathers a parameter for the forward of its owner.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        first, second = (
            nn.Conv2d(channels, expansion * channels, 1),
            nn.Conv2d(expansion * channels, channels, 1),
        )
        self.expand_weight, self.expand_bias = first.weight, first.bias
        self.project_weight, self.project_bias = second.weight, second.bias

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """(B, C, H, W) twice -> (B, C, H, W)."""
        b, c, height, width = x.shape
        # A single picture's rows may be a view that lies in memory by channels.
        rows = _ResidualPair.apply(
            x.permute(0, 2, 3, 1).reshape(-1, c).contiguous(),
            h.permute(0, 2, 3, 1).reshape(-1, c).contiguous(),
            self.expand_weight,
            self.expand_bias,
            self.project_weight,
            self.project_bias,
        )
        return rows.view(b, height, width, c).permute(0, 3, 1, 2)


class PConvRB(nn.Module):
    """Residual block with a partial convolution: 3×3 on the first C/r channels, then a 1×1 pair.

    Source: arXiv 2507.19125; the partial convolution is FasterNet's (arXiv 2303.03667).
    """

    def __init__(self, channels: int, ratio: int, expansion: int) -> None:
        super().__init__()
        self.partial = nn.Conv2d(channels // ratio, channels // ratio, 3, padding=1)
        self.pair = ResidualPair(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.partial.in_channels
        spatial = self.partial(x[:, :mixed])
        return self.pair(x, torch.cat([spatial, x[:, mixed:]], dim=1))


class DWConvRB(nn.Module):
    """Residual block with a depthwise 3×3 convolution, then 1×1 C -> 2C -> C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pair = ResidualPair(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x, self.depthwise(x))
