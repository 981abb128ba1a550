"""The peers' blocks of attention in exact arithmetic: the sums and products of their parts.

Every one is made of its parts, already exact, and takes and gives grid tensors.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.attention import softmax_weights
from hpcm_scale.entropy.exact.composite import Attending, Composite
from hpcm_scale.entropy.exact.function_tables import GATE_BITS
from hpcm_scale.entropy.exact.functions import Gelu, Sigmoid, added, gated
from hpcm_scale.entropy.exact.grid import EXACT, GRID, GRID_BITS, LIMIT, divide, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.softmax import FACTOR_BITS, LOG2_E, WEIGHT_BITS
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.dictionary_attention import (
    Dictionary,
    DictionaryAttention,
    MultiScaleFeatures,
    Widen,
)
from hpcm_scale.models.blocks.scaled_attention import (
    AttentionStage,
    ChannelScale,
    GatedNet,
    ScaledLayer,
)
from hpcm_scale.models.blocks.window_attention import SwinLayer
from hpcm_scale.models.peers.tcm import MixedBlock


class ExactSwinLayer(Composite):
    """`SwinLayer` in exact arithmetic."""

    ln1: nn.Module
    msa: nn.Module
    ln2: nn.Module
    mlp: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        t = x.permute(0, 2, 3, 1)
        t = added(t, self.msa(self.ln1(t)))
        t = added(t, self.mlp(self.ln2(t)))
        return t.permute(0, 3, 1, 2)


class ExactMixedBlock(Composite):
    """`MixedBlock` in exact arithmetic."""

    conv1_1: nn.Module
    conv_block: nn.Module
    trans_block: nn.Module
    conv1_2: nn.Module

    def forward(self, v: Tensor) -> Tensor:
        """(B, 2N, H, W) stays."""
        c, t = self.conv1_1(v).chunk(2, dim=1)
        c = added(c, self.conv_block(c))
        return added(v, self.conv1_2(torch.cat([c, self.trans_block(t)], dim=1)))


class ExactChannelScale(nn.Module):
    """`ChannelScale` in exact arithmetic."""

    def __init__(self, layer: ChannelScale, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        self._scale = kernels.step_scale(layer.scale, name)

    def forward(self, t: Tensor) -> Tensor:
        """(..., C) stays."""
        return requantize(t * self._scale).float()


class ExactGatedNet(Composite):
    """`GatedNet` in exact arithmetic."""

    functions: ClassVar = {"gelu": Gelu}
    fc1: nn.Module
    depthwise: nn.Module
    fc2: nn.Module
    gelu: nn.Module

    def forward(self, t: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        a, v = self.fc1(t).chunk(2, dim=-1)
        a = self.depthwise(a.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(gated(self.gelu(a), v, GRID_BITS))


class ExactScaledLayer(Composite):
    """`ScaledLayer` in exact arithmetic."""

    ln1: nn.Module
    msa: nn.Module
    ln2: nn.Module
    mlp: nn.Module
    res_scale_1: nn.Module
    res_scale_2: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        t = x.permute(0, 2, 3, 1)
        t = added(self.res_scale_1(t), self.msa(self.ln1(t)))
        t = added(self.res_scale_2(t), self.mlp(self.ln2(t)))
        return t.permute(0, 3, 1, 2)


class ExactAttentionStage(Composite):
    """`AttentionStage` in exact arithmetic."""

    layers: nn.ModuleList
    conv: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        t = x
        for layer in self.layers:
            t = layer(t)
        return added(x, self.conv(t))


class ExactWiden(Composite):
    """`Widen` in exact arithmetic."""

    functions: ClassVar = {"gelu": Gelu}
    in_trans: nn.Module
    dw_conv: nn.Module
    out_trans: nn.Module
    gelu: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        x = self.gelu(self.in_trans(self.gelu(x)))
        return self.out_trans(self.gelu(self.dw_conv(x)))


class ExactMultiScaleFeatures(Composite):
    """`MultiScaleFeatures` in exact arithmetic."""

    functions: ClassVar = {"sigmoid": Sigmoid}
    start: nn.Module
    layers: nn.ModuleList
    proj: nn.Module
    gate: nn.Module
    sigmoid: nn.Module

    def forward(self, v: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        found = [self.start(v)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        out = self.proj(torch.cat(found, dim=1))
        # Of integers below 2^31 and 2^10, a quotient falls on a half only if it is one.
        mean = divide(out.double().sum(1, keepdim=True), out.shape[1]).round_().float()
        gate = self.gate(torch.cat([mean, out.amax(1, keepdim=True)], dim=1))
        return gated(out, self.sigmoid(gate), GATE_BITS)


class ExactDictionary(nn.Module):
    """A Dictionary: its entries as a grid tensor (1, 1, E, C)."""

    def __init__(self, layer: Dictionary, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        entries = layer.entries.detach().double()
        self._entries = requantize(entries * GRID).float()[None, None]

    def forward(self) -> Tensor:
        """(1, 1, E, C)."""
        return self._entries


class ExactDictionaryAttention(Attending):
    """`DictionaryAttention` in exact arithmetic."""

    x_trans: nn.Module
    ln_scale: nn.Module
    msa: nn.Module
    res_scale_1: nn.Module
    lnx: nn.Module
    q_trans: nn.Module
    dict_ln: nn.Module
    k: nn.Module
    linear: nn.Module
    res_scale_2: nn.Module
    ln_mlp: nn.Module
    mlp: nn.Module
    res_scale_3: nn.Module
    output_trans: nn.Module

    def __init__(
        self,
        block: DictionaryAttention,
        parts: Mapping[str, nn.Module],
        name: str,
        kernels: Kernels,
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._heads = block.heads
        scale = block.scale.detach()
        factor = scale.double().mul_(LOG2_E * (1 << FACTOR_BITS)).round_()
        size = block.q_trans.out_features // block.heads
        largest = max(float(factor.abs().max()) / GRID, 1) * size * LIMIT**2
        if not largest < EXACT:  # a NaN is no bound either
            raise CheckpointError(
                f"{name}.scale: logits of {size} channels times up to "
                f"{float(scale.abs().max()):.4g} could leave what exact arithmetic holds; "
                "the training diverged, export an earlier checkpoint"
            )
        self._factor = factor / (1 << FACTOR_BITS)

    def forward(self, x: Tensor, dictionary: Tensor) -> Tensor:
        """(B, I, H, W) and (1, 1, E, C) -> (B, O, H, W)."""
        u = self.x_trans(x.permute(0, 2, 3, 1))
        refined = self.msa(self.ln_scale(u).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        u = added(refined, self.res_scale_1(u))
        values = self.dict_ln(dictionary)
        attended = self._attend(self.q_trans(self.lnx(u)), self.k(values), values)
        u = added(self.linear(attended), self.res_scale_2(u))
        u = added(self.mlp(self.ln_mlp(u)), self.res_scale_3(u))
        return self.output_trans(u).permute(0, 3, 1, 2)

    def _attend(self, q: Tensor, k: Tensor, values: Tensor) -> Tensor:
        """(B, H, W, C), (1, 1, E, C) and (1, 1, E, C) -> (B, H, W, C), an image row at a time."""
        k, values = (self._by_head(t[0, 0]) for t in (k, values))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for image, rows in zip(out, q, strict=True):
            for into, row in zip(image, rows, strict=True):
                logits = (self._by_head(row) @ k.transpose(1, 2)).mul_(1 / GRID).round_()
                weights = softmax_weights(logits.mul_(self._factor).round_(), self.powers)
                attended = requantize((weights @ values).mul_(2.0**-WEIGHT_BITS))
                into.copy_(attended.transpose(0, 1).flatten(1))
        return out

    def _by_head(self, t: Tensor) -> Tensor:
        """(n, C) -> (heads, n, d) in float64."""
        return t.double().view(len(t), self._heads, -1).transpose(0, 1)


LAYERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    ChannelScale: ExactChannelScale,
    Dictionary: ExactDictionary,
}
COMPOSITES: dict[type[nn.Module], Callable[..., Composite]] = {
    SwinLayer: ExactSwinLayer,
    MixedBlock: ExactMixedBlock,
    GatedNet: ExactGatedNet,
    ScaledLayer: ExactScaledLayer,
    AttentionStage: ExactAttentionStage,
    Widen: ExactWiden,
    MultiScaleFeatures: ExactMultiScaleFeatures,
    DictionaryAttention: ExactDictionaryAttention,
}
"""The exact counterparts of these layers and blocks."""
