"""MLIC++: slices in two checkerboard passes, with local, global and channel-wise contexts.

Source: Jiang et al., arXiv 2307.15421. Shape letters: M latent channels in slices of u, N transform
channels, (h, w) the latents' sides.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.config.peers.mlicpp import MlicppConfig
from hpcm_scale.models.blocks.linear_attention import CheckerboardGlobalContext, GlobalContext
from hpcm_scale.models.blocks.local_attention import LocalContext
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.sampling import (
    ResidualBlock,
    ResidualDown,
    ResidualUp,
    SubpixelConv,
    conv3,
)
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.density import GAUSSIAN, FactorizedPrior
from hpcm_scale.models.geometry import reach
from hpcm_scale.models.slices import SlicePartition, place_parity, take_parity
from hpcm_scale.models.transforms import Transform

ANCHORS = 1
"""Parity of row + column of the positions that a slice codes first."""
OTHERS = 1 - ANCHORS


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(channels, channels, F.gelu) for _ in range(count)]


def analysis(config: MlicppConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    n = config.width
    stages = [
        nn.Sequential(ResidualDown(inputs, n, F.gelu), *_blocks(n, config.depth))
        for inputs in (3, n, n)
    ]
    stages.append(nn.Sequential(conv3(n, config.latent_channels, stride=2)))
    # A residual block reaches two positions, half of a resampling one on either side of it.
    blocks = 2 * config.depth
    return Transform(stages, reach([1, 2 + blocks, 2 + blocks, 2 + blocks]))


def synthesis(config: MlicppConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    n, m, more = config.width, config.latent_channels, config.depth - 1
    blocks = 2 * config.depth
    first = n if config.release == "2023" else m
    return Transform(
        [
            nn.Sequential(
                ResidualBlock(m, first, F.gelu),
                *_blocks(first, more),
                ResidualUp(first, n, F.gelu),
            ),
            nn.Sequential(*_blocks(n, config.depth), ResidualUp(n, n, F.gelu)),
            nn.Sequential(*_blocks(n, config.depth), ResidualUp(n, n, F.gelu)),
            nn.Sequential(*_blocks(n, config.depth), SubpixelConv(n, 3)),
        ],
        reach([0, 2 + blocks, 2 + blocks, 2 + blocks, 1 + blocks]),
    )


def hyper_analysis(config: MlicppConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N_z, h/4, w/4)."""
    n = config.width
    return Transform(
        [
            nn.Sequential(conv3(config.latent_channels, n), nn.GELU(), conv3(n, n), nn.GELU()),
            nn.Sequential(conv3(n, n, stride=2), nn.GELU(), conv3(n, n), nn.GELU()),
            nn.Sequential(conv3(n, config.hyper_channels, stride=2)),
        ]
    )


def hyper_synthesis(config: MlicppConfig) -> Transform:
    """h_s: ẑ (B, N_z, h/4, w/4) -> (B, 2M, h, w)."""
    m = config.latent_channels
    wide = 3 * m // 2
    return Transform(
        [
            nn.Sequential(
                conv3(config.hyper_channels, m), nn.GELU(), SubpixelConv(m, m), nn.GELU()
            ),
            nn.Sequential(conv3(m, wide), nn.GELU(), SubpixelConv(wide, wide), nn.GELU()),
            nn.Sequential(conv3(wide, 2 * m)),
        ]
    )


