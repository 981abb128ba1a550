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
from hpcm_scale.config.model import (
    CHARM_SLICES,
    HpcmConfig,
    ModelConfig,
    SharedNetConfig,
)
from hpcm_scale.config.model_kinds import MODEL_KINDS, parse_model
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
    "MODEL_KINDS",
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
