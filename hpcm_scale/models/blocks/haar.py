"""Haar's wavelet of 2×2 blocks, and resamplings that convolve its bands.

Source: WeConvene (arXiv 2407.09983). Bands are half the sides each, in the order low, differences
between rows, differences between columns, differences of both; all channels of one, then the next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.blocks.gdn import GDN
from hpcm_scale.models.blocks.resampling import StridedConv1x1
from hpcm_scale.models.blocks.sampling import SubpixelConv, conv3
from hpcm_scale.models.density import single

HALF = 0.5
"""The orthonormal factor of a 2×2 block."""
PUBLISHED_HALF = single(single(2**-0.5) ** 2)
"""Value in the published program's stored filters instead: a product in single precision."""


def haar(x: Tensor, factor: float = HALF) -> Tensor:
    """(B, C, 2h, 2w) -> (B, 4C, h, w)."""
    b, ch, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, ch)
    top, bottom = blocks.unbind(2)
    (a, b_), (c, d) = top.unbind(3), bottom.unbind(3)
    bands = [a + b_ + c + d, a + b_ - c - d, a - b_ + c - d, a - b_ - c + d]
    return (factor * torch.cat(bands, dim=-1)).permute(0, 3, 1, 2)


def inverse_haar(x: Tensor, factor: float = HALF) -> Tensor:
    """(B, 4C, h, w) -> (B, C, 2h, 2w)."""
    b, channels, h, w = x.shape
    low, rows, columns, both = (factor * x.permute(0, 2, 3, 1)).chunk(4, dim=-1)
    top = torch.stack([low + rows + columns + both, low + rows - columns - both], dim=3)
    bottom = torch.stack([low - rows + columns - both, low - rows - columns + both], dim=3)
    blocks = torch.stack([top, bottom], dim=2)  # (B, h, 2, w, 2, C)
    return blocks.reshape(b, 2 * h, 2 * w, channels // 4).permute(0, 3, 1, 2)


class Haar(nn.Module):
    """`haar` or `inverse_haar` as a layer."""

    def __init__(self, factor: float, inverse: bool = False) -> None:
        super().__init__()
        self.factor, self.inverse = factor, inverse

    def forward(self, x: Tensor) -> Tensor:
        return (inverse_haar if self.inverse else haar)(x, self.factor)


class WaveletConv(nn.Module):
    """Convolutions and (inverse) GDN of the low band and of the other three: (B, C, H, W) stays."""

    def __init__(self, channels: int, factor: float, inverse: bool) -> None:
        super().__init__()
        self.factor = factor
        self.low_freq_conv = conv3(channels, channels)
        self.gdn_low = GDN(channels, inverse)
        self.high_freq_conv = conv3(3 * channels, 3 * channels)
        self.gdn_high = GDN(3 * channels, inverse)

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        low, high = haar(x, self.factor).split((c, 3 * c), dim=1)
        low = self.gdn_low(self.low_freq_conv(low))
        high = self.gdn_high(self.high_freq_conv(high))
        return inverse_haar(torch.cat([low, high], dim=1), self.factor)


class WaveletDown(nn.Module):
    """Halve the sides: (B, A, 2h, 2w) -> (B, C, h, w)."""

    def __init__(self, inputs: int, outputs: int, factor: float) -> None:
        super().__init__()
        self.conv1 = conv3(inputs, outputs, stride=2)
        self.bands = WaveletConv(outputs, factor, inverse=False)
        self.skip = StridedConv1x1(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bands(F.leaky_relu(self.conv1(x))) + self.skip(x)


class WaveletUp(nn.Module):
    """Double the sides: (B, A, h, w) -> (B, C, 2h, 2w)."""

    def __init__(self, inputs: int, outputs: int, factor: float) -> None:
        super().__init__()
        self.subpel_conv = SubpixelConv(inputs, outputs)
        self.bands = WaveletConv(outputs, factor, inverse=True)
        self.upsample = SubpixelConv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bands(F.leaky_relu(self.subpel_conv(x))) + self.upsample(x)