def _net(layer: Callable[[int, int], nn.Module], *widths: int) -> nn.Sequential:
    """Layers through `widths` channels with GELU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [layer(inputs, outputs), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _parameter_net(inputs: int, unit: int) -> nn.Sequential:
    """(scale | mean) of a position from its contexts."""
    return _net(Conv1x1, inputs, 10 * unit, 8 * unit, 4 * unit, 2 * unit)


class ResidualPrediction(nn.Module):
    """Half a tangent of what rounding took from a slice: (B, M + (i + 1)·u, H, W) -> (B, u, H, W).

    Source: Minnen and Singh, arXiv 2007.08739.
    """

    def __init__(self, config: MlicppConfig, before: int) -> None:
        super().__init__()
        unit = config.slice_channels
        inputs = config.latent_channels + (before + 1) * unit
        steps = [(inputs * (4 - k) + unit * k) // 4 for k in range(1, 4)]
        hidden = steps if config.release == "2023" else (7 * unit, 4 * unit)
        self.net = _net(conv3, inputs, *hidden, unit)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.net(x).tanh()


class SliceSum(nn.Module):
    """Sum of a decoded slice and its predicted residual."""

    def forward(self, coded: Tensor, residual: Tensor) -> Tensor:
        return coded + residual


class Mlicpp(CodecNetwork[MlicppConfig, SlicePartition]):
    """The codec network of one `MlicppConfig`.

    Of each slice the anchors (row + column odd) are coded from the hyperprior and the slices
    before, the other positions from the slice's anchors too. The published program computes
    parameter nets and local attention at all positions, this one where they are read. The global
    contexts see whole maps: nothing here can be cut into tiles.
    """

    global_context = True
    published_calls = {  # noqa: RUF012
        r"(anchor|other)_nets\.\d+": 2.0,
        r"local_contexts\.\d+\.(attend|fusion|proj|mlp)": 2.0,
    }

    def __init__(self, config: MlicppConfig) -> None:
        super().__init__(
            config,
            SlicePartition([config.slice_channels] * config.slices, anchors=ANCHORS),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=hyper_synthesis(config),
            z_prior=FactorizedPrior(config.hyper_channels),
            density=GAUSSIAN,
        )
        unit, params = config.slice_channels, 2 * config.latent_channels
        every, later = range(config.slices), range(1, config.slices)
        self.channel_contexts = nn.ModuleList(
            _net(conv3, i * unit, 6 * unit, 4 * unit, 4 * unit) for i in later
        )
        self.global_contexts = nn.ModuleList(GlobalContext(unit, i) for i in later)
        self.checkerboard_contexts = nn.ModuleList(
            CheckerboardGlobalContext(unit, ANCHORS) for _ in later
        )
        self.local_contexts = nn.ModuleList(LocalContext(unit, ANCHORS) for _ in every)
        self.anchor_nets = nn.ModuleList(
            _parameter_net(params + (6 * unit if i else 0), unit) for i in every
        )
        self.other_nets = nn.ModuleList(
            _parameter_net(params + (10 if i else 2) * unit, unit) for i in every
        )
        self.anchor_residuals = nn.ModuleList(ResidualPrediction(config, i) for i in every)
        self.other_residuals = nn.ModuleList(ResidualPrediction(config, i) for i in every)
        self.slice_sum = SliceSum()

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w), of whose last M the residual predictions read.
            code: called twice a slice, for its anchors and its other positions, with dense scale
                and mean; returns symbol + mean, to which the predicted residual is added here.

        Returns:
            ŷ (B, M, h, w), residuals included.
        """
        hyper = [take_parity(params, parity) for parity in (ANCHORS, OTHERS)]
        features = params[:, self.config.latent_channels :]
        done: list[Tensor] = []
        for i in range(self.config.slices):
            first, second = hyper
            if i:
                before = torch.cat(done, dim=1)
                found = [
                    self.run(self.global_contexts[i - 1], before),
                    self.run(self.channel_contexts[i - 1], before),
                ]
                first, second = (
                    torch.cat([*(take_parity(context, parity) for context in found), known], dim=1)
                    for parity, known in zip((ANCHORS, OTHERS), hyper, strict=True)
                )
            scale, mean = self.run(self.anchor_nets[i], first).chunk(2, dim=1)
            coded = code(2 * i, scale, mean)
            inputs = torch.cat([features, *done, place_parity(coded, ANCHORS)], dim=1)
            residual = take_parity(self.run(self.anchor_residuals[i], inputs), ANCHORS)
            anchors = place_parity(self.slice_sum(coded, residual), ANCHORS)

            contexts = [self.run(self.local_contexts[i], anchors)]
            if i:
                seen = self.run(self.checkerboard_contexts[i - 1], done[-1], anchors)
                contexts.append(take_parity(seen, OTHERS))
            inputs = torch.cat([*contexts, second], dim=1)
            scale, mean = self.run(self.other_nets[i], inputs).chunk(2, dim=1)
            coded = code(2 * i + 1, scale, mean)
            known = anchors + place_parity(coded, OTHERS)
            inputs = torch.cat([features, *done, known], dim=1)
            residual = take_parity(self.run(self.other_residuals[i], inputs), OTHERS)
            done.append(anchors + place_parity(self.slice_sum(coded, residual), OTHERS))
        return torch.cat(done, dim=1)
