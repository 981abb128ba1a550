"""MLIC++'s contexts in exact arithmetic: attention of linear cost, and in windows around positions.

Every block is made of its parts, already exact, and takes and gives grid tensors.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.attention import softmax_weights
from hpcm_scale.entropy.exact.composite import Attending, Composite
from hpcm_scale.entropy.exact.functions import HalfTanh, added, lookup
from hpcm_scale.entropy.exact.grid import GRID, LIMIT, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.softmax import (
    FACTOR_BITS,
    LARGEST_DROP,
    LOG2_E,
    WEIGHT_BITS,
    logit_factor,
    powers_of_two,
)
from hpcm_scale.entropy.exact.window_attention import integer_bias
from hpcm_scale.errors import DataError
from hpcm_scale.models.blocks.linear_attention import CheckerboardGlobalContext, GlobalContext
from hpcm_scale.models.blocks.local_attention import (
    HEADS,
    SIDE,
    UNSEEN,
    LocalContext,
    WindowAttention,
    WindowConv,
)
from hpcm_scale.models.peers.mlicpp import ResidualPrediction, SliceSum
from hpcm_scale.models.slices import place_parity, take_parity

LARGEST_POSITIONS = 1 << 17
"""So many products of a power below 2^25 and a value below 2^21 stay below 2^63 in sum."""
VALUE_DIGIT = 1 << 11
"""Base of a value's two digits, whose products with powers float64 adds up exactly."""


def to_base_two(logits: Tensor) -> Tensor:
    """Logits to base e of grid points -> to base 2, float64 integers."""
    factor = round(LOG2_E * (1 << FACTOR_BITS))
    return logits.double().mul_(factor).mul_(2.0**-FACTOR_BITS).round_()


