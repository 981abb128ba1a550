"""run.json: what a run is, written before its first step and read by everything that follows runs.

It holds the resolved configuration, the network, parameter counts by part, measured FLOPs per
crop, versions, the commit, and a line for each session.
"""

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpcm_scale.config import RunConfig
from hpcm_scale.config.strict import current_names
from hpcm_scale.errors import ConfigError, RunError
from hpcm_scale.files import atomic_write

FILE = "run.json"
PACKAGES = ("torch", "deepspeed", "webdataset", "safetensors", "numpy", "hpcm-scale")
"""Whose versions are recorded."""


@dataclass(frozen=True)
class RunRecord:
    """The contents of run.json."""

    folder: Path
    values: dict[str, Any]
    """The whole file; fields of its `config` under their current names."""

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds a run."""
        return (folder / FILE).exists()

    @classmethod
    def read(cls, folder: Path | str) -> "RunRecord":
        """The record of a run.

        Raises:
            RunError: naming the file, if it is missing or malformed.
        """
        path = Path(folder) / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read ({error})") from None
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise RunError(f"{path}: is not the record of a run")
        config = values.get("config")
        if isinstance(config, dict):
            try:
                values["config"] = current_names(RunConfig, config, str(path), notice=False)
            except ConfigError as error:
                raise RunError(str(error)) from None
        return cls(Path(folder), values)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / FILE

    def field(self, dotted: str, kind: type | tuple[type, ...]) -> Any:
        """The value at a dotted key.

        Raises:
            RunError: naming file and key, if it is missing or not of that kind.
        """
        return checked_field(self.values, self.path, dotted, kind)

    def positive(self, dotted: str) -> float:
        """The finite number above 0 at a dotted key.

        Raises:
            RunError: naming file and key, if it is anything else.
        """
        number = float(self.field(dotted, (int, float)))
        if not (math.isfinite(number) and number > 0):
            raise RunError(f"{self.path}: {dotted}: {number} is not above 0")
        return number

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.field("name", str))

    @property
    def batch(self) -> int:
        """Crops of an optimizer step."""
        return int(self.positive("config.batch"))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, by the one of its lengths that is given.

        Raises:
            RunError: if none is.
        """
        config = self.field("config", dict)
        if config.get("steps") is not None:
            return int(self.positive("config.steps"))
        if config.get("crops") is not None:
            crops = self.positive("config.crops")
        else:
            crops = self.positive("config.flops") / self.positive("flops_per_image.train")
        return max(1, math.ceil(crops / self.batch))


def checked_field(
    values: Any, source: Path | str, dotted: str, kind: type | tuple[type, ...]
) -> Any:
    """The value at a dotted key of nested mappings, or at a key that has the dots in its name.

    Raises:
        RunError: naming source and key, if it is missing or not of that kind.
    """
    whole = isinstance(values, dict) and dotted in values
    for key in [dotted] if whole else dotted.split("."):
        if not isinstance(values, dict) or key not in values:
            raise RunError(f"{source}: {dotted}: is missing (was the run made by this program?)")
        values = values[key]
    if not isinstance(values, kind) or isinstance(values, bool):
        names = {str: "text", dict: "mapping", int: "whole number"}
        wanted = "number" if isinstance(kind, tuple) else names.get(kind, "number")
        raise RunError(f"{source}: {dotted}: {values!r} is not a {wanted}")
    return values


def write_run_record(
    run: RunConfig,
    model: Mapping[str, Any],
    parameters: Mapping[str, int],
    flops: Mapping[str, float],
    world_size: int,
    precision: str,
    continued: Path | None,
) -> None:
    """Write run.json at the start of a session, keeping the sessions before it.

    Args:
        model: the network's configuration.
        parameters: counts by part, and "total".
        flops: counted FLOPs of one crop: "forward", and "train" for forward and backward.
        precision: what the passes of this session compute in: fp32 or bf16.
        continued: the checkpoint that this session resumes from.
    """
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "world_size": world_size,
        "precision": precision,
        "git_commit": _git_commit(),
        "from": None if continued is None else str(continued),
    }
    before: dict[str, Any] = {"sessions": []}
    if RunRecord.exists(run.folder):
        before |= RunRecord.read(run.folder).values
    values = {
        "name": run.name,
        "config": run.model_dump(mode="json"),
        "model": dict(model),
        "parameters": dict(parameters),
        "flops_per_image": dict(flops),
        "images_per_step": run.batch,
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "git_commit": session["git_commit"],
        "started": before.get("started", session["started"]),
        "sessions": [*before["sessions"], session],
    }
    atomic_write(run.folder / FILE, json.dumps(values, indent=1) + "\n")


def _version(package: str) -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the code that runs; None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
