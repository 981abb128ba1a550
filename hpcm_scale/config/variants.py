"""The model variants by name, and the multipliers that scale one into a family."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcm_scale.config.model import ModelConfig
from hpcm_scale.config.model_kinds import parse_model
from hpcm_scale.config.run import ModelChoice
from hpcm_scale.config.strict import configs_folder, read_yaml
from hpcm_scale.errors import ConfigError


def variants() -> list[str]:
    """Names of the files in configs/models."""
    return sorted(path.stem for path in configs_folder("models").glob("*.yaml"))


def model_config(
    variant: str, width: float = 1.0, depth: float = 1.0, overrides: dict[str, Any] | None = None
) -> ModelConfig:
    """The configuration of a variant, scaled by the width and depth multipliers.

    Args:
        variant: a name in configs/models, or a path to such a YAML file.
        width: multiplies every channel count.
        depth: multiplies the number of residual blocks of every group that has any.
        overrides: fields set after the multipliers; the papers' figures no longer apply then.

    Raises:
        ConfigError: for an unknown variant or a configuration whose parts do not fit.
    """
    path = Path(variant)
    if path.suffix not in (".yaml", ".yml"):
        path = configs_folder("models") / f"{variant}.yaml"
    if not path.is_file():
        raise ConfigError(f"model: {variant!r} is not one of {', '.join(variants())}")
    config = parse_model(read_yaml(path), str(path))
    if width != 1.0 or depth != 1.0:
        config = scale_config(config, width, depth)
    if overrides:
        values = config.model_dump() | {"published": None} | overrides
        config = parse_model(values, f"{path} with overrides")
    return config


def chosen_model(choice: ModelChoice) -> ModelConfig:
    """The configuration that a run chooses.

    Raises:
        ConfigError: as `model_config`.
    """
    config = model_config(choice.variant, choice.width, choice.depth, choice.overrides)
    return config if choice.rates is None else with_rates(config, choice.rates)


def with_rates(config: ModelConfig, rates: Sequence[float]) -> ModelConfig:
    """`config` with a gain vector for each λ of `rates`.

    Raises:
        ConfigError: unless there are two or more, increasing.
    """
    return parse_model(config.model_dump() | {"rates": tuple(rates)}, config.name)


def scale_config(config: ModelConfig, width: float, depth: float = 1.0) -> ModelConfig:
    """`config` with its channels times `width` and its block counts times `depth`.

    Each architecture's rules: `scaled` of its configuration.

    Raises:
        ConfigError: if a multiplier is not above 0 or leaves too few channels.
    """
    if width <= 0 or depth <= 0:
        raise ConfigError(f"model: width {width} and depth {depth} must both be above 0")
    return config.scaled(width, depth)
