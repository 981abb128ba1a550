"""Analysis and synthesis transforms: image <-> latents, latents <-> hyper-latents.

A transform is a list of stages (a resampling and the residual blocks at its resolution); the stage
is what activation checkpointing recomputes.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from hpcm_scale.config import HpcmConfig
from hpcm_scale.models.blocks.resampling import down, up
from hpcm_scale.models.blocks.residual import PConvRB
from hpcm_scale.models.geometry import hpcm_reach, hpcm_working_bytes

ModuleCall = Callable[..., Tensor]
"""Calls a module on its inputs: directly, or through activation checkpointing."""


def call(module: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The `ModuleCall` that keeps every activation."""
    return module(*inputs)


class Transform(nn.ModuleList):
    """Stages applied one after the other.

    Args:
        stages: in order.
        reach: pixels beyond its own that a latent depends on, or influences, in whole latents; None
            where that is the whole image, or not known.
        working_bytes: bytes a pixel of the image that one pass works in, in float32; None where it
            is to be counted.
    """

    def __init__(
        self,
        stages: Iterable[nn.Module],
        reach: int | None = None,
        working_bytes: float | None = None,
    ) -> None:
        super().__init__(stages)
        self.reach = reach
        self.working_bytes = working_bytes

    def forward(self, x: Tensor, run: ModuleCall = call) -> Tensor:
        for stage in self:
            x = run(stage, x)
        return x


def _blocks(config: HpcmConfig, channels: int, count: int) -> list[nn.Module]:
    return [PConvRB(channels, config.partial_ratio, config.expansion) for _ in range(count)]


def analysis(config: HpcmConfig) -> Transform:
    """g_a: (B, 3, H, W) -> y (B, M, H/16, W/16)."""
    stages, inputs = [], 3
    channels = (*config.widths, config.latent_channels)
    for outputs, depth in zip(channels, config.analysis_depths, strict=True):
        kernel = config.outer_kernel if inputs == 3 else 2
        stages.append(
            nn.Sequential(down(inputs, outputs, kernel), *_blocks(config, outputs, depth))
        )
        inputs = outputs
    return Transform(stages, hpcm_reach(config.analysis_depths), hpcm_working_bytes(config))


def synthesis(config: HpcmConfig) -> Transform:
    """g_s: ŷ (B, M, H/16, W/16) -> x̂ (B, 3, H, W)."""
    stages = []
    channels = (3, *config.widths, config.latent_channels)
    for i in range(3, -1, -1):
        blocks = _blocks(config, channels[i + 1], config.synthesis_depths[i])
        kernel = config.outer_kernel if i == 0 else 2
        stages.append(nn.Sequential(*blocks, up(channels[i + 1], channels[i], kernel)))
    return Transform(stages, hpcm_reach(config.synthesis_depths), hpcm_working_bytes(config))


def hyper_analysis(config: HpcmConfig) -> Transform:
    """h_a: y (B, M, h, w) -> z (B, N, h/4, w/4)."""
    m, width, n = config.latent_channels, config.hyper_width, config.hyper_channels
    return Transform(
        [
            nn.Sequential(*_blocks(config, m, config.hyper_depths[0]), down(m, width, 2)),
            nn.Sequential(*_blocks(config, width, config.hyper_depths[1]), down(width, n, 2)),
        ]
    )


def hyper_synthesis(config: HpcmConfig, outputs: int) -> Transform:
    """h_s: ẑ (B, N, h/4, w/4) -> (B, outputs, h, w), 2M outputs (scale | mean) in HPCM."""
    width, n = config.hyper_width, config.hyper_channels
    return Transform(
        [
            nn.Sequential(up(n, width, 2), *_blocks(config, width, config.hyper_depths[1])),
            nn.Sequential(up(width, outputs, 2), *_blocks(config, outputs, config.hyper_depths[0])),
        ]
    )
