"""DCAE: convolutions and window attention in turn; slices of channels that read a dictionary.

Source: Lu et al., arXiv 2504.00496 (CVPR 2025). Shape letters: M latent channels, (h, w) the
latents' sides.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.config.peers.dcae import DCAE_SLICES, DcaeConfig
from hpcm_scale.models.blocks.bottleneck import Bottleneck
from hpcm_scale.models.blocks.dictionary_attention import Dictionary, DictionaryAttention
from hpcm_scale.models.blocks.hyper_pair import HyperPair
from hpcm_scale.models.blocks.sampling import conv, conv3, deconv
from hpcm_scale.models.blocks.scaled_attention import AttentionStage
from hpcm_scale.models.codec_network import Code
from hpcm_scale.models.density import GAUSSIAN, FactorizedPrior
from hpcm_scale.models.peers.residual_slices import ResidualSliceNetwork
from hpcm_scale.models.slices import SlicePartition
from hpcm_scale.models.transforms import Transform

WINDOW, HYPER_WINDOW = 8, 4
"""Sides of the windows of the transforms and of the hyper nets."""
HYPER_GRID = 32
"""Image positions per position of the hyper nets' attention, along each side."""


def _bottlenecks(config: DcaeConfig, channels: int) -> list[nn.Module]:
    return [Bottleneck(channels) for _ in range(config.residual_depth)]


def _down(config: DcaeConfig, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, 5), *_bottlenecks(config, outputs))


def _up(config: DcaeConfig, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_bottlenecks(config, inputs), deconv(inputs, outputs, 5))


def _stage(config: DcaeConfig, level: int) -> AttentionStage:
    return AttentionStage(config.widths[level], config.heads[level], WINDOW, config.depths[level])


def _hyper_stage(config: DcaeConfig) -> AttentionStage:
    return AttentionStage(config.hyper_width, config.hyper_heads, HYPER_WINDOW, config.hyper_depth)


def analysis(config: DcaeConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    stages, inputs = [], 3
    for level, width in enumerate(config.widths):
        stages.append(nn.Sequential(_down(config, inputs, width), _stage(config, level)))
        inputs = width
    return Transform([*stages, nn.Sequential(conv(inputs, config.latent_channels, 5))])


def synthesis(config: DcaeConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    first, second, third = config.widths
    return Transform(
        [
            nn.Sequential(deconv(config.latent_channels, third, 5), _stage(config, 2)),
            nn.Sequential(_up(config, third, second), _stage(config, 1)),
            nn.Sequential(_up(config, second, first), _stage(config, 0)),
            nn.Sequential(_up(config, first, 3)),
        ]
    )


def hyper_analysis(config: DcaeConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N, h/4, w/4)."""
    width = config.hyper_width
    return Transform(
        [
            nn.Sequential(_down(config, config.latent_channels, width), _hyper_stage(config)),
            nn.Sequential(conv3(width, config.hyper_channels, stride=2)),
        ]
    )


def hyper_synthesis(config: DcaeConfig) -> Transform:
    """One of the two nets of h_s: ẑ (B, N, h/4, w/4) -> (B, M, h, w)."""
    width = config.hyper_width
    return Transform(
        [
            nn.Sequential(deconv(config.hyper_channels, width, 3), _hyper_stage(config)),
            nn.Sequential(_up(config, width, config.latent_channels)),
        ]
    )


class Dcae(ResidualSliceNetwork[DcaeConfig]):
    """The codec network of one `DcaeConfig`."""

    def __init__(self, config: DcaeConfig) -> None:
        m = config.latent_channels
        size = m // DCAE_SLICES
        super().__init__(
            config,
            SlicePartition([size] * DCAE_SLICES),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=HyperPair(hyper_synthesis(config), hyper_synthesis(config)),
            z_prior=FactorizedPrior(config.hyper_channels),
            density=GAUSSIAN,
        )
        before = [2 * m + size * i for i in range(DCAE_SLICES)]
        width = config.dictionary_width
        self.dictionary = Dictionary(config.entries, width)
        self.attentions = nn.ModuleList(
            DictionaryAttention(count, width, config.dictionary_heads, m) for count in before
        )
        self.add_slice_nets([count + m for count in before], config.net_widths)

    @property
    def image_multiple(self) -> int:
        """Multiple of pixels that an image's sides must be of: hyper maps come in whole windows."""
        return HYPER_WINDOW * HYPER_GRID

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w): (mean | scale).
            code: called once a slice with its scale and mean; returns ŷ.

        Returns:
            What g_s reads (B, M, h, w): ŷ, residuals included.
        """
        mean, scale = params.chunk(2, dim=1)
        dictionary = self.dictionary()
        done: list[Tensor] = []
        for i, attention in enumerate(self.attentions):
            query = torch.cat([scale, mean, *done], dim=1)
            found = self.run(attention, query, dictionary)
            context = torch.cat([query, found], dim=1)
            done.append(self.code_slice(i, code, context, context))
        return torch.cat(done, dim=1)
