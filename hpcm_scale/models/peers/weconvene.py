"""WeConvene: convolutions of wavelet bands; the bands of the latents coded low to high.

Source: Fu et al., arXiv 2407.09983 (ECCV 2024). What is coded is Haar's transform of y, which here
belongs to g_a, its inverse to g_s. Shape letters: M channels of the four bands together, (h, w)
their sides, of which y has twice as much.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.config.peers.weconvene import BANDS, WECONVENE_SLICES, WeconveneConfig
from hpcm_scale.models.blocks.gdn import GDN
from hpcm_scale.models.blocks.haar import HALF, PUBLISHED_HALF, Haar, WaveletDown, WaveletUp
from hpcm_scale.models.blocks.hyper_pair import HyperPair
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.sampling import ResidualBlock, SubpixelConv, conv3
from hpcm_scale.models.density import GAUSSIAN, FactorizedPrior
from hpcm_scale.models.geometry import reach
from hpcm_scale.models.peers.residual_slices import GatedSliceNetwork
from hpcm_scale.models.slices import SlicePartition
from hpcm_scale.models.transforms import Transform


class First(nn.Module):
    """From pixels to features at their own resolution: (B, A, H, W) -> (B, C, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv3(inputs, outputs)
        self.conv2 = conv3(outputs, outputs)
        self.gdn = GDN(outputs)
        self.skip = Conv1x1(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.gdn(self.conv2(F.leaky_relu(self.conv1(x)))) + self.skip(x)


class Last(nn.Module):
    """From latents to features at their own resolution: (B, A, H, W) -> (B, C, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv3(inputs, outputs)
        self.conv = conv3(outputs, outputs)
        self.igdn = GDN(outputs, inverse=True)
        self.skip = conv3(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.igdn(self.conv(F.leaky_relu(self.conv1(x)))) + self.skip(x)


def _factor(config: WeconveneConfig) -> float:
    return PUBLISHED_HALF if config.wavelet == "published" else HALF


def _blocks(config: WeconveneConfig) -> list[nn.Module]:
    return [ResidualBlock(config.width, config.width, F.leaky_relu) for _ in range(config.depth)]


def _reach(config: WeconveneConfig) -> int:
    """Reach of g_a and of g_s: their layers mirror each other.

    A band's convolution reaches a position of half the resolution, and the wavelet and its inverse
    the block around it, another.
    """
    blocks = 2 * config.depth
    return reach([blocks + 4, blocks + 2, blocks + 4, 6])


def analysis(config: WeconveneConfig) -> Transform:
    """g_a: (B, 3, H, W) -> the bands of y (B, M, H/16, W/16)."""
    n, factor = config.width, _factor(config)
    return Transform(
        [
            nn.Sequential(First(3, n), *_blocks(config)),
            nn.Sequential(WaveletDown(n, n, factor), *_blocks(config)),
            nn.Sequential(WaveletDown(n, n, factor), *_blocks(config)),
            nn.Sequential(conv3(n, config.band_channels, stride=2), Haar(factor)),
        ],
        _reach(config),
    )


def synthesis(config: WeconveneConfig) -> Transform:
    """g_s: the bands of ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    n, factor = config.width, _factor(config)
    return Transform(
        [
            Haar(factor, inverse=True),
            nn.Sequential(Last(config.band_channels, n), *_blocks(config)),
            nn.Sequential(WaveletUp(n, n, factor), *_blocks(config)),
            nn.Sequential(WaveletUp(n, n, factor), *_blocks(config)),
            nn.Sequential(SubpixelConv(n, 3)),
        ],
        _reach(config),
    )


def hyper_analysis(config: WeconveneConfig) -> Transform:
    """h_a: bands (B, M, h, w) -> z (B, N, h/4, w/4)."""
    n = config.width
    return Transform(
        [
            nn.Sequential(
                WaveletDown(config.latent_channels, n, _factor(config)), *_blocks(config)
            ),
            nn.Sequential(conv3(n, config.hyper_channels, stride=2)),
        ]
    )


def hyper_synthesis(config: WeconveneConfig) -> Transform:
    """One of the two nets of h_s: ẑ (B, N, h/4, w/4) -> (B, M/4, h, w)."""
    n = config.width
    return Transform(
        [
            nn.Sequential(WaveletUp(config.hyper_channels, n, _factor(config)), *_blocks(config)),
            nn.Sequential(SubpixelConv(n, config.band_channels)),
        ]
    )


class Weconvene(GatedSliceNetwork[WeconveneConfig]):
    """The codec network of one `WeconveneConfig`.

    Five slices of the low band, then five of the three high bands together, which read the whole
    low band too.
    """

    def __init__(self, config: WeconveneConfig) -> None:
        band = config.band_channels
        low = band // WECONVENE_SLICES
        high = (BANDS - 1) * low
        super().__init__(
            config,
            SlicePartition([low] * WECONVENE_SLICES + [high] * WECONVENE_SLICES),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=HyperPair(hyper_synthesis(config), hyper_synthesis(config)),
            z_prior=FactorizedPrior(config.hyper_channels),
            density=GAUSSIAN,
        )
        width = config.context_width
        # A high slice's gate hands out a band less than it reads: the low one, which the residual
        # nets read beside it.
        read = [band + low * i for i in range(WECONVENE_SLICES)]
        read += [2 * band + high * i for i in range(WECONVENE_SLICES)]
        given = read[:WECONVENE_SLICES] + [count - band for count in read[WECONVENE_SLICES:]]

        def blocks() -> nn.Module:
            return nn.Sequential(*(ResidualBlock(width, width, F.leaky_relu) for _ in range(2)))

        self.add_gates(read, given, width, blocks)
        self.add_slice_nets(given, config.net_widths, read)

    @property
    def published_dead_parameters(self) -> int:
        """A convolution of each halving that the published program makes and does not call."""
        c = self.config.width
        return sum(9 * c * c + c for m in self.modules() if isinstance(m, WaveletDown))

    def beside_slice(self, i: int, mean_context: Tensor, done: Sequence[Tensor]) -> Tensor:
        """The residual nets of high slices read the whole low band too."""
        low = done[:WECONVENE_SLICES] if i >= WECONVENE_SLICES else []
        return torch.cat([*low, mean_context], dim=1)
