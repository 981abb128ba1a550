"""The gate that contexts pass in TCM, MambaVC and WeConvene before the parameter nets."""

from torch import Tensor, nn

from hpcm_scale.models.blocks.bottleneck import gate_branches
from hpcm_scale.models.blocks.resampling import Conv1x1

UNITS = 3
"""Residual units of either branch."""


class GatedContext(nn.Module):
    """1×1 of u + a(u)·sigmoid(b(refine(u))), u a 1×1 of the input: (B, I, H, W) -> (B, O, H, W).

    Args:
        width: channels of u.
        refine: what b reads u through; it keeps the shape.
    """

    def __init__(self, inputs: int, width: int, outputs: int, refine: nn.Module) -> None:
        super().__init__()
        self.in_conv = Conv1x1(inputs, width)
        self.refine = refine
        self.trunk, self.mask = gate_branches(width, UNITS)
        self.out_conv = Conv1x1(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        u = self.in_conv(x)
        return self.out_conv(u + self.trunk(u) * self.mask(self.refine(u)).sigmoid())
