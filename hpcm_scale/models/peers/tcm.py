"""TCM: convolutions and window attention side by side; five slices of channels.

Source: Liu et al., arXiv 2303.14978 (CVPR 2023). Shape letters: M latent channels, N channels of
either half of a transform, (h, w) the latents' sides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.config.peers.tcm import TCM_SLICES, TcmConfig
from hpcm_scale.models.blocks.hyper_pair import HyperPair
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.sampling import (
    ResidualBlock,
    ResidualDown,
    ResidualUp,
    SubpixelConv,
    conv3,
)
from hpcm_scale.models.blocks.window_attention import SwinLayer
from hpcm_scale.models.density import GAUSSIAN, FactorizedPrior
from hpcm_scale.models.peers.residual_slices import GatedSliceNetwork, swin_pair
from hpcm_scale.models.slices import SlicePartition
from hpcm_scale.models.transforms import Transform

WINDOW, HYPER_WINDOW = 8, 4
"""Sides of the windows of the transforms and contexts, and of the hyper nets."""
HYPER_GRID = 32
"""Image positions per position of the hyper nets' attention, along each side."""


class MixedBlock(nn.Module):
    """v + 1×1 of [a residual convolution block | a Swin layer] of the halves of a 1×1 of v.

    (B, 2N, H, W) stays. The convolutions' half is added once more to its block's result, which has
    it already.
    """

    def __init__(self, channels: int, heads: int, side: int, shifted: bool) -> None:
        super().__init__()
        self.conv1_1 = Conv1x1(2 * channels, 2 * channels)
        self.conv_block = ResidualBlock(channels, channels, F.leaky_relu)
        self.trans_block = SwinLayer(channels, heads, side, shifted)
        self.conv1_2 = Conv1x1(2 * channels, 2 * channels)

    def forward(self, v: Tensor) -> Tensor:
        c, t = self.conv1_1(v).chunk(2, dim=1)
        c = c + self.conv_block(c)
        return v + self.conv1_2(torch.cat([c, self.trans_block(t)], dim=1))


def _pairs(config: TcmConfig, heads: int, side: int) -> list[nn.Module]:
    return [
        MixedBlock(config.width, heads, side, shifted)
        for _ in range(config.depth)
        for shifted in (False, True)
    ]


def analysis(config: TcmConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    stages, inputs, width = [], 3, 2 * config.width
    for heads in config.heads:
        stages.append(
            nn.Sequential(ResidualDown(inputs, width, F.leaky_relu), *_pairs(config, heads, WINDOW))
        )
        inputs = width
    return Transform([*stages, nn.Sequential(conv3(width, config.latent_channels, stride=2))])


def synthesis(config: TcmConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    stages, inputs, width = [], config.latent_channels, 2 * config.width
    for heads in config.heads[::-1]:
        stages.append(
            nn.Sequential(ResidualUp(inputs, width, F.leaky_relu), *_pairs(config, heads, WINDOW))
        )
        inputs = width
    return Transform([*stages, nn.Sequential(SubpixelConv(width, 3))])


def hyper_analysis(config: TcmConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N_z, h/4, w/4)."""
    width = 2 * config.width
    return Transform(
        [
            nn.Sequential(
                ResidualDown(config.latent_channels, width, F.leaky_relu),
                *_pairs(config, config.hyper_heads, HYPER_WINDOW),
            ),
            nn.Sequential(conv3(width, config.hyper_channels, stride=2)),
        ]
    )


def hyper_synthesis(config: TcmConfig) -> Transform:
    """One of the two nets of h_s: ẑ (B, N_z, h/4, w/4) -> (B, M, h, w)."""
    width = 2 * config.width
    return Transform(
        [
            nn.Sequential(
                ResidualUp(config.hyper_channels, width, F.leaky_relu),
                *_pairs(config, config.hyper_heads, HYPER_WINDOW),
            ),
            nn.Sequential(SubpixelConv(width, config.latent_channels)),
        ]
    )


class Tcm(GatedSliceNetwork[TcmConfig]):
    """The codec network of one `TcmConfig`."""

    def __init__(self, config: TcmConfig) -> None:
        size = config.latent_channels // TCM_SLICES
        super().__init__(
            config,
            SlicePartition([size] * TCM_SLICES),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=HyperPair(hyper_synthesis(config), hyper_synthesis(config)),
            z_prior=FactorizedPrior(config.hyper_channels),
            density=GAUSSIAN,
        )
        inputs = [config.latent_channels + size * i for i in range(TCM_SLICES)]
        width, heads = config.context_width, config.context_heads
        self.add_gates(inputs, inputs, width, lambda: swin_pair(width, heads))
        self.add_slice_nets(inputs, config.net_widths)

    @property
    def image_multiple(self) -> int:
        """Multiple of pixels that an image's sides must be of: hyper maps come in whole windows."""
        return HYPER_WINDOW * HYPER_GRID
