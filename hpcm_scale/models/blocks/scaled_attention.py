"""DCAE's attention layers: their skips are scaled channel by channel, their nets gated.

Source: arXiv 2504.00496. Maps are (B, C, H, W); inside, layers work on positions, (B, H, W, C).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.blocks.sampling import conv3
from hpcm_scale.models.blocks.window_attention import WindowAttention
from hpcm_scale.models.linear import Linear


class ChannelScale(nn.Module):
    """A learned factor for each channel: (..., C) stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, t: Tensor) -> Tensor:
        return t * self.scale


class GatedNet(nn.Module):
    """Linear of GELU(depthwise 3×3 of a)·v, [a | v] a Linear C -> 4C: (B, H, W, C) stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, 4 * channels)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.fc2 = Linear(2 * channels, channels)

    def forward(self, t: Tensor) -> Tensor:
        a, v = self.fc1(t).chunk(2, dim=-1)
        a = self.depthwise(a.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(a) * v)


class ScaledLayer(nn.Module):
    """r₁·t + attention(LN(t)), then r₂·t + net(LN(t)): (B, C, H, W) stays."""

    def __init__(self, channels: int, heads: int, side: int, shifted: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.msa = WindowAttention(channels, heads, side, shifted)
        self.ln2 = nn.LayerNorm(channels)
        self.mlp = GatedNet(channels)
        self.res_scale_1 = ChannelScale(channels)
        self.res_scale_2 = ChannelScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        t = x.permute(0, 2, 3, 1)
        t = self.res_scale_1(t) + self.msa(self.ln1(t))
        t = self.res_scale_2(t) + self.mlp(self.ln2(t))
        return t.permute(0, 3, 1, 2)


class AttentionStage(nn.Module):
    """x + 3×3 of some layers of x, plain and shifted in turn: (B, C, H, W) stays."""

    def __init__(self, channels: int, heads: int, side: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ScaledLayer(channels, heads, side, shifted=bool(j % 2)) for j in range(depth)
        )
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        t = x
        for layer in self.layers:
            t = layer(t)
        return x + self.conv(t)
