"""MambaVC: selective scans between plain convolutions; five slices of channels.

Source: Qin et al., arXiv 2405.15413. Shape letters: M latent channels, (h, w) the latents' sides.
"""

from torch import nn

from hpcm_scale.config.peers.mambavc import MAMBAVC_SLICES, MambavcConfig
from hpcm_scale.models.blocks.hyper_pair import HyperPair
from hpcm_scale.models.blocks.sampling import conv, deconv
from hpcm_scale.models.blocks.selective_scan import StateSpaceBlock
from hpcm_scale.models.density import LIKELIHOOD_BOUND, FactorizedPrior, Gaussian, single
from hpcm_scale.models.geometry import LATENT_STRIDE
from hpcm_scale.models.peers.residual_slices import (
    CONTEXT_WINDOW,
    GatedSliceNetwork,
    swin_pair,
)
from hpcm_scale.models.slices import SlicePartition
from hpcm_scale.models.transforms import Transform


def _blocks(config: MambavcConfig, count: int) -> list[nn.Module]:
    width = config.width
    return [
        StateSpaceBlock(width, config.expansion * width, config.states, config.rank)
        for _ in range(count)
    ]


def _working_bytes(config: MambavcConfig) -> float:
    """Bytes a pixel of g_a and of g_s.

    A block at half the image's sides holds some forty maps of its inner channels, four directions
    of inputs, step sizes and results among them. States are held a chunk of places at a time.
    """
    return 4 * 40 * config.expansion * config.width / 4


def analysis(config: MambavcConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    stages, inputs = [], 3
    for depth in config.depths:
        kernel = 5 if inputs == 3 else 3
        stages.append(nn.Sequential(conv(inputs, config.width, kernel), *_blocks(config, depth)))
        inputs = config.width
    last = nn.Sequential(conv(inputs, config.latent_channels, 3))
    return Transform([*stages, last], working_bytes=_working_bytes(config))


def synthesis(config: MambavcConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    stages, inputs = [], config.latent_channels
    for depth in config.depths[::-1]:
        stages.append(nn.Sequential(deconv(inputs, config.width, 3), *_blocks(config, depth)))
        inputs = config.width
    last = nn.Sequential(deconv(inputs, 3, 5))
    return Transform([*stages, last], working_bytes=_working_bytes(config))


def hyper_analysis(config: MambavcConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N, h/4, w/4)."""
    return Transform(
        [
            nn.Sequential(
                conv(config.latent_channels, config.width, 3), *_blocks(config, config.hyper_depth)
            ),
            nn.Sequential(conv(config.width, config.hyper_channels, 3)),
        ]
    )


def hyper_synthesis(config: MambavcConfig) -> Transform:
    """One of the two nets of h_s: ẑ (B, N, h/4, w/4) -> (B, M, h, w)."""
    return Transform(
        [
            nn.Sequential(
                deconv(config.hyper_channels, config.width, 3),
                *_blocks(config, config.hyper_depth),
            ),
            nn.Sequential(deconv(config.width, config.latent_channels, 3)),
        ]
    )


class Mambavc(GatedSliceNetwork[MambavcConfig]):
    """The codec network of one `MambavcConfig`."""

    def __init__(self, config: MambavcConfig) -> None:
        bound = single(LIKELIHOOD_BOUND)
        size = config.latent_channels // MAMBAVC_SLICES
        super().__init__(
            config,
            SlicePartition([size] * MAMBAVC_SLICES),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=HyperPair(hyper_synthesis(config), hyper_synthesis(config)),
            z_prior=FactorizedPrior(config.hyper_channels, bound),
            density=Gaussian(single(0.11), bound),
        )
        inputs = [config.latent_channels + size * i for i in range(MAMBAVC_SLICES)]
        width, heads = config.context_width, config.context_heads
        self.add_gates(inputs, inputs, width, lambda: swin_pair(width, heads))
        self.add_slice_nets(inputs, config.net_widths)

    @property
    def image_multiple(self) -> int:
        """Multiple of pixels that an image's sides must be of: latents come in whole windows."""
        return CONTEXT_WINDOW * LATENT_STRIDE
