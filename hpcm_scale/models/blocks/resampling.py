"""1×1 convolutions and resamplings, on (B, C, H, W) tensors in channels_last memory.

1×1 convolutions and 2×2 resamplings run as matrix products over positions: in channels_last memory
the reshapes are views, and products are faster than convolutions. Parameters keep the shapes of
the convolutions they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hpcm_scale.models.delayed_gradients import Delayable
from hpcm_scale.models.linear import convolution, linear, use_convolution, use_onednn


class Conv1x1(nn.Conv2d, Delayable):
    """1×1 convolution: (B, I, H, W) -> (B, O, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if use_convolution(x):
            return convolution(x, self.weight, self.bias)
        rows, weight = x.permute(0, 2, 3, 1), self.weight.flatten(1)
        if self.delayed is None:
            return linear(rows, weight, self.bias).permute(0, 3, 1, 2)
        own = self.delayed.store, id(self.weight), True
        return linear(rows, weight, self.bias, *own).permute(0, 3, 1, 2)


class StridedConv1x1(Conv1x1):
    """1×1 convolution of every other row and column: (B, I, 2h, 2w) -> (B, O, h, w).

    Not only faster as a product: torch 2.13's own backward pass of stride 2 in channels_last memory
    on a CPU writes past its memory where channels are no multiple of 16.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x[..., ::2, ::2])


def as_it_lies(weight: Tensor, x: Tensor) -> bool:
    """Whether a training step on x takes the kernel's places after the channels, as contiguous
    weights have them: on accelerators, where a copy of the weights is a launch there and back."""
    return torch.is_grad_enabled() and weight.is_contiguous() and not use_onednn(x)


class Down2x2(nn.Conv2d):
    """2×2 convolution of stride 2: (B, I, 2h, 2w) -> (B, O, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        b, c, h, w = x.shape
        blocks = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c)
        if as_it_lies(self.weight, x):
            rows = blocks.permute(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)
            return linear(rows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        blocks = blocks.transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 4 * c)
        return linear(blocks, weight, self.bias).permute(0, 3, 1, 2)


class _Spread(torch.autograd.Function):
    """2×2 blocks (B, h, w, C, 2, 2) side by side, plus a bias (C,): (B, C, 2h, 2w)."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, bias: Tensor) -> Tensor:
        b, h, w, c, _, _ = blocks.shape
        out = blocks.new_empty(b, h, 2, w, 2, c)
        torch.add(blocks.permute(0, 1, 4, 2, 5, 3), bias, out=out)
        return out.view(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        b, c, h, w = grad.shape
        rows = grad.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c)
        return rows.permute(0, 1, 3, 5, 2, 4).contiguous(), rows.sum((0, 1, 2, 3, 4))


class Up2x2(nn.ConvTranspose2d):
    """2×2 transposed convolution of stride 2: (B, I, h, w) -> (B, O, 2h, 2w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        b, c, h, w = x.shape
        if as_it_lies(self.weight, x):
            rows = linear(x.permute(0, 2, 3, 1), self.weight.flatten(1).t(), None)
            return _Spread.apply(rows.view(b, h, w, -1, 2, 2), self.bias)
        weight = self.weight.permute(2, 3, 1, 0).reshape(4 * self.out_channels, c)
        assert self.bias is not None  # the class is made with one
        blocks = linear(x.permute(0, 2, 3, 1), weight, self.bias.repeat(4))
        blocks = blocks.view(b, h, w, 2, 2, self.out_channels).transpose(2, 3)
        return blocks.reshape(b, 2 * h, 2 * w, self.out_channels).permute(0, 3, 1, 2)


def down(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """Halve the sides with a 2×2 convolution, or a 4×4 one with padding 1."""
    if kernel == 2:
        return Down2x2(inputs, outputs)
    return nn.Conv2d(inputs, outputs, kernel, stride=2, padding=1)


def up(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """Double the sides with a 2×2 transposed convolution, or a 4×4 one with padding 1."""
    if kernel == 2:
        return Up2x2(inputs, outputs)
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=1)
