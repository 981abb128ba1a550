"""The runs of a ladder, and where each stands by its records."""

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hpcm_scale.config import (
    CheckpointConfig,
    LadderConfig,
    ModelChoice,
    ModelConfig,
    RunConfig,
    SizeConfig,
)
from hpcm_scale.config.strict import cached
from hpcm_scale.errors import RunError
from hpcm_scale.files import atomic_write
from hpcm_scale.models.complexity import count_flops, count_parameters
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.runs.metrics_log import FILE as METRICS
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.runs.resume_rules import first_difference
from hpcm_scale.runs.run_record import FILE, RunRecord
from hpcm_scale.runs.watch import WatchedRun
from hpcm_scale.training import checkpoint

State = Literal["waiting", "running", "done", "failed", "stopped"]
TRAIN_ROWS = 100
"""Training rows that a copied record keeps."""


@dataclass(frozen=True)
class LadderRun:
    """One run of a ladder."""

    config: RunConfig
    model: ModelConfig
    steps: int
    """Optimizer steps of the whole run."""
    trunk: str | None = None
    """The run whose checkpoint this one continues."""
    branch_step: int = 0
    """The step of that checkpoint."""
    ablation: str | None = None
    """The ablation it belongs to: "" is the unchanged size; None where the ladder compares none."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def notes(self) -> Path:
        """Folder of what the ladder keeps beside its runs: configurations, logs, outcomes."""
        return self.config.out / "ladder"

    @property
    def new_steps(self) -> int:
        """Optimizer steps that are its own, not its trunk's."""
        return self.steps - self.branch_step


@cached
def _model(variant: str, width: float, depth: float, overrides: str) -> ModelConfig:
    return model_config(variant, width, depth, json.loads(overrides))


def model_of(choice: ModelChoice) -> ModelConfig:
    """The network of a run."""
    overrides = json.dumps(choice.overrides, sort_keys=True)
    return _model(choice.variant, choice.width, choice.depth, overrides)


@cached
def parameters_of(model: ModelConfig) -> dict[str, int]:
    """Parameters by part, and "total"."""
    with torch.device("meta"):
        return count_parameters(build(model))


@cached
def flops_of(model: ModelConfig, crop: int) -> float:
    """Training FLOPs of one crop."""
    return count_flops(model, crop).train


def ladder_runs(ladder: LadderConfig) -> list[LadderRun]:
    """Every run of a ladder, a trunk before its branches, ablations last.

    Raises:
        ConfigError: naming what cannot be trained, if a network or a run does not fit.
    """
    runs: dict[str, LadderRun] = {}
    lengths = tuple(sorted(ladder.crops or ladder.flops or ()))

    def add(
        size: SizeConfig,
        lmbda: float,
        seed: int,
        of: Sequence[float],
        ablation: str = "",
        compared: bool = False,
    ) -> None:
        group = [_run(ladder, size, lmbda, seed, ablation, length) for length in of]
        constant = group[-1].config.optimizer.schedule == "constant"
        if ladder.branch and constant and len(group) > 1:
            group = _branched(group)
        for run in reversed(group):
            runs.setdefault(run.name, run)
        if compared:
            runs[group[-1].name] = replace(runs[group[-1].name], ablation=ablation)

    for size in ladder.sizes:
        for lmbda in ladder.lambdas:
            for seed in size.seeds or ladder.seeds:
                add(size, lmbda, seed, lengths)
    if (ablations := ladder.ablations) and (size := ladder.size_of_ablations):
        for ablation in ("", *ablations.changes):
            for seed in ablations.seeds:
                lmbda = ablations.lmbda or ladder.lambdas[0]
                add(size, lmbda, seed, lengths[-1:], ablation, compared=True)
    return list(runs.values())


def run_name(
    ladder: LadderConfig, size: SizeConfig, lmbda: float, seed: int, ablation: str, length: float
) -> str:
    """Such as w0.125-s1; with λ, ablation and length where the ladder has several."""
    several = len(ladder.crops or ladder.flops or ()) > 1
    unit = "i" if ladder.crops else "f"
    parts = [
        size.label,
        f"l{lmbda:g}" if len(ladder.lambdas) > 1 else "",
        ablation,
        f"{unit}{length:g}" if several else "",
        f"s{seed}",
    ]
    return "-".join(part for part in parts if part)


def _run(
    ladder: LadderConfig, size: SizeConfig, lmbda: float, seed: int, ablation: str, length: float
) -> LadderRun:
    choice = ModelChoice(variant=ladder.variant, width=size.width, depth=size.depth)
    lr = size.lr
    if lr is None:
        assert ladder.rate is not None  # LadderConfig asks for one where a size has no lr
        by_width = ladder.rate.by == "width"
        value = size.width if by_width else parameters_of(model_of(choice))["total"]
        lr = ladder.rate.rate(value)
    changes = ladder.ablations.changes[ablation] if ablation and ladder.ablations else None
    name = run_name(ladder, size, lmbda, seed, ablation, length)
    config = ladder.run_config(
        name, size, lmbda=lmbda, seed=seed, lr=lr, length=length, changes=changes
    )
    model = model_of(config.model)
    flops = flops_of(model, config.data.crop) if config.flops else math.nan
    return LadderRun(config, model, config.total_steps(flops))


