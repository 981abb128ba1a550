"""STF: transforms of Swin layers alone; twelve slices of channels.

Source: Zou et al., arXiv 2203.08450 (CVPR 2022). Shape letters: M latent channels, C channels of a
resolution, (h, w) the latents' sides.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.config.peers.stf import STF_SLICES, StfConfig
from hpcm_scale.models.blocks.hyper_pair import HyperPair
from hpcm_scale.models.blocks.sampling import SubpixelConv, conv3
from hpcm_scale.models.blocks.window_attention import SwinLayer, WindowAttention
from hpcm_scale.models.codec_network import Code
from hpcm_scale.models.density import GAUSSIAN, FactorizedPrior
from hpcm_scale.models.linear import Linear
from hpcm_scale.models.peers.residual_slices import ResidualSliceNetwork
from hpcm_scale.models.slices import SlicePartition
from hpcm_scale.models.transforms import Transform

WINDOW = 4


class _Attention(WindowAttention):
    """Window attention whose table lies entry by entry."""

    entries_first = True


class _Layer(SwinLayer):
    attention = _Attention


class PatchEmbed(nn.Module):
    """2×2 patches as positions, normalised: (B, 3, 2h, 2w) -> (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 2, stride=2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Merge(nn.Module):
    """Halve the sides: (B, C, 2h, 2w) -> (B, 2C, h, w), from the four positions of each 2×2 block.

    These stand side by side in the order (0, 0), (1, 0), (0, 1), (1, 1) of row and column.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        blocks = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c)
        side_by_side = blocks.permute(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
        return self.reduction(self.norm(side_by_side)).permute(0, 3, 1, 2)


class Split(nn.Module):
    """Double the sides: (B, C, h, w) -> (B, C/2, 2h, 2w), by a pixel shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduction = Linear(channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = self.reduction(self.norm(x.permute(0, 2, 3, 1)))
        return F.pixel_shuffle(split.permute(0, 3, 1, 2), 2)


class Stage(nn.Module):
    """Swin layers at one resolution, plain and shifted in turn, then a change of resolution."""

    def __init__(self, channels: int, heads: int, depth: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Layer(channels, heads, WINDOW, shifted=bool(j % 2)) for j in range(depth)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.resample is None else self.resample(x)


def _levels(config: StfConfig) -> list[tuple[int, int, int]]:
    """(channels, heads, layers) of each resolution, the highest first."""
    return [
        (config.width << level, config.heads << level, depth)
        for level, depth in enumerate(config.depths)
    ]


def analysis(config: StfConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    *upper, (channels, heads, depth) = _levels(config)
    return Transform(
        [
            PatchEmbed(config.width),
            *(Stage(c, n, count, Merge(c)) for c, n, count in upper),
            Stage(channels, heads, depth, None),
        ]
    )


def synthesis(config: StfConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    (channels, heads, depth), *lower = _levels(config)
    return Transform(
        [
            *(Stage(c, n, count, Split(c)) for c, n, count in lower[::-1]),
            Stage(channels, heads, depth, None),
            nn.Sequential(SubpixelConv(channels, channels, kernel=5), conv3(channels, 3)),
        ]
    )


def _with_gelus(layers: Sequence[nn.Module]) -> nn.Sequential:
    between = [part for layer in layers for part in (layer, nn.GELU())]
    return nn.Sequential(*between[:-1])


def hyper_analysis(config: StfConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N, h/4, w/4)."""
    m = config.latent_channels
    widths = (m, m, *config.hyper_widths, config.hyper_channels)
    layers = [
        conv3(before, after, stride=2 if i in (2, 4) else 1)
        for i, (before, after) in enumerate(pairwise(widths))
    ]
    return Transform([_with_gelus(layers)])


def hyper_synthesis(config: StfConfig) -> Transform:
    """One of the two nets of h_s: ẑ (B, N, h/4, w/4) -> (B, M, h, w)."""
    m = config.latent_channels
    widths = (config.hyper_channels, *config.hyper_widths[::-1], m, m)
    layers = [
        (SubpixelConv if i in (1, 3) else conv3)(before, after)
        for i, (before, after) in enumerate(pairwise(widths))
    ]
    return Transform([_with_gelus(layers)])


class Stf(ResidualSliceNetwork[StfConfig]):
    """The codec network of one `StfConfig`.

    A slice reads the first six before it: later ones do not see one another.
    """

    def __init__(self, config: StfConfig) -> None:
        size = config.latent_channels // STF_SLICES
        super().__init__(
            config,
            SlicePartition([size] * STF_SLICES),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=HyperPair(hyper_synthesis(config), hyper_synthesis(config)),
            z_prior=FactorizedPrior(config.hyper_channels),
            density=GAUSSIAN,
        )
        inputs = [config.latent_channels + size * min(i, config.support) for i in range(STF_SLICES)]
        self.add_slice_nets(inputs, config.net_widths)

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w): (mean | scale).
            code: called once a slice with its scale and mean; returns ŷ.

        Returns:
            What g_s reads (B, M, h, w): ŷ, residuals included.
        """
        mean, scale = params.chunk(2, dim=1)
        done: list[Tensor] = []
        for i in range(STF_SLICES):
            support = done[: self.config.support]
            contexts = (torch.cat([hyper, *support], dim=1) for hyper in (mean, scale))
            done.append(self.code_slice(i, code, *contexts))
        return torch.cat(done, dim=1)
