"""LALIC's blocks in exact arithmetic: the sums and products of their parts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.composite import Attending, Composite
from hpcm_scale.entropy.exact.function_tables import GATE_BITS
from hpcm_scale.entropy.exact.functions import Sigmoid, added, gated
from hpcm_scale.entropy.exact.grid import GRID_BITS, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.neighbourhoods import bordered, neighbours, strips
from hpcm_scale.entropy.exact.wkv import exact_wkv
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.rwkv import ChannelMix, Gate, OmniShift, RwkvBlock, SpatialMix

LARGEST_DECAY = 2000
"""Largest decay of WKV, as the network itself allows. Up to some 12, all weights that matter to a
mean are in the table of powers; beyond, those of far tokens are less than it holds."""


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² of a grid tensor, clamped to the grid."""
    x = x.clamp_min(0)
    return gated(x, x, GRID_BITS)


class ExactOmniShift(nn.Module):
    """An OmniShift: the one depthwise 5×5 convolution that it is, on positions."""

    def __init__(self, layer: OmniShift, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        self._reach = layer.SIDE // 2
        parameters = (layer.alpha, layer.kernel1, layer.kernel3, layer.kernel5)
        (a0, a1, a2, a3), k1, k3, k5 = (p.detach().double() for p in parameters)
        kernel = a3 * k5
        kernel[..., 1:-1, 1:-1] += a2 * k3
        kernel[..., 2:3, 2:3] += a1 * k1 + a0
        weight = kernel.flatten(1).float()
        self._depthwise = kernels.depthwise(weight, weight.new_zeros(len(weight)), name)

    def forward(self, v: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        views = partial(neighbours, reach=self._reach)
        for part in strips(v):
            around = bordered(v, part, self._reach)
            out[part] = requantize(self._depthwise.sums(around, views, self._depthwise.taps))
        return out


class ExactSpatialMix(Attending):
    """`SpatialMix` in exact arithmetic."""

    omni_shift: nn.Module
    key: nn.Module
    value: nn.Module
    receptance: nn.Module
    output: nn.Module

    def __init__(
        self, block: SpatialMix, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._published = block.published
        self._decay, self._boost = (p.detach().double() for p in (block.decay, block.boost))
        for parameter in ("decay", "boost"):
            largest = float(getattr(block, parameter).detach().abs().max())
            if not largest <= LARGEST_DECAY:  # a NaN is none either
                raise CheckpointError(
                    f"{name}.{parameter}: is up to {largest:.4g}, exact arithmetic allows "
                    f"{LARGEST_DECAY}; the training diverged, export an earlier checkpoint"
                )
        self.sigmoid = Sigmoid()

    def forward(self, v: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        s = self.omni_shift(v)
        keys, values = self.key(s).flatten(1, 2), self.value(s).flatten(1, 2)
        mean = exact_wkv(keys, values, self._decay, self._boost, self._published, self.powers)
        gate = self.sigmoid(self.receptance(s))
        return self.output(gated(mean.view(v.shape), gate, GATE_BITS))


class ExactChannelMix(Composite):
    """`ChannelMix` in exact arithmetic."""

    functions: ClassVar = {"sigmoid": Sigmoid}
    omni_shift: nn.Module
    key: nn.Module
    receptance: nn.Module
    value: nn.Module
    sigmoid: nn.Module

    def forward(self, v: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        s = self.omni_shift(v)
        gate = self.sigmoid(self.receptance(s))
        return gated(self.value(squared_relu(self.key(s))), gate, GATE_BITS)


class ExactRwkvBlock(Composite):
    """`RwkvBlock` in exact arithmetic."""

    ln1: nn.Module
    att: nn.Module
    ln2: nn.Module
    ffn: nn.Module

    def __init__(
        self, block: RwkvBlock, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._gamma1 = kernels.step_scale(block.gamma1, f"{name}.gamma1")
        self._gamma2 = kernels.step_scale(block.gamma2, f"{name}.gamma2")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        t = x.permute(0, 2, 3, 1)
        t = added(t, requantize(self.att(self.ln1(t)) * self._gamma1).float())
        t = added(t, requantize(self.ffn(self.ln2(t)) * self._gamma2).float())
        return t.permute(0, 3, 1, 2)


class ExactGate(Composite):
    """`Gate` in exact arithmetic."""

    functions: ClassVar = {"sigmoid": Sigmoid}
    mix: nn.Module
    norm: nn.Module
    key: nn.Module
    value: nn.Module
    receptance: nn.Module
    sigmoid: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, A, H, W) -> (B, C, H, W)."""
        h = self.mix(x).permute(0, 2, 3, 1)
        n = self.norm(h)
        gate = self.sigmoid(self.receptance(n))
        h = added(h, gated(self.value(squared_relu(self.key(n))), gate, GATE_BITS))
        return h.permute(0, 3, 1, 2)


LAYERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    OmniShift: ExactOmniShift,
}
COMPOSITES: dict[type[nn.Module], Callable[..., Composite]] = {
    SpatialMix: ExactSpatialMix,
    ChannelMix: ExactChannelMix,
    RwkvBlock: ExactRwkvBlock,
    Gate: ExactGate,
}
"""The exact counterparts of these layers and blocks."""
