"""The residual blocks of 3×3 convolutions and GDN that several peers' transforms are made of.

Source: Cheng et al., arXiv 2001.01568, as CompressAI has them. The activation is given: GELU in
MLIC++ (arXiv 2307.15421), LeakyReLU in TCM (arXiv 2303.14978), FLIC and WeConvene.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.blocks.gdn import GDN
from hpcm_scale.models.blocks.resampling import Conv1x1, StridedConv1x1

Activation = Callable[[Tensor], Tensor]


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution with a border of zeros."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """Convolution of stride 2 with an odd kernel, which halves the sides."""
    return nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2)


def deconv(inputs: int, outputs: int, kernel: int) -> nn.ConvTranspose2d:
    """Transposed convolution of stride 2 with an odd kernel, which doubles the sides."""
    return nn.ConvTranspose2d(
        inputs, outputs, kernel, stride=2, padding=kernel // 2, output_padding=1
    )


class ResidualDown(nn.Module):
    """Halve the sides: (B, A, 2h, 2w) -> (B, C, h, w)."""

    def __init__(self, inputs: int, outputs: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = conv3(inputs, outputs, stride=2)
        self.conv2 = conv3(outputs, outputs)
        self.gdn = GDN(outputs)
        self.skip = StridedConv1x1(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.gdn(self.conv2(self.activation(self.conv1(x)))) + self.skip(x)


class SubpixelConv(nn.Conv2d):
    """Convolution to 4C channels, each four of which are a 2×2 block of one channel.

    (B, A, h, w) -> (B, C, 2h, 2w); channel 4c + 2r + k of the convolution goes to row r, column k
    of channel c.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(inputs, 4 * outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.pixel_shuffle(super().forward(x), 2)


class ResidualUp(nn.Module):
    """Double the sides: (B, A, h, w) -> (B, C, 2h, 2w)."""

    def __init__(self, inputs: int, outputs: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.subpel_conv = SubpixelConv(inputs, outputs)
        self.conv = conv3(outputs, outputs)
        self.igdn = GDN(outputs, inverse=True)
        self.upsample = SubpixelConv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.igdn(self.conv(self.activation(self.subpel_conv(x))))
        return y + self.upsample(x)


class ResidualBlock(nn.Module):
    """x + f(x), f = conv 3, activation, conv 3, activation: (B, A, h, w) -> (B, C, h, w).

    Where A and C differ, a 1×1 convolution of x takes its place in the sum.
    """

    def __init__(self, inputs: int, outputs: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = conv3(inputs, outputs)
        self.conv2 = conv3(outputs, outputs)
        self.skip = Conv1x1(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.conv2(self.activation(self.conv1(x))))
        return y + self.skip(x)
