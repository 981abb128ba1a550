"""The configuration of models and runs: strict pydantic models, YAML in, `--set key=value` over it.

The docstring under a field is its manual. A bad value raises ConfigError naming file, field,
value and rule.
"""

from hpcm_scale.config.data import DataConfig
from hpcm_scale.config.ladder import (
    AblationsConfig,
    LadderConfig,
    RateRule,
    SizeConfig,
    load_ladder,
)
from hpcm_scale.config.model import CHARM_SLICES, ModelConfig, SharedNetConfig, latent_multiple
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
    "latent_multiple",
    "load_ladder",
    "load_run",
    "parse",
    "read_yaml",
]
