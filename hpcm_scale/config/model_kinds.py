"""Which class of configuration each architecture has."""

from importlib import import_module
from typing import Any

from hpcm_scale.config.model import ModelConfig
from hpcm_scale.config.strict import parse
from hpcm_scale.errors import ConfigError

_HPCM = ("model", "HpcmConfig")
_KINDS = {
    "hpcm": _HPCM,
    "charm": _HPCM,
    "dcvc-dc-intra": _HPCM,
    "dcae": ("peers.dcae", "DcaeConfig"),
    "elic": ("peers.elic", "ElicConfig"),
    "flic": ("peers.flic", "FlicConfig"),
    "lalic": ("peers.lalic", "LalicConfig"),
    "mambavc": ("peers.mambavc", "MambavcConfig"),
    "mlicpp": ("peers.mlicpp", "MlicppConfig"),
    "stf": ("peers.stf", "StfConfig"),
    "tcm": ("peers.tcm", "TcmConfig"),
    "weconvene": ("peers.weconvene", "WeconveneConfig"),
}
"""Module and class of each architecture's configuration."""


def _kind(architecture: str) -> type[ModelConfig]:
    """The class of an architecture's configuration, imported when it is first needed."""
    module, name = _KINDS[architecture]
    return getattr(import_module(f"hpcm_scale.config.{module}"), name)


def parse_model(values: Any, source: str) -> ModelConfig:
    """Validate `values` as the configuration of the architecture they name (hpcm if none).

    Raises:
        ConfigError: naming `source`, the field, the value and the rule it breaks.
    """
    name = values.get("architecture", "hpcm") if isinstance(values, dict) else "hpcm"
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(f"{source}: architecture: {name!r} is not one of {', '.join(_KINDS)}")
    return parse(_kind(name), values, source)
