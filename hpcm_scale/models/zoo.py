"""The model variants by name, and the dial that scales one into a family."""

from pathlib import Path
from typing import Any

import torch

from hpcm_scale.config import ModelConfig, configs_folder, latent_multiple, parse, read_yaml
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.baselines.charm import Charm
from hpcm_scale.models.baselines.dcvc_dc import DcvcDcIntra
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.hpcm import HPCM

ARCHITECTURES = {"hpcm": HPCM, "charm": Charm, "dcvc-dc-intra": DcvcDcIntra}


def variants() -> list[str]:
    """Names of the files in configs/models."""
    return sorted(path.stem for path in configs_folder("models").glob("*.yaml"))


def model_config(
    variant: str, width: float = 1.0, depth: float = 1.0, overrides: dict[str, Any] | None = None
) -> ModelConfig:
    """The configuration of a variant, turned by the width and depth dials.

    Args:
        variant: a name in configs/models, or a path to such a YAML file.
        width: multiplies every channel count.
        depth: multiplies the number of residual blocks of every group that has any.
        overrides: fields set after the dials; the papers' figures no longer apply then.

    Raises:
        ConfigError: for an unknown variant or a configuration whose parts do not fit.
    """
    path = Path(variant)
    if path.suffix not in (".yaml", ".yml"):
        path = configs_folder("models") / f"{variant}.yaml"
    if not path.is_file():
        raise ConfigError(f"model: {variant!r} is not one of {', '.join(variants())}")
    config = parse(ModelConfig, read_yaml(path), str(path))
    if width != 1.0 or depth != 1.0:
        config = scale_config(config, width, depth)
    if overrides:
        values = config.model_dump() | {"published": None} | overrides
        config = parse(ModelConfig, values, f"{path} with overrides")
    return config


def scale_config(config: ModelConfig, width: float, depth: float = 1.0) -> ModelConfig:
    """`config` with its channels times `width` and its block counts times `depth`.

    Rules, each from the family itself or the field's practice:
    - All channel counts grow in proportion, as Base -> 1B roughly does (96..384 -> 192..768): the
      shape of the network stays, so one dial gives one family (arXiv 2001.08361, section 2.1).
    - Latent channels are rounded to 8, the schedule's channel groups (to 40 in charm, whose slices
      are a tenth of them); other channels to the partial convolution's ratio, so that its share
      stays exact.
    - Heads keep their size and follow the width in number (as in arXiv 2203.15556, table A9).
    - Block counts grow in proportion and never fall below 1 where the variant has any.

    Raises:
        ConfigError: if a dial is not above 0 or leaves too few channels.
    """
    if width <= 0 or depth <= 0:
        raise ConfigError(f"model: width {width} and depth {depth} must both be above 0")

    def channels(count: int, multiple: int) -> int:
        return max(multiple, round(count * width / multiple) * multiple)

    def blocks(count: int) -> int:
        return max(1, round(count * depth)) if count else 0

    def net(shape: dict[str, int]) -> dict[str, int]:
        return {part: blocks(count) for part, count in shape.items()}

    values = config.model_dump()
    ratio = config.partial_ratio
    m = channels(config.latent_channels, latent_multiple(config.architecture))
    head_size = 2 * config.latent_channels / config.heads
    values |= {
        "published": None,
        "name": f"{config.name}-w{width:g}" + (f"-d{depth:g}" if depth != 1.0 else ""),
        "latent_channels": m,
        "hyper_channels": channels(config.hyper_channels, ratio),
        "hyper_width": channels(config.hyper_width, ratio),
        "widths": [channels(count, ratio) for count in config.widths],
        "heads": min(
            (heads for heads in range(1, 2 * m + 1) if 2 * m % heads == 0),
            key=lambda heads: abs(2 * m / heads - head_size),
        ),
        "analysis_depths": [blocks(count) for count in config.analysis_depths],
        "synthesis_depths": [blocks(count) for count in config.synthesis_depths],
        "hyper_depths": [blocks(count) for count in config.hyper_depths],
        "adaptor_depths": [blocks(count) for count in config.adaptor_depths],
        "shared_s12": net(values["shared_s12"]),
        "shared_s3": net(values["shared_s3"]),
    }
    return parse(ModelConfig, values, f"{config.name} at width {width:g}, depth {depth:g}")


def build(config: ModelConfig) -> CodecNetwork:
    """The network of `config`, initialised by torch's global generator, in channels_last memory."""
    network = ARCHITECTURES[config.architecture](config)
    return network.to(memory_format=torch.channels_last)
