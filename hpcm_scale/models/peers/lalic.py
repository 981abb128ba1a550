"""LALIC: linear attention by Bi-RWKV blocks; unevenly grouped channels in two checkerboard passes.

Source: Feng et al., arXiv 2502.05741 (CVPR 2025). Shape letters: M latent channels, (h, w) the
latents' sides.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.config.peers.lalic import LalicConfig
from hpcm_scale.models.blocks.checkerboard_context import CheckerboardConv
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.rwkv import Gate, OmniShift, RwkvBlock
from hpcm_scale.models.blocks.sampling import conv, conv3, deconv
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.density import LIKELIHOOD_BOUND, FactorizedPrior, Gaussian, single
from hpcm_scale.models.slices import SlicePartition, place_parity, take_parity
from hpcm_scale.models.transforms import Transform

ANCHORS = 0
"""Parity of row + column of the positions that a group codes first."""
OTHERS = 1 - ANCHORS


def _blocks(config: LalicConfig, channels: int, count: int) -> list[nn.Module]:
    published = config.wkv == "published"
    return [RwkvBlock(channels, config.expansion, published) for _ in range(count)]


def analysis(config: LalicConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    stages, inputs = [], 3
    for width, depth in zip(config.widths, config.depths, strict=True):
        kernel = 5 if inputs == 3 else 3
        stages.append(nn.Sequential(conv(inputs, width, kernel), *_blocks(config, width, depth)))
        inputs = width
    return Transform([*stages, nn.Sequential(conv(inputs, config.latent_channels, 3))])


def synthesis(config: LalicConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    stages, inputs = [], config.latent_channels
    for width, depth in zip(config.widths[::-1], config.depths[::-1], strict=True):
        stages.append(nn.Sequential(deconv(inputs, width, 3), *_blocks(config, width, depth)))
        inputs = width
    return Transform([*stages, nn.Sequential(deconv(inputs, 3, 5))])


def hyper_analysis(config: LalicConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N, h/4, w/4)."""
    width = config.hyper_width
    return Transform(
        [
            nn.Sequential(
                conv(config.latent_channels, width, 5),
                *_blocks(config, width, config.hyper_depth),
            ),
            nn.Sequential(conv(width, config.hyper_channels, 5)),
        ]
    )


def hyper_synthesis(config: LalicConfig) -> Transform:
    """h_s: ẑ (B, N, h/4, w/4) -> (B, M, h, w)."""
    width = config.hyper_width
    return Transform(
        [
            nn.Sequential(
                deconv(config.hyper_channels, width, 5),
                *_blocks(config, width, config.hyper_depth),
            ),
            nn.Sequential(deconv(width, config.latent_channels, 5)),
        ]
    )


def _channel_context(config: LalicConfig, before: int, outputs: int) -> nn.Sequential:
    """Context of a group from the channels before it, at the same grid."""
    width, published = config.context_width, config.wkv == "published"
    return nn.Sequential(
        conv3(before, width),
        *(
            RwkvBlock(width, config.context_expansion, published)
            for _ in range(config.context_depth)
        ),
        Conv1x1(width, outputs),
    )


def _parameter_net(inputs: int, outputs: int, least: int) -> nn.Sequential:
    """(scale | mean) of a position from its contexts, narrowing in thirds."""
    first = max((2 * inputs + outputs) // 3, least)
    second = max((inputs + 2 * outputs) // 3, least)
    return nn.Sequential(Gate(inputs, first), Gate(first, second), Gate(second, outputs))


class Lalic(CodecNetwork[LalicConfig, SlicePartition]):
    """The codec network of one `LalicConfig`.

    Of each group the anchors (row + column even) are coded from the hyperprior and the groups
    before, the other positions from the group's anchors too, by the same net; the anchors have
    zeros there. The published program computes the parameter nets at all positions in both passes,
    the local contexts too, these also in the first pass, where nothing reads them. WKV sees whole
    maps: nothing here can be cut into tiles.
    """

    global_context = True
    published_calls = {  # noqa: RUF012
        r"parameter_nets\.\d+": 2.0,
        r"local_contexts\.\d+": 4.0,
    }

    def __init__(self, config: LalicConfig) -> None:
        bound = single(LIKELIHOOD_BOUND)
        super().__init__(
            config,
            SlicePartition(config.groups, anchors=ANCHORS),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=hyper_synthesis(config),
            z_prior=FactorizedPrior(config.hyper_channels, bound),
            density=Gaussian(single(0.11), bound),
        )
        groups = config.groups
        self.channel_contexts = nn.ModuleList(
            _channel_context(config, sum(groups[:k]), 2 * groups[k]) for k in range(1, len(groups))
        )
        self.local_contexts = nn.ModuleList(
            CheckerboardConv(count, 2 * count, 5, ANCHORS) for count in groups
        )
        self.parameter_nets = nn.ModuleList(
            _parameter_net(
                config.latent_channels + (4 if k else 2) * count,
                2 * count,
                config.least_parameter_width,
            )
            for k, count in enumerate(groups)
        )

    @property
    def published_dead_parameters(self) -> int:
        """The 5×5 kernels that each depthwise sum of convolutions amounts to."""
        shifts = [module for module in self.modules() if isinstance(module, OmniShift)]
        return sum(shift.channels * OmniShift.SIDE**2 for shift in shifts)

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, M, h, w).
            code: called twice a group, for its anchors and its other positions, with dense scale
                and mean; returns ŷ.

        Returns:
            ŷ (B, M, h, w).
        """
        hyper = [take_parity(params, parity) for parity in (ANCHORS, OTHERS)]
        done: list[Tensor] = []
        for k, local_context in enumerate(self.local_contexts):
            first, second = hyper
            if k:
                channels = self.run(self.channel_contexts[k - 1], torch.cat(done, dim=1))
                first, second = (
                    torch.cat([take_parity(channels, parity), known], dim=1)
                    for parity, known in zip((ANCHORS, OTHERS), hyper, strict=True)
                )
            net = self.parameter_nets[k]
            b, _, h, half = first.shape
            nothing = first.new_zeros(b, 2 * self.config.groups[k], h, half)
            scale, mean = self.run(net, torch.cat([nothing, first], dim=1)).chunk(2, dim=1)
            anchors = place_parity(code(2 * k, scale, mean), ANCHORS)
            local = self.run(local_context, anchors)
            scale, mean = self.run(net, torch.cat([local, second], dim=1)).chunk(2, dim=1)
            done.append(anchors + place_parity(code(2 * k + 1, scale, mean), OTHERS))
        return torch.cat(done, dim=1)
