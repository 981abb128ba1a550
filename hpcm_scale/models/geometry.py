"""Geometry, from a network's configuration alone: strides, reach, padding. No tensors."""

import math
from collections.abc import Sequence

from hpcm_scale.config import HpcmConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.schedule import Schedule, schedule_named

LATENT_STRIDE, HYPER_STRIDE = 16, 64
"""Pixels a latent and a hyper-latent stand for, along each side, in every network."""


def reach(positions: Sequence[int]) -> int:
    """`Transform.reach` of a transform of convolutions, in pixels.

    Args:
        positions: that all layers together reach on the grid of stride 1, of stride 2, of 4, ...
    """
    pixels = sum(count << level for level, count in enumerate(positions))
    return math.ceil(pixels / LATENT_STRIDE) * LATENT_STRIDE


def hpcm_reach(depths: Sequence[int]) -> int:
    """The reach of g_a or g_s of an `HpcmConfig`, of so many blocks at each level."""
    # A block reaches one position at its level; so at most does a resampling.
    return reach([0, *(depth + 1 for depth in depths)])


def hpcm_working_bytes(config: HpcmConfig) -> float:
    """Bytes a pixel of the image that one pass of g_a or g_s works in, in float32."""
    # A block holds its input, what it mixes, its hidden channels and its output, at most at
    # once; half as much again for what the allocator and the convolutions keep.
    widths = (*config.widths, config.latent_channels)
    return 1.5 * max(
        4 * (config.expansion + 3) * width / 4 ** (level + 1) for level, width in enumerate(widths)
    )


def hpcm_schedule(config: HpcmConfig) -> Schedule:
    """The coding schedule of an HPCM network.

    Raises:
        ConfigError: if its channel groups do not divide the latent channels.
    """
    schedule = schedule_named(config.schedule)
    for scale in schedule.scales:
        if config.latent_channels % scale.groups:
            raise ConfigError(
                f"latent_channels: {config.latent_channels} is not a multiple of "
                f"{scale.groups}, the channel groups of schedule {config.schedule}"
            )
    return schedule


def hpcm_image_multiple(config: HpcmConfig, schedule: Schedule) -> int:
    """Multiple of an image's sides with which grids halve evenly and hold whole windows."""
    multiple = HYPER_STRIDE
    for s, scale in enumerate(schedule.scales):
        pixels = LATENT_STRIDE << (len(schedule.scales) - 1 - s)
        period = max(len(table[0]) for table in scale.steps)
        window = config.windows[s] if config.fusion == "attention" else 1
        window_pixels = (pixels if config.hierarchical else LATENT_STRIDE) * window
        multiple = math.lcm(multiple, pixels * period, window_pixels)
    return multiple
