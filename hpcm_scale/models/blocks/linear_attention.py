"""Attention of linear cost: keys and queries are normalised apart, so that no map is formed.

Source: Shen et al., arXiv 1812.01243, as MLIC++ (arXiv 2307.15421) uses it. Shape letters: C
channels in heads of d, n positions.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.slices import place_parity, take_parity


def linear_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Σ_c softmax(q)_c · Σ_n softmax(k)_cn · v_n of each head.

    Args:
        q: (B, C, n_q); the softmax is over the channels of a head.
        k, v: (B, C, n_k); the softmax of k is over all positions.
        heads: of C / heads contiguous channels each.

    Returns:
        (B, C, n_q).
    """
    b, c, _ = q.shape
    q, k, v = (x.reshape(b, heads, c // heads, -1) for x in (q, k, v))
    summary = k.softmax(dim=3) @ v.transpose(2, 3)  # (B, heads, d, d)
    return (summary.transpose(2, 3) @ q.softmax(dim=2)).reshape(b, c, -1)


def depthwise3(channels: int) -> nn.Conv2d:
    """Depthwise 3×3 convolution with a border of zeros."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def _projection(channels: int) -> nn.Sequential:
    return nn.Sequential(Conv1x1(channels, channels), depthwise3(channels))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        Conv1x1(inputs, hidden),
        nn.GELU(),
        depthwise3(hidden),
        nn.GELU(),
        Conv1x1(hidden, outputs),
    )


class GlobalContext(nn.Module):
    """Context from the slices coded before a slice: all their positions inform each of its own.

    (B, i·u, H, W) -> (B, 2u, H, W), in i heads, for slices of u channels.
    """

    def __init__(self, unit: int, slices: int) -> None:
        super().__init__()
        channels = unit * slices
        self.heads = slices
        self.queries = _projection(channels)
        self.keys = _projection(channels)
        self.values = _projection(channels)
        self.reprojection = nn.Conv2d(channels, 3 * unit, 5, padding=2)
        self.mlp = _mlp(3 * unit, 4 * unit, 2 * unit)
        self.skip = Conv1x1(3 * unit, 2 * unit)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (net(x).flatten(2) for net in (self.queries, self.keys, self.values))
        attended = linear_attention(q, k, v, self.heads).view(x.shape)
        r = self.reprojection(attended.contiguous(memory_format=torch.channels_last))
        return self.skip(r) + self.mlp(r)


class CheckerboardGlobalContext(nn.Module):
    """Context from a slice's anchors to its other positions, by the likeness of the slice before.

    The slice before and the anchors, both (B, u, H, W) -> (B, 2u, H, W), in two heads.

    Args:
        anchors: parity of row + column of the anchors.
    """

    def __init__(self, unit: int, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.queries = _projection(unit)
        self.keys = _projection(unit)
        self.values = _projection(unit)
        self.reprojection = nn.Conv2d(unit, 2 * unit, 5, padding=2)
        self.mlp = _mlp(2 * unit, 4 * unit, 2 * unit)

    def forward(self, before: Tensor, anchors: Tensor) -> Tensor:
        others = 1 - self.anchors

        def seen(net: nn.Module, x: Tensor, parity: int) -> Tensor:
            return take_parity(net(x), parity).flatten(2)

        def only(parity: int) -> Tensor:
            return place_parity(take_parity(before, parity), parity)

        attended = linear_attention(
            seen(self.queries, only(others), others),
            seen(self.keys, only(self.anchors), self.anchors),
            seen(self.values, anchors, self.anchors),
            heads=2,
        )
        b, c, h, w = before.shape
        r = self.reprojection(place_parity(attended.view(b, c, h, w // 2), others))
        return r + self.mlp(r)
