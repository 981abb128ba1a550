"""The peers' blocks of convolutions in exact arithmetic: the sums and products of their parts.

Every one is made of its parts, already exact, and takes and gives grid tensors.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.composite import Composite
from hpcm_scale.entropy.exact.function_tables import GATE_BITS
from hpcm_scale.entropy.exact.functions import (
    HalfTanh,
    Sigmoid,
    activation,
    added,
    gated,
    leaky_relu,
)
from hpcm_scale.entropy.exact.grid import LIMIT, requantize
from hpcm_scale.entropy.exact.kernels import Kernels
from hpcm_scale.models.blocks.bottleneck import Bottleneck
from hpcm_scale.models.blocks.gated_context import GatedContext
from hpcm_scale.models.blocks.haar import HALF, WaveletConv, WaveletUp, haar, inverse_haar
from hpcm_scale.models.blocks.sampling import ResidualBlock, ResidualUp
from hpcm_scale.models.peers.residual_slices import PredictedResidual


class ExactPredictedResidual(Composite):
    """A PredictedResidual. Its slice is not bounded by the grid as activations are."""

    functions: ClassVar = {"half_tanh": HalfTanh}
    half_tanh: nn.Module

    def forward(self, coded: Tensor, r: Tensor) -> Tensor:
        """Both (B, C, H, W)."""
        return added(coded.clamp(-LIMIT, LIMIT), self.half_tanh(r))


class ExactBottleneck(Composite):
    """`Bottleneck` in exact arithmetic."""

    branch: nn.Module

    def __init__(
        self, block: Bottleneck, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._least = 0 if block.unit else -LIMIT

    def forward(self, v: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        return (v + self.branch(v)).clamp_(self._least, LIMIT)


class ExactGatedContext(Composite):
    """`GatedContext` in exact arithmetic."""

    functions: ClassVar = {"sigmoid": Sigmoid}
    in_conv: nn.Module
    refine: nn.Module
    trunk: nn.Module
    mask: nn.Module
    out_conv: nn.Module
    sigmoid: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        u = self.in_conv(x)
        gate = self.sigmoid(self.mask(self.refine(u)))
        return self.out_conv(added(u, gated(self.trunk(u), gate, GATE_BITS)))


class ExactResidualBlock(Composite):
    """`ResidualBlock` in exact arithmetic."""

    conv1: nn.Module
    conv2: nn.Module
    skip: nn.Module

    def __init__(
        self, block: ResidualBlock, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._activation = activation(block.activation, name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, A, H, W) -> (B, C, H, W)."""
        y = self._activation(self.conv2(self._activation(self.conv1(x))))
        return added(y, self.skip(x))


class ExactResidualUp(Composite):
    """`ResidualUp` in exact arithmetic."""

    subpel_conv: nn.Module
    conv: nn.Module
    igdn: nn.Module
    upsample: nn.Module

    def __init__(
        self, block: ResidualUp, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._activation = activation(block.activation, name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, A, h, w) -> (B, C, 2h, 2w)."""
        y = self.igdn(self.conv(self._activation(self.subpel_conv(x))))
        return added(y, self.upsample(x))


class ExactWaveletConv(Composite):
    """A WaveletConv, its wavelets by a factor of ½ whatever the network's."""

    low_freq_conv: nn.Module
    gdn_low: nn.Module
    high_freq_conv: nn.Module
    gdn_high: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        c = x.shape[1]
        # Half a sum of four grid integers: single precision holds it.
        low, high = requantize(haar(x, HALF)).split((c, 3 * c), dim=1)
        low = self.gdn_low(self.low_freq_conv(low))
        high = self.gdn_high(self.high_freq_conv(high))
        return requantize(inverse_haar(torch.cat([low, high], dim=1), HALF))


class ExactWaveletUp(Composite):
    """`WaveletUp` in exact arithmetic."""

    subpel_conv: nn.Module
    bands: nn.Module
    upsample: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, A, h, w) -> (B, C, 2h, 2w)."""
        return added(self.bands(leaky_relu(self.subpel_conv(x))), self.upsample(x))


COMPOSITES: dict[type[nn.Module], Callable[..., Composite]] = {
    PredictedResidual: ExactPredictedResidual,
    Bottleneck: ExactBottleneck,
    GatedContext: ExactGatedContext,
    ResidualBlock: ExactResidualBlock,
    ResidualUp: ExactResidualUp,
    WaveletConv: ExactWaveletConv,
    WaveletUp: ExactWaveletUp,
}
"""The exact counterpart of each of these blocks."""
