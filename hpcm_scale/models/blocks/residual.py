"""The residual blocks of HPCM, on (B, C, H, W) tensors in channels_last memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.delayed_gradients import Delayable, Layer, depthwise_backward
from hpcm_scale.models.linear import (
    SLOPE,
    GradientStore,
    WeightGradient,
    convolution,
    linear_add,
    linear_leaky_relu,
    linear_nograd,
    use_convolution,
)

CPU_ROWS = (4096, 16384)
"""Fewest and most positions of a 1×1 pair that are handled at a time on a CPU."""
CPU_HIDDEN_BYTES = 3 << 20
"""Bytes of hidden channels, in float32, handled at a time: so many stay in its cache. Of 4096 to
32768 positions the fastest for 4 to 48 channels by this measure, on a core with 2 MiB."""


class _ResidualPair(torch.autograd.Function):
    """x + W₂·LeakyReLU(W₁·h + b₁) + b₂ over the positions of (B, C, H, W), some at a time.

    All at once, the hidden channels of a picture go to memory and back between every two
    operations, which on a CPU costs as much as the products themselves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        store: GradientStore | None,
        keys: tuple[int, int],
        _: Tensor | None,
    ) -> Tensor:
        ctx.store, ctx.keys = store, keys
        w1, w2 = w1.flatten(1), w2.flatten(1)
        h_rows, hidden, out = _rows(h), [], []
        many = _rows_at_once(h_rows, len(w1))
        for x_part, h_part in zip(_parts(_rows(x), many), _parts(h_rows, many), strict=True):
            t = linear_leaky_relu(h_part, w1, b1)
            out.append(linear_add(t, w2, b2, x_part))
            hidden.append(t)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(h_rows, w1, w2, *hidden)
        return _picture(_joined(out), x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        h, w1, w2, *hidden = ctx.saved_tensors
        rows, w1_t, w2_t = _rows(grad), w1.t(), w2.t()
        # The slope is positive, so the sign of the hidden result is that of what went in.
        through = torch.ops.aten.leaky_relu_backward
        if ctx.store is not None and len(hidden) == 1:
            inner = through(linear_nograd(rows, w2_t), hidden[0], SLOPE, True)
            ctx.store.add(ctx.keys[0], inner, h)
            ctx.store.add(ctx.keys[1], rows, hidden[0])
            of_input = _picture(linear_nograd(inner, w1_t), grad.shape)
            return grad, of_input, *(None,) * 7
        of_h, of_b1 = [], []
        of_w1, of_w2 = WeightGradient(w1), WeightGradient(w2)
        many = _rows_at_once(h, len(w1))
        for g, h_part, t in zip(_parts(rows, many), _parts(h, many), hidden, strict=True):
            inner = through(linear_nograd(g, w2_t), t, SLOPE, True)
            of_w2.add(g, t)
            of_w1.add(inner, h_part)
            of_b1.append(inner.sum(0))
            of_h.append(linear_nograd(inner, w1_t))
        return (
            grad,
            _picture(_joined(of_h), grad.shape),
            of_w1.total().view(*w1.shape, 1, 1),
            of_b1[0] if len(of_b1) == 1 else torch.stack(of_b1).sum(0),
            of_w2.total().view(*w2.shape, 1, 1),
            rows.sum(0),
            *(None,) * 3,
        )


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B·H·W, C), contiguous; no copy where memory is channels_last."""
    b, c, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.as_strided((b * height * width, c), (c, 1))
    # A single picture's rows may be a view that lies in memory by channels.
    return x.permute(0, 2, 3, 1).reshape(-1, c).contiguous()


def _picture(rows: Tensor, shape: torch.Size) -> Tensor:
    """The image of some rows: the inverse of `_rows`."""
    _, c, height, width = shape
    return rows.as_strided(shape, (height * width * c, 1, width * c, c))


def _parts(rows: Tensor, many: int) -> tuple[Tensor, ...]:
    """Rows (n, C), cut into what is handled at a time."""
    return (rows,) if len(rows) <= many else rows.split(many)


def _rows_at_once(rows: Tensor, hidden: int) -> int:
    """How many of `rows` are handled at a time, for so many hidden channels."""
    return cpu_rows(hidden) if rows.device.type == "cpu" else max(1, len(rows))


def cpu_rows(hidden: int) -> int:
    """Positions handled at a time on a CPU, for so many hidden channels."""
    fewest, most = CPU_ROWS
    return min(max(CPU_HIDDEN_BYTES // (4 * hidden), fewest), most)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class ResidualPair(nn.Module, Delayable):
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

    def layers(self) -> list[Layer]:
        w1, b1, w2, b2 = self.parameters()
        return [(w1, b1), (w2, b2)]

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """(B, C, H, W) twice -> (B, C, H, W)."""
        weights = self.expand_weight, self.expand_bias, self.project_weight, self.project_bias
        if use_convolution(h):
            t = F.leaky_relu_(convolution(h, *weights[:2]), SLOPE)
            return convolution(t, *weights[2:]).add_(x)
        store = self.delayed and self.delayed.store
        keys = id(self.expand_weight), id(self.project_weight)
        return _ResidualPair.apply(x, h, *weights, store, keys, store and store.token)


class _PartialConv(torch.autograd.Function):
    """A 3×3 convolution of the first channels and the others as they are, in two operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        mixed, kept = _cut(x, len(weight))
        return torch.cat([F.conv2d(mixed, weight, bias, padding=1), kept], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        of_mixed, of_kept = _cut(grad, len(weight))
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            *(of_mixed, x[:, : len(weight)], weight, [len(weight)]),
            *([1, 1], [1, 1], [1, 1], False, [0, 0], 1, list(ctx.needs_input_grad)),
        )
        if of_x is not None:
            of_x = torch.cat([of_x, of_kept], dim=1)
        return of_x, of_weight, of_bias