def _branched(group: list[LadderRun]) -> list[LadderRun]:
    """Runs of one kind, shortest first, as branches of the last, which keeps their checkpoints."""
    *branches, trunk = group
    own = trunk.config.checkpoint
    points = [int(r.steps * (1 - r.config.optimizer.decay_fraction)) for r in branches]
    # A checkpoint is kept for good at multiples of one number: the points are rounded down to it.
    spacing = min(own.every, points[0])
    if spacing == 0:  # all decay: nothing is shared
        return group
    points = [point // spacing * spacing for point in points]
    saving = own.model_copy(update={"every": spacing, "keep_every": math.gcd(*points)})
    saving = CheckpointConfig.model_validate(saving.model_dump())
    trunk = replace(trunk, config=trunk.config.model_copy(update={"checkpoint": saving}))
    return [
        *(
            replace(run, trunk=trunk.name, branch_step=point)
            for run, point in zip(branches, points, strict=True)
        ),
        trunk,
    ]


def chosen(runs: Sequence[LadderRun], only: Sequence[str] | None) -> list[LadderRun]:
    """The runs whose names match one of the patterns; all if there are none.

    Raises:
        RunError: naming a pattern that matches no run.
    """
    for pattern in only or ():
        if not any(fnmatch(run.name, pattern) for run in runs):
            names = ", ".join(run.name for run in runs)
            raise RunError(f"--only: {pattern!r} matches none of {names}")
    return [r for r in runs if not only or any(fnmatch(r.name, pattern) for pattern in only)]


@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    state: State
    reason: str = ""
    """Why it failed."""
    rows: WatchedRun | None = None
    """Records of the run, where it has begun."""
    differs: bool = False
    """Whether its folder holds a run of other settings, which is left alone."""

    @property
    def val_loss(self) -> float | None:
        """Loss of the last validation."""
        rows = self.rows.rows("val") if self.rows else []
        return rows[-1].get("loss") if rows else None


def status(run: LadderRun) -> Status:
    """State of a run, by its records, its checkpoints and its last launch.

    A run is done when it has been validated after its last step and that step's checkpoint is
    whole; or validated, and its weights have been removed.

    Raises:
        RunError: if its records cannot be read.
    """
    folder = run.config.folder
    rows = WatchedRun(folder) if RunRecord.exists(folder) else None
    if held(run):
        return Status("running", rows=rows)
    if rows is None:
        failed = _outcome(run)
        return Status("failed", failed, None) if failed else Status("waiting")
    if different := _difference(run, rows):
        return Status("failed", different, rows, differs=True)
    validated = [row["step"] for row in rows.rows("val")]
    if validated and validated[-1] >= run.steps:
        saved = (folder / checkpoint.FOLDER).exists()
        whole = [c.step for c in checkpoint.checkpoints(folder) if c.record is not None]
        if not saved or (whole and whole[-1] >= run.steps):
            return Status("done", rows=rows)
    reason = _outcome(run)
    return Status("failed" if reason else "stopped", reason, rows)


def _difference(run: LadderRun, rows: WatchedRun) -> str:
    """Difference between the run in the folder and the ladder's; "" if there is none."""
    before = RunRecord.read(rows.folder).field("config", dict)
    if different := first_difference(run.config, before):
        name, old, new = different
        return f"{name}: {rows.folder} was started with {old}, the ladder says {new}; move it"
    if rows.steps != run.steps:
        return f"steps: {rows.folder} is of {rows.steps}, the ladder says {run.steps}; move it"
    return ""


def _outcome(run: LadderRun) -> str:
    """Why the last launch failed; "" if it did not."""
    try:
        return str(json.loads((run.notes / f"{run.name}.json").read_text())["failed"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{run.notes / run.name}.json: {error}"


def write_outcome(run: LadderRun, failed: str | None) -> None:
    """Note why a launch failed, or that the run may be launched again."""
    path = run.notes / f"{run.name}.json"
    if failed is None:
        path.unlink(missing_ok=True)
    else:
        atomic_write(path, json.dumps({"failed": failed}) + "\n")


@contextmanager
def claimed(run: LadderRun) -> Iterator[int | None]:
    """A descriptor that says the run is going on while any process has it open; None if one has.

    The launched process inherits it: the run is seen to go on even if its launcher is killed.
    """
    run.notes.mkdir(parents=True, exist_ok=True)
    handle = os.open(run.notes / f"{run.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for _ in range(5):  # `held` in another process has it for an instant
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
            else:
                yield handle
                return
        yield None
    finally:
        os.close(handle)


def held(run: LadderRun) -> bool:
    """Whether a process of the run is alive."""
    try:
        handle = os.open(run.notes / f"{run.name}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def copy_records(runs: Sequence[LadderRun], target: Path) -> tuple[list[Path], list[str]]:
    """Copy run.json and a thinned metrics.jsonl of every finished run to `target`/<name>.

    All rows are kept but training's, of which at most TRAIN_ROWS remain, evenly spread.

    Returns:
        the folders written, and the names of runs that are not done.
    """
    written, left = [], []
    for run in runs:
        found = status(run)
        if found.state != "done":
            left.append(run.name)
            continue
        folder = target / run.name
        log = MetricsLog(run.config.folder)
        log.update()
        lines = "".join(json.dumps(row) + "\n" for row in thinned(log.rows))
        atomic_write(folder / FILE, (run.config.folder / FILE).read_text())
        atomic_write(folder / METRICS, lines)
        written.append(folder)
    return written, left


def thinned(rows: Sequence[dict[str, Any]], train_rows: int = TRAIN_ROWS) -> list[dict[str, Any]]:
    """The rows without all but `train_rows` of training's, the first and last of them kept."""
    train = [i for i, row in enumerate(rows) if row["kind"] == "train"]
    spread = np.linspace(0, len(train) - 1, min(train_rows, len(train))).round().astype(int)
    kept = {train[i] for i in spread}
    return [row for i, row in enumerate(rows) if row["kind"] != "train" or i in kept]
