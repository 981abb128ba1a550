"""A model file's metadata: format, configuration, λ, training record, hashes; all of it checked.

The identity, which bitstreams carry, is computed of configuration, parameters and tables.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_scale.config import ModelConfig, parse_model
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.errors import CheckpointError, ConfigError, one_line, printable

FORMAT = "hpcm_scale model 1"
"""Value of the metadata key `format`."""
LONGEST_REASON = 300
"""Characters of what is quoted from a file in an error."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelInfo:
    """Self-description of a model file."""

    path: Path
    config: ModelConfig
    lmbda: float | None
    """The rate-distortion weight it was trained for; None if not known."""
    identity: str
    """SHA-256 of configuration, parameters and tables, in hexadecimal; files carry a prefix."""
    tables_hash: str
    """SHA-256 of the coding tables."""
    record: dict[str, Any]
    """The training record."""
    arithmetic: Arithmetic = ORIGINAL
    """Arithmetic of the exact entropy path."""

    @property
    def label(self) -> str:
        """Name for people: configuration and λ, such as base-0.013."""
        name = printable(self.config.name)
        return name if self.lmbda is None else f"{name}-{self.lmbda:g}"


def info_of(path: Path, metadata: Mapping[str, Any]) -> ModelInfo:
    """A model's description of itself, every field of it checked."""
    form = metadata.get("format")
    if form != FORMAT:
        raise CheckpointError(
            f"{path}: is not a model of this version (format {repr(form)[:80]}, expected "
            f"{FORMAT!r}); make one with hpcm-scale export"
        )
    try:
        metadata["config"].encode()  # the identity is computed from its bytes
        return ModelInfo(
            path=path,
            config=parse_model(json.loads(metadata["config"]), "config"),
            lmbda=_lambda(json.loads(metadata["lmbda"])),
            identity=_digest(metadata, "identity"),
            tables_hash=_digest(metadata, "tables_hash"),
            record=_record(json.loads(metadata["record"])),
            arithmetic=Arithmetic.from_json(json.loads(metadata.get("arithmetic", "null"))),
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, ConfigError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise CheckpointError(f"{path}: has damaged metadata ({reason[:LONGEST_REASON]})") from None


def _lambda(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and 0 < value < math.inf):
        return value
    raise ValueError(f"lmbda: {value!r} is not a number above 0")


def _digest(metadata: Mapping[str, Any], name: str) -> str:
    value = metadata[name]
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise ValueError(f"{name}: {value!r} is not a SHA-256 in hexadecimal")
    return value


def _record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"record: {type(value).__name__} is no record")
    return value
