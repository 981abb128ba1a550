"""FLIC's transformer over slices of channels in exact arithmetic."""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.attention import softmax_weights
from hpcm_scale.entropy.exact.composite import Attending, Composite
from hpcm_scale.entropy.exact.convolution import ExactConv, ExactDepthwiseConv
from hpcm_scale.entropy.exact.functions import Gelu, added
from hpcm_scale.entropy.exact.grid import EXACT, GRID, GRID_BITS, LIMIT, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.normalisation import GAIN_BITS, NORMAL_BITS
from hpcm_scale.entropy.exact.softmax import (
    FACTOR_BITS,
    LOG2_E,
    WEIGHT_BITS,
)
from hpcm_scale.errors import CheckpointError, DataError
from hpcm_scale.models.blocks.channel_attention import (
    EPSILON,
    WINDOW,
    ChannelAttention,
    ChannelLayer,
    ChannelMixing,
    ChannelProjection,
    SliceConv,
    SliceLinear,
    SliceNorm,
)
from hpcm_scale.models.peers.flic import ParameterNet

LARGEST_COUNT = 1 << 20
"""Values that one norm is of: their squares add up to less than 2^63."""
ROOT_BITS = 62
"""Bits of what the root is taken of, about."""


class ExactSliceConv(nn.Module):
    """A SliceConv: a convolution for each slice."""

    def __init__(self, layer: SliceConv, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        assert layer.bias is not None  # the class is made with one
        parts = zip(layer.weight.chunk(layer.slices), layer.bias.chunk(layer.slices), strict=True)
        self._convs = nn.ModuleList()
        for i, (weight, bias) in enumerate(parts):
            groups = layer.groups // layer.slices
            side = weight.shape[2]
            conv = nn.Conv2d(
                groups * weight.shape[1], len(weight), side, padding=side // 2, groups=groups
            )
            conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            exact = ExactConv if groups == 1 else ExactDepthwiseConv
            self._convs.append(exact(conv, f"{name}.{i}", kernels))

    def forward(self, x: Tensor, index: int) -> Tensor:
        """(B, I/slices, H, W) -> (B, O/slices, H, W) by slice `index`."""
        return self._convs[index](x)


class ExactSliceLinear(nn.Module):
    """A SliceLinear: a matrix for each slice."""

    def __init__(self, layer: SliceLinear, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        parts = zip(layer.weight.chunk(layer.slices), layer.bias.chunk(layer.slices), strict=True)
        self._products = [
            kernels.product(weight, bias, f"{name}.{i}") for i, (weight, bias) in enumerate(parts)
        ]

    def forward(self, x: Tensor, index: int) -> Tensor:
        """(..., I/slices) -> (..., O/slices) by slice `index`."""
        product = self._products[index]
        rows = x.reshape(-1, x.shape[-1])
        out = requantize(product.multiply(rows, product.operand())).float()
        return out.view(*x.shape[:-1], -1)


class ExactSliceNorm(nn.Module):
    """A SliceNorm: the sums of a norm are few, and taken on in Python's integers."""

    def __init__(self, norm: SliceNorm, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        self._slices = norm.slices
        gain, offset = (p.detach().double() for p in (norm.weight, norm.bias))
        self._gain = gain.mul_(1 << GAIN_BITS).round_()
        self._offset = offset.mul_(1 << NORMAL_BITS + GAIN_BITS).round_()
        # No value is further from the mean than the root of their number in standard deviations.
        largest = (1 << NORMAL_BITS + 1) * math.sqrt(LARGEST_COUNT)
        bound = float((self._gain.abs() * largest + self._offset.abs()).max())
        if not bound < EXACT:
            raise CheckpointError(
                f"{name}: its products could reach 2^{math.log2(bound):.1f}, exact arithmetic "
                "allows less than 2^53; the training diverged, export an earlier checkpoint"
            )

    def forward(self, x: Tensor, index: int, dims: int) -> Tensor:
        """(..., C): over the last `dims` dimensions, by the gains of slice `index`.

        Raises:
            DataError: if there are too many values.
        """
        last = tuple(range(-dims, 0))
        count = math.prod(x.shape[-dims:])
        if count > LARGEST_COUNT:
            raise DataError(
                f"image: {count} values to normalise together; exact arithmetic allows "
                f"{LARGEST_COUNT}; encode it with --fast, or in parts"
            )
        wide = x.double()
        totals = wide.sum(last, keepdim=True)
        squares = wide.long().square().sum(last, keepdim=True)
        roots = [
            _root(count, int(total), square)
            for total, square in zip(
                totals.flatten().tolist(), squares.flatten().tolist(), strict=True
            )
        ]
        root = torch.tensor(roots, dtype=torch.float64, device=x.device).view(totals.shape)
        normal = wide.mul_(count).sub_(totals).div_(root).mul_(1 << NORMAL_BITS).round_()
        gain, offset = (p.chunk(self._slices)[index] for p in (self._gain, self._offset))
        scaled = normal.mul_(gain).add_(offset)
        scaled.mul_(2.0 ** (GRID_BITS - NORMAL_BITS - GAIN_BITS))
        return requantize(scaled).float()


def _root(count: int, total: int, squares: int) -> float:
    """√(count·squares − total² + ε) of integers, to some 31 bits."""
    spread = count * squares - total * total + round(EPSILON * (GRID * count) ** 2)
    lift = max(ROOT_BITS - spread.bit_length(), 0) // 2
    return math.ldexp(math.isqrt(spread << 2 * lift), -lift)


class ExactChannelAttention(Attending):
    """`ChannelAttention` in exact arithmetic."""

    def __init__(
        self, block: ChannelAttention, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._factor = round(LOG2_E * (1 << FACTOR_BITS) * block.scale) / (1 << FACTOR_BITS)
        assert WINDOW**2 * LIMIT**2 < EXACT

    def forward(self, *projected: Tensor) -> Tensor:
        """`ChannelProjection`'s results, the slice's own last -> (B, n, heads, C/heads, p)."""
        keys = torch.cat([part[1] for part in projected], dim=-2).double()
        values = torch.cat([part[2] for part in projected], dim=-2).double()
        logits = projected[-1][0].double() @ keys.transpose(-1, -2)
        logits.mul_(1 / GRID).round_().mul_(self._factor).round_()
        weights = softmax_weights(logits, self.powers)
        return requantize((weights @ values).mul_(2.0**-WEIGHT_BITS)).float()


class ExactChannelProjection(Composite):
    """`ChannelProjection` in exact arithmetic."""

    norm: nn.Module
    position: nn.Module
    position_norm: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module

    def __init__(
        self, block: ChannelProjection, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self.heads = block.heads
        self.gelu = Gelu()

    def forward(self, u: Tensor, index: int) -> Tensor:
        """(B, n, p, C) -> (3, B, n, heads, C/heads, p)."""
        m = self.norm(u, index, dims=2)
        windows = m.view(-1, WINDOW, WINDOW, m.shape[-1]).permute(0, 3, 1, 2)
        places = self.position(windows, index).permute(0, 2, 3, 1).reshape(m.shape)
        m = added(m, self.gelu(self.position_norm(places, index, dims=2)))
        found = torch.stack([net(m, index) for net in (self.query, self.key, self.value)])
        return found.unflatten(-1, (-1, self.heads)).permute(0, 1, 2, 5, 4, 3)


class ExactChannelMixing(Composite):
    """`ChannelMixing` in exact arithmetic."""

    functions: ClassVar = {"gelu": Gelu}
    attention: nn.Module
    proj: nn.Module
    norm: nn.Module
    fc1: nn.Module
    fc2: nn.Module
    gelu: nn.Module

    def forward(self, u: Tensor, index: int, *projected: Tensor) -> Tensor:
        """(B, n, p, C) stays."""
        attended = self.attention(*projected).permute(0, 1, 4, 3, 2)
        u = added(u, self.proj(attended.reshape(u.shape), index))
        hidden = self.fc1(self.norm(u, index, dims=3), index)
        return added(u, self.fc2(self.gelu(hidden), index))


class ExactChannelLayer(Composite):
    """A ChannelLayer, whose parts are called by themselves."""


class ExactParameterNet(Composite):
    """`ParameterNet` in exact arithmetic."""

    functions: ClassVar = {"gelu": Gelu}
    first: nn.Module
    second: nn.Module
    third: nn.Module
    gelu: nn.Module

    def forward(self, context: Tensor, hyper: Tensor, index: int) -> Tensor:
        """(B, 4u, h, w) and (B, 2u, h, w) -> (B, 3u, h, w)."""
        b, channels, h, w = hyper.shape
        slice_channels = channels // 2
        both = [x.reshape(b, slice_channels, -1, h, w) for x in (context, hyper)]
        x = self.gelu(self.first(torch.cat(both, dim=2).flatten(1, 2), index))
        return self.third(self.gelu(self.second(x, index)), index)


LAYERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    SliceConv: ExactSliceConv,
    SliceLinear: ExactSliceLinear,
    SliceNorm: ExactSliceNorm,
}
COMPOSITES: dict[type[nn.Module], Callable[..., Composite]] = {
    ChannelAttention: ExactChannelAttention,
    ChannelProjection: ExactChannelProjection,
    ChannelMixing: ExactChannelMixing,
    ChannelLayer: ExactChannelLayer,
    ParameterNet: ExactParameterNet,
}
"""The exact counterparts of these layers and blocks."""
