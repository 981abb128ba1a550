"""A transformer over slices of channels, of which each sees those before: FLIC's T-CA.

Source: arXiv 2310.16387. Every layer is stated over all slices at once and runs on one: what a
slice gives depends on earlier ones only through their keys and values, which are kept. Parameters
stay whole, as published; a slice takes its rows of them.

Shape letters: B images, n windows of p positions, C channels of one slice, of which channel
d·heads + head is dimension d of its head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.linear import linear

WINDOW = 8
"""Side of the windows that channels are compared in, in latents."""
EPSILON = 1e-5


def to_windows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, n, 64, C): windows row by row, the positions of each row by row."""
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
    return rows.transpose(2, 3).reshape(b, -1, WINDOW**2, c)


def from_windows(x: Tensor, width: int) -> Tensor:
    """The inverse of `to_windows`, for maps of `width` columns."""
    b, _, _, c = x.shape
    rows = x.view(b, -1, width // WINDOW, WINDOW, WINDOW, c).transpose(2, 3)
    return rows.reshape(b, -1, width, c).permute(0, 3, 1, 2)


class SliceConv(nn.Conv2d):
    """A convolution 3×3 in groups, of which a slice runs its own.

    Args:
        slices: equal parts of inputs and outputs.
        depthwise: whether every channel of a slice is a group.
    """

    def __init__(self, inputs: int, outputs: int, slices: int, depthwise: bool = False) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=inputs if depthwise else slices)
        self.slices = slices

    def forward(self, x: Tensor, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, I/slices, H, W) -> (B, O/slices, H, W) by slice `index`."""
        assert self.bias is not None  # the class is made with one
        weight, bias = self.weight.chunk(self.slices)[index], self.bias.chunk(self.slices)[index]
        return F.conv2d(x, weight, bias, padding=1, groups=self.groups // self.slices)


class SliceLinear(nn.Linear):
    """A matrix for each slice, as a 1×1 convolution in groups has it."""

    def __init__(self, inputs: int, outputs: int, slices: int) -> None:
        super().__init__(inputs // slices, outputs)
        self.slices = slices

    def forward(self, x: Tensor, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(..., I/slices) -> (..., O/slices) by slice `index`."""
        weight, bias = (x.chunk(self.slices)[index] for x in (self.weight, self.bias))
        return linear(x, weight, bias)


class SliceNorm(nn.Module):
    """Normalise a slice over all that is given of it, with gain and offset per channel."""

    def __init__(self, channels: int, slices: int) -> None:
        super().__init__()
        self.slices = slices
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, index: int, dims: int) -> Tensor:
        """(..., C): over the last `dims` dimensions, by the gains of slice `index`."""
        weight, bias = (x.chunk(self.slices)[index] for x in (self.weight, self.bias))
        return F.layer_norm(x, x.shape[-dims:], eps=EPSILON) * weight + bias


class ChannelProjection(nn.Module):
    """Queries, keys and values of a slice, every window by itself.

    (B, n, p, C) -> (3, B, n, heads, C/heads, p).
    """

    def __init__(self, channels: int, slices: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = SliceNorm(channels, slices)
        self.position = SliceConv(channels, channels, slices, depthwise=True)
        self.position_norm = SliceNorm(channels, slices)
        self.query = SliceLinear(channels, channels, slices)
        self.key = SliceLinear(channels, channels, slices)
        self.value = SliceLinear(channels, channels, slices)

    def forward(self, u: Tensor, index: int) -> Tensor:
        m = self.norm(u, index, dims=2)
        windows = m.view(-1, WINDOW, WINDOW, m.shape[-1]).permute(0, 3, 1, 2)
        places = self.position(windows, index).permute(0, 2, 3, 1).reshape(m.shape)
        m = m + F.gelu(self.position_norm(places, index, dims=2))
        found = torch.stack([net(m, index) for net in (self.query, self.key, self.value)])
        return found.unflatten(-1, (-1, self.heads)).permute(0, 1, 2, 5, 4, 3)


class ChannelAttention(nn.Module):
    """Attention of the dimensions of a slice's heads to those of its own and of the slices before.

    Args:
        dimensions: of a head, over all slices; logits are over the root of it.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.scale = dimensions**-0.5

    def forward(self, *projected: Tensor) -> Tensor:
        """`ChannelProjection`'s results, the slice's own last -> (B, n, heads, C/heads, p)."""
        keys = torch.cat([part[1] for part in projected], dim=-2)
        values = torch.cat([part[2] for part in projected], dim=-2)
        logits = (projected[-1][0] * self.scale) @ keys.transpose(-1, -2)
        return logits.softmax(dim=-1) @ values


class ChannelMixing(nn.Module):
    """Attention between channels, then a net, each added to a slice: (B, n, p, C) stays."""

    def __init__(self, channels: int, slices: int, heads: int) -> None:
        super().__init__()
        self.attention = ChannelAttention(channels // heads)
        self.proj = SliceLinear(channels, channels, slices)
        self.norm = SliceNorm(channels, slices)
        self.fc1 = SliceLinear(channels, channels, slices)
        self.fc2 = SliceLinear(channels, channels, slices)

    def forward(self, u: Tensor, index: int, *projected: Tensor) -> Tensor:
        """u of the slice and `ChannelProjection`'s results of all slices up to it."""
        attended = self.attention(*projected).permute(0, 1, 4, 3, 2)
        u = u + self.proj(attended.reshape(u.shape), index)
        # Over the whole map: every symbol depends on all of the image.
        hidden = self.fc1(self.norm(u, index, dims=3), index)
        return u + self.fc2(F.gelu(hidden), index)


class ChannelLayer(nn.Module):
    """One layer: what it asks of a slice, then what it adds; each is called by itself.

    Args:
        channels: over all slices.
    """

    def __init__(self, channels: int, slices: int, heads: int) -> None:
        super().__init__()
        self.projection = ChannelProjection(channels, slices, heads)
        self.mixing = ChannelMixing(channels, slices, heads)
