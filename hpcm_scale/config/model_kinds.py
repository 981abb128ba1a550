"""Which class of configuration each architecture has."""

from typing import Any

from hpcm_scale.config.model import HpcmConfig, ModelConfig
from hpcm_scale.config.peers.dcae import DcaeConfig
from hpcm_scale.config.peers.elic import ElicConfig
from hpcm_scale.config.peers.flic import FlicConfig
from hpcm_scale.config.peers.lalic import LalicConfig
from hpcm_scale.config.peers.mambavc import MambavcConfig
from hpcm_scale.config.peers.mlicpp import MlicppConfig
from hpcm_scale.config.peers.stf import StfConfig
from hpcm_scale.config.peers.tcm import TcmConfig
from hpcm_scale.config.peers.weconvene import WeconveneConfig
from hpcm_scale.config.strict import parse
from hpcm_scale.errors import ConfigError

MODEL_KINDS: dict[str, type[ModelConfig]] = {
    "hpcm": HpcmConfig,
    "charm": HpcmConfig,
    "dcvc-dc-intra": HpcmConfig,
    "dcae": DcaeConfig,
    "elic": ElicConfig,
    "flic": FlicConfig,
    "lalic": LalicConfig,
    "mambavc": MambavcConfig,
    "mlicpp": MlicppConfig,
    "stf": StfConfig,
    "tcm": TcmConfig,
    "weconvene": WeconveneConfig,
}
"""The class of configuration of each architecture."""


def parse_model(values: Any, source: str) -> ModelConfig:
    """Validate `values` as the configuration of the architecture they name (hpcm if none).

    Raises:
        ConfigError: naming `source`, the field, the value and the rule it breaks.
    """
    name = values.get("architecture", "hpcm") if isinstance(values, dict) else "hpcm"
    kind = MODEL_KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(
            f"{source}: architecture: {name!r} is not one of {', '.join(MODEL_KINDS)}"
        )
    return parse(kind, values, source)
