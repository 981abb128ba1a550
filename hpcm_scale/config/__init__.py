"""The configuration of models and runs: strict pydantic models, YAML in, `--set key=value` over it.

The docstring under a field is its manual. A bad value raises ConfigError naming file, field,
value and rule. The names below are imported when they are first used: coding a picture needs few.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcm_scale.config.data import DataConfig
    from hpcm_scale.config.ladder import (
        AblationsConfig,
        LadderConfig,
        RateRule,
        SizeConfig,
        load_ladder,
    )
    from hpcm_scale.config.model import (
        CHARM_SLICES,
        HpcmConfig,
        ModelConfig,
        SharedNetConfig,
    )
    from hpcm_scale.config.model_kinds import parse_model
    from hpcm_scale.config.run import (
        CheckpointConfig,
        GuardConfig,
        LossConfig,
        ModelChoice,
        OptimizerConfig,
        RunConfig,
        load_run,
    )
    from hpcm_scale.config.strict import Positive, StrictModel, configs_folder, parse, read_yaml

__all__ = [
    "CHARM_SLICES",
    "AblationsConfig",
    "CheckpointConfig",
    "DataConfig",
    "GuardConfig",
    "HpcmConfig",
    "LadderConfig",
    "LossConfig",
    "ModelChoice",
    "ModelConfig",
    "OptimizerConfig",
    "Positive",
    "RateRule",
    "RunConfig",
    "SharedNetConfig",
    "SizeConfig",
    "StrictModel",
    "configs_folder",
    "load_ladder",
    "load_run",
    "parse",
    "parse_model",
    "read_yaml",
]

_HOMES = {
    "AblationsConfig": "ladder",
    "CHARM_SLICES": "model",
    "CheckpointConfig": "run",
    "DataConfig": "data",
    "GuardConfig": "run",
    "HpcmConfig": "model",
    "LadderConfig": "ladder",
    "LossConfig": "run",
    "ModelChoice": "run",
    "ModelConfig": "model",
    "OptimizerConfig": "run",
    "Positive": "strict",
    "RateRule": "ladder",
    "RunConfig": "run",
    "SharedNetConfig": "model",
    "SizeConfig": "ladder",
    "StrictModel": "strict",
    "configs_folder": "strict",
    "load_ladder": "ladder",
    "load_run": "run",
    "parse": "strict",
    "parse_model": "model_kinds",
    "read_yaml": "strict",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
