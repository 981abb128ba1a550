"""The layers HPCM is made of, on (B, C, H, W) tensors in channels_last memory.

1×1 convolutions and 2×2 resamplings run as matrix products over positions: in channels_last memory
the reshapes are views, and the products reach the speed of the machine's GEMM where its convolution
does not. Parameters keep the shapes of the convolutions they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01
"""Negative slope of every LeakyReLU (the published program's default)."""


class Conv1x1(nn.Conv2d):
    """1×1 convolution: (B, I, H, W) -> (B, O, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(
            0, 3, 1, 2
        )


class Down2x2(nn.Conv2d):
    """2×2 convolution of stride 2: (B, I, 2h, 2w) -> (B, O, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        blocks = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c)
        blocks = blocks.transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 4 * c)
        return F.linear(blocks, weight, self.bias).permute(0, 3, 1, 2)


class Up2x2(nn.ConvTranspose2d):
    """2×2 transposed convolution of stride 2: (B, I, h, w) -> (B, O, 2h, 2w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = self.weight.permute(2, 3, 1, 0).reshape(4 * self.out_channels, c)
        blocks = F.linear(x.permute(0, 2, 3, 1), weight, self.bias.repeat(4))
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


class PConvRB(nn.Module):
    """Residual block with a partial convolution: 3×3 on the first C/r channels, then a 1×1 pair.

    Source: arXiv 2507.19125; the partial convolution is FasterNet's (arXiv 2303.03667).
    """

    def __init__(self, channels: int, ratio: int, expansion: int) -> None:
        super().__init__()
        self.partial = nn.Conv2d(channels // ratio, channels // ratio, 3, padding=1)
        self.expand = Conv1x1(channels, expansion * channels)
        self.project = Conv1x1(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.partial.in_channels
        spatial = self.partial(x[:, :mixed])
        h = self.expand(torch.cat([spatial, x[:, mixed:]], dim=1))
        return x + self.project(F.leaky_relu(h, SLOPE, inplace=True))


class DWConvRB(nn.Module):
    """Residual block with a depthwise 3×3 convolution, then 1×1 C -> 2C -> C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.expand = Conv1x1(channels, 2 * channels)
        self.project = Conv1x1(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.expand(self.depthwise(x))
        return x + self.project(F.leaky_relu(h, SLOPE, inplace=True))
