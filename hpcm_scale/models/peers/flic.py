"""FLIC: attention in windows of four shapes; slices of channels by a causal transformer.

Source: Li et al., arXiv 2310.16387 (ICLR 2024). Shape letters: M latent channels in slices of u,
(h, w) the latents' sides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.config.peers.flic import FLIC_SLICES, FlicConfig
from hpcm_scale.models.blocks.channel_attention import (
    WINDOW,
    ChannelLayer,
    SliceConv,
    from_windows,
    to_windows,
)
from hpcm_scale.models.blocks.frequency_attention import FrequencyAwareTransformer
from hpcm_scale.models.blocks.hyper_pair import HyperPair
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.sampling import ResidualDown, ResidualUp, SubpixelConv, conv3
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.density import FactorizedPrior, Gaussian
from hpcm_scale.models.geometry import LATENT_STRIDE
from hpcm_scale.models.peers.residual_slices import PredictedResidual
from hpcm_scale.models.slices import SlicePartition
from hpcm_scale.models.transforms import Transform

TRANSFORM_WINDOW, HYPER_WINDOW = 8, 2
"""w of the windows of the transforms and of the hyper nets; the longest are twice as long."""
WIDENING = 4
"""Channels of the context transformer for each of y."""


def _pairs(config: FlicConfig, level: int) -> list[nn.Module]:
    """Blocks of g_a and g_s at one of the three widths."""
    width, heads = config.widths[level], config.heads[level]
    return [
        FrequencyAwareTransformer(width, heads, TRANSFORM_WINDOW, shifted)
        for _ in range(config.depth)
        for shifted in (False, True)
    ]


def _hyper_pairs(config: FlicConfig) -> list[nn.Module]:
    displaced = config.hyper_shift == "published"
    return [
        FrequencyAwareTransformer(
            config.hyper_width, config.hyper_heads, HYPER_WINDOW, shifted, displaced
        )
        for _ in range(config.hyper_depth)
        for shifted in (False, True)
    ]


def analysis(config: FlicConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    stages, inputs = [], 3
    for level, width in enumerate(config.widths):
        stages.append(
            nn.Sequential(ResidualDown(inputs, width, F.leaky_relu), *_pairs(config, level))
        )
        inputs = width
    return Transform([*stages, nn.Sequential(conv3(inputs, config.latent_channels, stride=2))])


def synthesis(config: FlicConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    stages, inputs = [], config.latent_channels
    for level in range(2, -1, -1):
        width = config.widths[level]
        stages.append(
            nn.Sequential(ResidualUp(inputs, width, F.leaky_relu), *_pairs(config, level))
        )
        inputs = width
    return Transform([*stages, nn.Sequential(SubpixelConv(inputs, 3))])


def hyper_analysis(config: FlicConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N, h/4, w/4)."""
    width = config.hyper_width
    return Transform(
        [
            nn.Sequential(
                ResidualDown(config.latent_channels, width, F.leaky_relu), *_hyper_pairs(config)
            ),
            nn.Sequential(conv3(width, config.hyper_channels, stride=2)),
        ]
    )


def _hyper_synthesis(config: FlicConfig) -> Transform:
    width = config.hyper_width
    return Transform(
        [
            nn.Sequential(
                ResidualUp(config.hyper_channels, width, F.leaky_relu), *_hyper_pairs(config)
            ),
            nn.Sequential(SubpixelConv(width, config.latent_channels)),
        ]
    )


class ParameterNet(nn.Module):
    """Three numbers of each latent of a slice, from four of the transformer and two of h_s.

    (B, 4u, h, w) and (B, 2u, h, w) -> (B, 3u, h, w), channels 3c, 3c + 1 and 3c + 2 of latent
    channel c.
    """

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        m = latent_channels
        self.first = SliceConv((WIDENING + 2) * m, 2 * m, FLIC_SLICES)
        self.second = SliceConv(2 * m, 3 * m, FLIC_SLICES)
        self.third = SliceConv(3 * m, 3 * m, FLIC_SLICES)

    def forward(self, context: Tensor, hyper: Tensor, index: int) -> Tensor:
        both = [context.unflatten(1, (-1, WIDENING)), hyper.unflatten(1, (-1, 2))]
        x = F.gelu(self.first(torch.cat(both, dim=2).flatten(1, 2), index))
        return self.third(F.gelu(self.second(x, index)), index)


class Flic(CodecNetwork[FlicConfig, SlicePartition]):
    """The codec network of one `FlicConfig`.

    Symbols are round(y); five slices of channels are coded one after the other. The transformer
    that gives their densities walks slice by slice and keeps the keys and values of those before,
    so that a decoder too makes one pass in all, where the published one makes five: 1182.35
    kMACs/pixel instead of 671.71 (the papers print 1096.04, which neither explains). It normalises
    over the whole map, and the transforms' shifted windows mix opposite edges: nothing here can be
    cut into tiles.
    """

    centred = False
    global_context = True
    repeats_modules = True
    # Between channels, the published program forms all pairs and masks those of later slices.
    published_calls = {  # noqa: RUF012
        r"layers\.\d+\.mixing\.attention": 2 * FLIC_SLICES / (FLIC_SLICES + 1)
    }

    def __init__(self, config: FlicConfig) -> None:
        super().__init__(
            config,
            SlicePartition([config.slice_channels] * FLIC_SLICES),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=HyperPair(_hyper_synthesis(config), _hyper_synthesis(config)),
            z_prior=FactorizedPrior(config.hyper_channels),
            density=Gaussian(0.01),
        )
        m = config.latent_channels
        self.start = conv3(2 * m, config.slice_channels)
        self.lift = SliceConv(m, WIDENING * m, FLIC_SLICES)
        self.layers = nn.ModuleList(
            ChannelLayer(WIDENING * m, FLIC_SLICES, config.context_heads)
            for _ in range(config.context_depth)
        )
        self.hyper_transform = Conv1x1(2 * m, 2 * m)
        self.parameter_net = ParameterNet(m)
        self.predicted_residual = PredictedResidual()

    @property
    def image_multiple(self) -> int:
        """Multiple of pixels that an image's sides must be of: latents come in whole windows.

        So do the longest windows of the transforms, at 1/8 of the image's sides, and of the hyper
        nets, at 1/32.
        """
        return WINDOW * LATENT_STRIDE

    @property
    def published_dead_parameters(self) -> int:
        """A start token, and the position tables of windows of one position."""
        tables = 3 * 2 * self.config.hyper_depth * self.config.hyper_heads // 4
        return self.config.slice_channels + tables

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w).
            code: called once a slice with its scale and mean; returns round(y), to which the
                predicted residual is added here.

        Returns:
            What g_s reads (B, M, h, w): ŷ, residuals included.
        """
        hyper = self.run(self.hyper_transform, params).chunk(FLIC_SLICES, dim=1)
        before = self.run(self.start, params)
        projected: list[list[Tensor]] = [[] for _ in self.layers]
        refined: list[Tensor] = []
        for i in range(FLIC_SLICES):
            u = to_windows(self.run(self.lift, before, i))
            for layer, kept in zip(self.layers, projected, strict=True):
                kept.append(self.run(layer.projection, u, i))
                u = self.run(layer.mixing, u, i, *kept)
            context = from_windows(u, params.shape[-1])
            found = self.run(self.parameter_net, context, hyper[i], i)
            mean, scale, residual = found.unflatten(1, (-1, 3)).unbind(2)
            before = code(i, scale, mean)
            refined.append(self.predicted_residual(before, residual))
        return torch.cat(refined, dim=1)