def _cut(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The first channels of x (B, C, H, W) and the others."""
    first, others = x.split([channels, x.shape[1] - channels], dim=1)
    return first, others


class PartialConv(nn.Conv2d):
    """3×3 convolution of the first channels: (B, C, H, W) stays, C at least its own channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _PartialConv.apply(x, self.weight, self.bias)


class PConvRB(nn.Module):
    """Residual block with a partial convolution: 3×3 on the first C/r channels, then a 1×1 pair.

    Source: arXiv 2507.19125; the partial convolution is FasterNet's (arXiv 2303.03667).
    """

    def __init__(self, channels: int, ratio: int, expansion: int) -> None:
        super().__init__()
        self.partial = PartialConv(channels // ratio)
        self.pair = ResidualPair(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x, self.partial(x))


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution 3×3 that leaves its weight gradient to a store, if there is one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        store: GradientStore | None,
        key: int,
        _: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.store, ctx.key = store, key
        return F.conv2d(x, weight, bias, padding=1, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        if ctx.store is None:
            return *depthwise_backward(grad, x, weight, ctx.needs_input_grad[:3]), None, None, None
        ctx.store.add(ctx.key, grad, x)
        of_x, _, _ = depthwise_backward(grad, x, weight, (True, False, False))
        return of_x, *(None,) * 5


class Depthwise3(nn.Conv2d, Delayable):
    """Depthwise 3×3 convolution: (B, C, H, W) stays."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.delayed is None or use_convolution(x):
            return super().forward(x)
        store = self.delayed.store
        own = store, id(self.weight), store and store.token
        return _Depthwise.apply(x, self.weight, self.bias, *own)


class DWConvRB(nn.Module):
    """Residual block with a depthwise 3×3 convolution, then 1×1 C -> 2C -> C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = Depthwise3(channels)
        self.pair = ResidualPair(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x, self.depthwise(x))
