"""ELIC: unevenly grouped channels, each in two checkerboard passes.

Source: He et al., arXiv 2203.10886 (CVPR 2022), in the reading whose size the HPCM papers print.
Shape letters: M latent channels, N transform channels, (h, w) the latents' sides.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.config.peers.elic import ElicConfig
from hpcm_scale.models.blocks.bottleneck import Bottleneck, gate_branches
from hpcm_scale.models.blocks.checkerboard_context import CheckerboardConv
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.density import GAUSSIAN, FactorizedPrior
from hpcm_scale.models.geometry import reach
from hpcm_scale.models.slices import SlicePartition, place_parity, take_parity
from hpcm_scale.models.transforms import Transform

ANCHORS = 1
"""Parity of row + column of the positions that a group codes first."""


class GatedAttention(nn.Module):
    """v + a·sigmoid(b), a and b residual units of v; (B, C, H, W) stays.

    Source: Cheng et al., arXiv 2001.01568, without its non-local block.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.trunk, self.mask = gate_branches(channels, depth)

    def forward(self, v: Tensor) -> Tensor:
        return v + self.trunk(v) * self.mask(v).sigmoid()


def _conv5(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 5, stride=stride, padding=2)


def _deconv5(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)


def _reach(config: ElicConfig) -> int:
    """Reach of g_a and of g_s: their layers mirror each other."""
    blocks, units = config.depth, config.attention_depth
    return reach([2, blocks + 2, blocks + units + 2, blocks + 2, units])


def _blocks(config: ElicConfig) -> list[nn.Module]:
    return [Bottleneck(config.width) for _ in range(config.depth)]


def analysis(config: ElicConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    n, m = config.width, config.latent_channels
    return Transform(
        [
            nn.Sequential(_conv5(3, n, 2), *_blocks(config)),
            nn.Sequential(
                _conv5(n, n, 2), *_blocks(config), GatedAttention(n, config.attention_depth)
            ),
            nn.Sequential(_conv5(n, n, 2), *_blocks(config)),
            nn.Sequential(_conv5(n, m, 2), GatedAttention(m, config.attention_depth)),
        ],
        _reach(config),
    )


def synthesis(config: ElicConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    n, m = config.width, config.latent_channels
    return Transform(
        [
            nn.Sequential(GatedAttention(m, config.attention_depth), _deconv5(m, n)),
            nn.Sequential(*_blocks(config), _deconv5(n, n)),
            nn.Sequential(
                GatedAttention(n, config.attention_depth), *_blocks(config), _deconv5(n, n)
            ),
            nn.Sequential(*_blocks(config), _deconv5(n, 3)),
        ],
        _reach(config),
    )


def hyper_analysis(config: ElicConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N_z, h/4, w/4)."""
    n = config.width
    return Transform(
        [
            nn.Sequential(
                nn.Conv2d(config.latent_channels, n, 3, padding=1),
                nn.ReLU(inplace=True),
                _conv5(n, n, 2),
                nn.ReLU(inplace=True),
                _conv5(n, config.hyper_channels, 2),
            )
        ]
    )


def hyper_synthesis(config: ElicConfig) -> Transform:
    """h_s: ẑ (B, N_z, h/4, w/4) -> (B, 2M, h, w)."""
    first, second = config.synthesis_widths
    return Transform(
        [
            nn.Sequential(
                _deconv5(config.hyper_channels, first),
                nn.ReLU(inplace=True),
                _deconv5(first, second),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(second, 2 * config.latent_channels, 3, padding=1),
            )
        ]
    )


def _channel_context(before: int, outputs: int, widths: tuple[int, int]) -> nn.Sequential:
    """Context of a group from the channels before it, at the same grid."""
    return nn.Sequential(
        _conv5(before, widths[0]),
        nn.ReLU(inplace=True),
        _conv5(widths[0], widths[1]),
        nn.ReLU(inplace=True),
        _conv5(widths[1], outputs),
    )


def _parameter_net(inputs: int, outputs: int) -> nn.Sequential:
    """(scale | mean) of a position from its contexts."""
    first, second = 5 * outputs // 3, 4 * outputs // 3
    return nn.Sequential(
        Conv1x1(inputs, first),
        nn.ReLU(inplace=True),
        Conv1x1(first, second),
        nn.ReLU(inplace=True),
        Conv1x1(second, outputs),
    )


class Elic(CodecNetwork[ElicConfig, SlicePartition]):
    """The codec network of one `ElicConfig`.

    Of each group the anchors (row + column odd) are coded from the hyperprior and the groups
    before, the other positions from the group's anchors too. The published program computes the
    parameter nets and local contexts at all positions, this one where they are read.
    """

    published_calls = {r"(anchor_nets|other_nets|local_contexts)\.\d+": 2.0}  # noqa: RUF012

    def __init__(self, config: ElicConfig) -> None:
        super().__init__(
            config,
            SlicePartition(config.groups, anchors=ANCHORS),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=hyper_synthesis(config),
            z_prior=FactorizedPrior(config.hyper_channels),
            density=GAUSSIAN,
        )
        params, groups = 2 * config.latent_channels, config.groups
        self.channel_contexts = nn.ModuleList(
            _channel_context(sum(groups[:k]), 2 * groups[k], config.context_widths)
            for k in range(1, len(groups))
        )
        self.local_contexts = nn.ModuleList(
            CheckerboardConv(count, 2 * count, 5, ANCHORS) for count in groups
        )
        self.anchor_nets = nn.ModuleList(
            _parameter_net(params + (2 * count if k else 0), 2 * count)
            for k, count in enumerate(groups)
        )
        self.other_nets = nn.ModuleList(
            _parameter_net(params + (4 if k else 2) * count, 2 * count)
            for k, count in enumerate(groups)
        )

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps; arguments and result as `CodecNetwork.code_steps`."""
        parities = (ANCHORS, 1 - ANCHORS)
        hyper = [take_parity(params, parity) for parity in parities]
        done: list[Tensor] = []
        for k, local_context in enumerate(self.local_contexts):
            context = hyper
            if k:
                channels = self.run(self.channel_contexts[k - 1], torch.cat(done, dim=1))
                context = [
                    torch.cat([take_parity(channels, parity), known], dim=1)
                    for parity, known in zip(parities, hyper, strict=True)
                ]
            scale, mean = self.run(self.anchor_nets[k], context[0]).chunk(2, dim=1)
            anchors = place_parity(code(2 * k, scale, mean), ANCHORS)
            local = self.run(local_context, anchors)
            inputs = torch.cat([local, context[1]], dim=1)
            scale, mean = self.run(self.other_nets[k], inputs).chunk(2, dim=1)
            done.append(anchors + place_parity(code(2 * k + 1, scale, mean), 1 - ANCHORS))
        return torch.cat(done, dim=1)