def exact_linear_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, powers: Tensor) -> Tensor:
    """`linear_attention` of grid tensors, q (B, C, n_q), k and v (B, C, n_k) -> (B, C, n_q).

    Raises:
        DataError: if there are too many positions.
    """
    b, c, count = q.shape
    if k.shape[2] > LARGEST_POSITIONS:
        raise DataError(
            f"image: {k.shape[2]} positions of a map; exact arithmetic allows {LARGEST_POSITIONS} "
            "in a mean over all of them; encode it with --fast, or in parts"
        )
    queries, keys, values = (x.reshape(b, heads, c // heads, -1) for x in (q, k, v))
    logits = to_base_two(keys)
    drop = (logits.amax(3, keepdim=True) - logits).clamp_(max=LARGEST_DROP)
    weights = lookup(powers, drop)  # (B, heads, d, n)
    wide = values.double().transpose(2, 3)
    high = (wide * (1 / VALUE_DIGIT)).round_()
    low = wide.sub_(high, alpha=VALUE_DIGIT)
    sums = (weights @ high).long().mul_(VALUE_DIGIT).add_((weights @ low).long())
    summary = requantize(sums.double().div_(weights.sum(3, keepdim=True)))  # (B, heads, d, d)
    shares = softmax_weights(to_base_two(queries).transpose(2, 3), powers)  # (B, heads, n, d)
    out = requantize((shares @ summary).mul_(2.0**-WEIGHT_BITS))
    return out.float().transpose(2, 3).reshape(b, c, count)


class ExactGlobalContext(Attending):
    """`GlobalContext` in exact arithmetic."""

    queries: nn.Module
    keys: nn.Module
    values: nn.Module
    reprojection: nn.Module
    mlp: nn.Module
    skip: nn.Module

    def __init__(
        self, block: GlobalContext, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._heads = block.heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, i·u, H, W) -> (B, 2u, H, W)."""
        q, k, v = (net(x).flatten(2) for net in (self.queries, self.keys, self.values))
        attended = exact_linear_attention(q, k, v, self._heads, self.powers).view(x.shape)
        r = self.reprojection(attended)
        return added(self.skip(r), self.mlp(r))


class ExactCheckerboardGlobalContext(Attending):
    """`CheckerboardGlobalContext` in exact arithmetic."""

    queries: nn.Module
    keys: nn.Module
    values: nn.Module
    reprojection: nn.Module
    mlp: nn.Module

    def __init__(
        self,
        block: CheckerboardGlobalContext,
        parts: Mapping[str, nn.Module],
        name: str,
        kernels: Kernels,
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._anchors = block.anchors

    def forward(self, before: Tensor, anchors: Tensor) -> Tensor:
        """The slice before and the anchors, both (B, u, H, W) -> (B, 2u, H, W)."""
        others = 1 - self._anchors

        def seen(net: nn.Module, x: Tensor, parity: int) -> Tensor:
            return take_parity(net(x), parity).flatten(2)

        def only(parity: int) -> Tensor:
            return place_parity(take_parity(before, parity), parity)

        attended = exact_linear_attention(
            seen(self.queries, only(others), others),
            seen(self.keys, only(self._anchors), self._anchors),
            seen(self.values, anchors, self._anchors),
            HEADS,
            self.powers,
        )
        b, c, h, w = before.shape
        r = self.reprojection(place_parity(attended.view(b, c, h, w // 2), others))
        return added(r, self.mlp(r))


class ExactLocalAttention(nn.Module):
    """A WindowAttention around positions, an image row of windows at a time."""

    def __init__(
        self, attention: WindowAttention, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        super().__init__()
        self._source = (attention,)  # in a tuple, so that its parameters are not this module's
        self._name = name
        self._bias = integer_bias(attention.bias(), f"{name}.relative_position_table")
        self._unseen = round(UNSEEN * GRID * LOG2_E)
        self._powers = torch.from_numpy(powers_of_two().copy()).to(self._bias.device)

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, 3u, H, W) -> (B·H·W/2, 25, u)."""
        (attention,) = self._source
        b, c, h, w = qkv.shape
        size = c // (3 * HEADS)
        factor = logit_factor(size, self._name)
        by_head = qkv.permute(0, 2, 3, 1).reshape(b, h, w, 3, size, HEADS).transpose(4, 5)
        windows = attention.windows(by_head.reshape(b, h, w, c).permute(0, 3, 1, 2))
        mask = attention.mask(h, w, qkv).ne(0).double().mul_(self._unseen)
        masks = mask.view(h, w // 2, 1, SIDE**2, SIDE**2)
        out = qkv.new_empty(b, h, w // 2, SIDE**2, HEADS, size)
        for i in range(b):
            for row in range(h):
                parts = windows[i, row].double().view(-1, SIDE**2, 3, HEADS, size)
                q, k, v = parts.permute(2, 0, 3, 1, 4)  # (w/2, heads, 25, d)
                logits = (q @ k.transpose(2, 3)).mul_(1 / GRID).round_().mul_(factor).round_()
                weights = softmax_weights(logits.add_(self._bias).add_(masks[row]), self._powers)
                attended = requantize((weights @ v).mul_(2.0**-WEIGHT_BITS))
                out[i, row] = attended.transpose(1, 2)
        return out.view(-1, SIDE**2, HEADS * size)


class ExactWindowConv(nn.Module):
    """`WindowConv` in exact arithmetic."""

    def __init__(self, layer: WindowConv, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        weight = layer.weight.permute(0, 2, 3, 1).reshape(layer.out_channels, -1)
        self._product = kernels.product(weight, layer.bias, name)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 25, u) -> (n, outputs)."""
        return requantize(self._product.multiply(x.flatten(1), self._product.operand())).float()


class ExactLocalContext(Composite):
    """`LocalContext` in exact arithmetic."""

    norm1: nn.Module
    qkv_proj: nn.Module
    attend: nn.Module
    fusion: nn.Module
    proj: nn.Module
    norm2: nn.Module
    mlp: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, u, H, W) -> (B, 2u, H, W/2)."""
        b, _, h, w = x.shape
        qkv = self.qkv_proj(self.norm1(x.permute(0, 2, 3, 1)))
        fused = self.fusion(self.attend(qkv.permute(0, 3, 1, 2)))
        t = self.proj(fused.view(b, h, w // 2, -1))
        return added(t, self.mlp(self.norm2(t))).permute(0, 3, 1, 2)


class ExactResidualPrediction(Composite):
    """`ResidualPrediction` in exact arithmetic."""

    functions: ClassVar = {"half_tanh": HalfTanh}
    net: nn.Module
    half_tanh: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, M + (i + 1)·u, H, W) -> (B, u, H, W)."""
        return self.half_tanh(self.net(x))


class ExactSliceSum(Composite):
    """A SliceSum. Its slice is not bounded by the grid as activations are."""

    def forward(self, coded: Tensor, residual: Tensor) -> Tensor:
        """Both (B, C, H, W)."""
        return added(coded.clamp(-LIMIT, LIMIT), residual)


LAYERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    WindowAttention: ExactLocalAttention,
    WindowConv: ExactWindowConv,
}
COMPOSITES: dict[type[nn.Module], Callable[..., Composite]] = {
    GlobalContext: ExactGlobalContext,
    CheckerboardGlobalContext: ExactCheckerboardGlobalContext,
    LocalContext: ExactLocalContext,
    ResidualPrediction: ExactResidualPrediction,
    SliceSum: ExactSliceSum,
}
"""The exact counterparts of these layers and blocks."""
