"""The blocks of LALIC: linear attention by WKV and gated pointwise nets.

Source: arXiv 2502.05741. Maps are (B, C, H, W) in channels_last memory; inside, layers work on
their positions, (B, H, W, C), row by row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.wkv import wkv
from hpcm_scale.models.linear import Linear


class OmniShift(nn.Module):
    """α₀·v + α₁·d₁(v) + α₂·d₃(v) + α₃·d₅(v), d_k depthwise k×k: the shape (B, H, W, C) stays.

    Runs as the one depthwise 5×5 convolution that it is. Holds the kernels itself, because ZeRO-3
    gathers a parameter for the forward of its owner.
    """

    SIDE = 5
    """Side of the convolution it amounts to."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.alpha = nn.Parameter(torch.randn(4))
        self.kernel1, self.kernel3, self.kernel5 = (
            nn.Conv2d(channels, channels, side, groups=channels, bias=False).weight
            for side in (1, 3, self.SIDE)
        )

    def forward(self, v: Tensor) -> Tensor:
        a0, a1, a2, a3 = self.alpha
        kernel = a3 * self.kernel5 + F.pad(a2 * self.kernel3, (1,) * 4)
        kernel = kernel + F.pad(a1 * self.kernel1 + a0, (2,) * 4)
        v = v.permute(0, 3, 1, 2)
        return F.conv2d(v, kernel, padding=2, groups=self.channels).permute(0, 2, 3, 1)


class SpatialMix(nn.Module):
    """Linear attention over all positions of a map: the shape (B, H, W, C) stays."""

    def __init__(self, channels: int, published: bool) -> None:
        super().__init__()
        self.published = published
        self.decay = nn.Parameter(torch.randn(channels))
        self.boost = nn.Parameter(torch.randn(channels))
        self.omni_shift = OmniShift(channels)
        self.key = Linear(channels, channels, bias=False)
        self.value = Linear(channels, channels, bias=False)
        self.receptance = Linear(channels, channels, bias=False)
        self.output = Linear(channels, channels, bias=False)

    def forward(self, v: Tensor) -> Tensor:
        s = self.omni_shift(v)
        keys, values = self.key(s).flatten(1, 2), self.value(s).flatten(1, 2)
        mean = wkv(keys, values, self.decay, self.boost, self.published).view(v.shape)
        return self.output(self.receptance(s).sigmoid() * mean)


class ChannelMix(nn.Module):
    """A gated net with squared ReLU over mC hidden channels: the shape (B, H, W, C) stays."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.omni_shift = OmniShift(channels)
        self.key = Linear(channels, expansion * channels, bias=False)
        self.receptance = Linear(channels, channels, bias=False)
        self.value = Linear(expansion * channels, channels, bias=False)

    def forward(self, v: Tensor) -> Tensor:
        s = self.omni_shift(v)
        return self.receptance(s).sigmoid() * self.value(self.key(s).relu().square())


class RwkvBlock(nn.Module):
    """Spatial, then channel mixing, each a scaled residual: the shape (B, C, H, W) stays.

    Args:
        expansion: m, hidden channels of the channel mixing over C.
        published: whether WKV is the released kernel's; else the formula's.
    """

    def __init__(self, channels: int, expansion: int, published: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.att = SpatialMix(channels, published)
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.ln2 = nn.LayerNorm(channels)
        self.ffn = ChannelMix(channels, expansion)
        self.gamma2 = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.gamma1 * self.att(self.ln1(x))
        x = x + self.gamma2 * self.ffn(self.ln2(x))
        return x.permute(0, 3, 1, 2)


class Gate(nn.Module):
    """A 1×1 convolution A->C, then a gated residual net: (B, A, H, W) -> (B, C, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = Conv1x1(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        self.key = Linear(outputs, 2 * outputs, bias=False)
        self.value = Linear(2 * outputs, outputs, bias=False)
        self.receptance = Linear(outputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x).permute(0, 2, 3, 1)
        n = self.norm(h)
        h = h + self.receptance(n).sigmoid() * self.value(self.key(n).relu().square())
        return h.permute(0, 3, 1, 2)
