"""Attention of every position to a learned dictionary: DCAE's context.

Source: arXiv 2504.00496. Shape letters: C channels inside, E entries of C numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.scaled_attention import ChannelScale, GatedNet
from hpcm_scale.models.linear import Linear

SCALES = 4
"""Maps of growing reach that a position's features are made of."""


class Dictionary(nn.Module):
    """Entries (E, C) that all slices read: its forward hands them out.

    As a copy: ZeRO-3 releases a parameter after the forward of its owner.
    """

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.randn(entries, channels))

    def forward(self) -> Tensor:
        return self.entries.clone()


class Widen(nn.Module):
    """1×1, GELU, depthwise 3×3, GELU, 1×1 of GELU(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_trans = Conv1x1(channels, channels)
        self.dw_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.out_trans = Conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.in_trans(F.gelu(x)))
        return self.out_trans(F.gelu(self.dw_conv(x)))


class MultiScaleFeatures(nn.Module):
    """Features of several reaches, gated by position: (B, C, H, W) stays.

    The gate is a sigmoid of a 7×7 convolution of the mean and the maximum over channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.start = Conv1x1(channels, channels)
        self.layers = nn.ModuleList(Widen(channels) for _ in range(SCALES - 1))
        self.proj = Conv1x1(SCALES * channels, channels)
        self.gate = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, v: Tensor) -> Tensor:
        found = [self.start(v)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        out = self.proj(torch.cat(found, dim=1))
        of_channels = [out.mean(1, keepdim=True), out.amax(1, keepdim=True)]
        return out * self.gate(torch.cat(of_channels, dim=1)).sigmoid()


class DictionaryAttention(nn.Module):
    """Attention of every position to the dictionary: (B, I, H, W) and (E, C) -> (B, O, H, W).

    Logits are q·k times a learned factor a head; the values are the normalised entries themselves.
    """

    def __init__(self, inputs: int, channels: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.x_trans = Linear(inputs, channels)
        self.ln_scale = nn.LayerNorm(channels)
        self.msa = MultiScaleFeatures(channels)
        self.res_scale_1 = ChannelScale(channels)
        self.lnx = nn.LayerNorm(channels)
        self.q_trans = Linear(channels, channels)
        self.dict_ln = nn.LayerNorm(channels)
        self.k = Linear(channels, channels)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.linear = Linear(channels, channels)
        self.res_scale_2 = ChannelScale(channels)
        self.ln_mlp = nn.LayerNorm(channels)
        self.mlp = GatedNet(channels)
        self.res_scale_3 = ChannelScale(channels)
        self.output_trans = Linear(channels, outputs)

    def forward(self, x: Tensor, dictionary: Tensor) -> Tensor:
        u = self.x_trans(x.permute(0, 2, 3, 1))
        refined = self.msa(self.ln_scale(u).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        u = refined + self.res_scale_1(u)
        values = self.dict_ln(dictionary)
        attended = self._attend(self.q_trans(self.lnx(u)), self.k(values), values)
        u = self.linear(attended) + self.res_scale_2(u)
        u = self.mlp(self.ln_mlp(u)) + self.res_scale_3(u)
        return self.output_trans(u).permute(0, 3, 1, 2)

    def _attend(self, q: Tensor, k: Tensor, values: Tensor) -> Tensor:
        """(B, H, W, C), (E, C) and (E, C) -> (B, H, W, C)."""
        by_head = [
            t.reshape(-1, self.heads, t.shape[-1] // self.heads).transpose(0, 1)
            for t in (q, k, values)
        ]
        logits = by_head[0] @ by_head[1].transpose(1, 2) * self.scale
        attended = logits.softmax(dim=-1) @ by_head[2]  # (heads, B·H·W, size)
        return attended.transpose(0, 1).reshape(q.shape)
