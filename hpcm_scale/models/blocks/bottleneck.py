"""Residual bottlenecks of 1×1 and 3×3 convolutions, on (B, C, H, W) tensors.

Source: Cheng et al., arXiv 2001.01568, whose attention blocks are made of them.
"""

from torch import Tensor, nn

from hpcm_scale.models.blocks.resampling import Conv1x1


class Bottleneck(nn.Module):
    """v + f(v), f = 1×1 C->C/2, ReLU, 3×3, ReLU, 1×1 C/2->C; a unit has a ReLU of the sum."""

    def __init__(self, channels: int, unit: bool = False) -> None:
        super().__init__()
        self.unit = unit
        self.branch = nn.Sequential(
            Conv1x1(channels, channels // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 2, channels // 2, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv1x1(channels // 2, channels),
        )

    def forward(self, v: Tensor) -> Tensor:
        out = v + self.branch(v)
        return out.relu() if self.unit else out


def gate_branches(channels: int, depth: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The two branches a and b of an attention a·sigmoid(b): units, b then a 1×1 convolution."""
    trunk, mask = (
        [Bottleneck(channels, unit=True) for _ in range(depth)] for _ in ("trunk", "mask")
    )
    return nn.Sequential(*trunk), nn.Sequential(*mask, Conv1x1(channels, channels))
