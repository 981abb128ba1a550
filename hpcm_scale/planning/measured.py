"""What `launch/gpu_check.sh` measured on a machine, as plans read it instead of assuming it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcm_scale.errors import ConfigError, one_line
from hpcm_scale.files import atomic_write

FORMAT = 1
RECORDS = Path("launch/records")
"""Where records are kept, in a checkout."""


@dataclass(frozen=True)
class StepTime:
    """One way to step, measured."""

    model: str
    crop: int
    micro_batch: int
    precision: str
    """fp32 or bf16."""
    graphs: bool
    """Whether stages replayed CUDA graphs (`compile: blocks`)."""
    seconds: float
    """Of an optimizer step of one pass on one device, median."""
    flops: float
    """Of forward and backward."""
    launches: int
    """Kernels and graphs launched in a step; on a CPU, operations dispatched."""
    peak_share: float
    """Of the machine's rate of matrix products in that precision."""
    memory_predicted: float
    """Bytes of the device."""
    memory_measured: float


@dataclass(frozen=True)
class Check:
    """One promise that was held against the machine."""

    name: str
    passed: bool
    said: str


@dataclass(frozen=True)
class Measured:
    """One machine's record."""

    device: str
    """The accelerator's name, or the processor's."""
    accelerator: str
    """cuda or cpu."""
    devices: int
    memory: float
    """Bytes of one device."""
    peak: float
    """Operations a second of a large matrix product, in the steps' precision."""
    launch_seconds: float
    """Of one small operation after another."""
    crops_per_second: float
    """Of one data worker: crops read, decoded and cut."""
    workers: int
    """Processors there are for data workers."""
    link: float | None
    """Bytes a second of an all-reduce over this host's devices; None for one."""
    versions: dict[str, str]
    steps: list[StepTime] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def efficiency(self, model: str) -> float | None:
        """Largest share of the peak that a step of `model` reached; None if none was measured."""
        return max((step.peak_share for step in self.steps if step.model == model), default=None)

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        atomic_write(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """
        Raises:
            ConfigError: if the file is no record of this format.
        """
        try:
            stored: dict[str, Any] = json.loads(path.read_text())
            if stored.pop("format") != FORMAT:
                raise ValueError(f"is not of format {FORMAT}")
            steps = [StepTime(**step) for step in stored.pop("steps")]
            checks = [Check(**check) for check in stored.pop("checks")]
            return cls(**stored, steps=steps, checks=checks)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"--record: {path} is no record of launch/gpu_check.sh ({one_line(error)})"
            ) from None


def newest_record(folder: Path = RECORDS) -> Path | None:
    """The record of a GPU that was written last; None if there is none."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    gpus = (path for path in reversed(paths) if Measured.load(path).accelerator == "cuda")
    return next(gpus, None)
