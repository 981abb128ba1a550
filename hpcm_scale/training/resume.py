"""Which process may write a run's folder, and where a session resumes."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.config.strict import current_names
from hpcm_scale.errors import CheckpointError, ConfigError, RunError
from hpcm_scale.runs.resume_rules import (
    IMMUTABLE_DATA_FIELDS,
    IMMUTABLE_FIELDS,
    NETWORK_FIELDS,
    OPTIMIZER_STATE_FIELDS,
    first_difference,
    network_difference,
)
from hpcm_scale.runs.run_record import RunRecord
from hpcm_scale.training import checkpoint
from hpcm_scale.training.checkpoint import Checkpoint
from hpcm_scale.training.zero_layout import ZeroLayout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a session starts."""

    checkpoint: Checkpoint | None = None
    """What it continues; None starts the run."""
    universal: bool = False
    """Whether that must go through DeepSpeed's universal form: other ranks, stage or precision."""


class RunLock:
    """A run's folder, claimed for one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = FileLock(folder / ".lock")

    def acquire(self) -> None:
        """Claim the folder until `release`, or the end of this process.

        Raises:
            RunError: if another process has it, or it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{self.folder}: another run is writing there; choose another `name`"
            ) from None
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def release(self) -> None:
        """Give the folder up."""
        self._file.release()


def resolve_resume(
    run: RunConfig,
    model: ModelConfig,
    resume: str,
    world_size: int,
    spread: ZeroLayout,
    bf16: bool,
) -> ResumePoint:
    """Where a session with `--resume` begins; reads every byte of the checkpoint it settles on.

    Args:
        model: the network of the run.
        resume: "never"; "auto": the newest good checkpoint of the run, its start if there is
            none; or the folder of a checkpoint of another run, which this one branches off.
        bf16: whether the session computes in bfloat16.

    Raises:
        RunError: if the folder holds a run that is not to be continued.
        ConfigError: if what makes the sequence of losses has changed.
        CheckpointError: if no checkpoint can be used.
    """
    exists = RunRecord.exists(run.folder)
    if resume != "auto" and exists:
        raise RunError(
            f"{run.folder}: already holds a run; continue it with --resume auto, or choose "
            "another `name` or `out`"
        )
    if resume == "never":
        return ResumePoint()
    if resume == "auto":
        if not exists:
            return ResumePoint()
        before = RunRecord.read(run.folder).field("config", dict)
        _check_same(run, before, f"{run.folder} was started", IMMUTABLE_FIELDS)
        found = _newest_good(run.folder)
    else:
        found = checkpoint.at(Path(resume))
        _check_branch(run, model, found)
        wrong = checkpoint.damage(found)
        if wrong:
            raise CheckpointError(f"{found.folder}: {wrong}")
    if found is None:
        return ResumePoint()
    stage, on_disk = spread.stage, spread.optimizer_on == "nvme"
    ranks, its_stage = found.whole["world_size"], found.whole["stage"]
    if 0 in (stage, its_stage) and stage != its_stage:
        raise CheckpointError(
            f"{found.folder}: is of ZeRO stage {its_stage}, which stage {stage} cannot continue; "
            "keep the stage, or export it and start a run with `init`"
        )
    was_on_disk = found.whole.get("on_disk", False)
    if on_disk != was_on_disk:
        raise CheckpointError(
            f"{found.folder}: its optimizer state was "
            f"{'on disks' if was_on_disk else 'in memory'}; keep the run's `deepspeed`, or export "
            "it and start a run with `init`"
        )
    # Stage 0 spreads nothing: any number of ranks can read it.
    its_bf16 = found.whole.get("bf16", bf16)
    universal = stage > 0 and (ranks, its_stage, its_bf16) != (world_size, stage, bf16)
    if universal and on_disk:
        raise CheckpointError(
            f"{found.folder}: its optimizer state was on the disks of {ranks} ranks, and as many "
            f"must continue it, not {world_size}, in the same precision; or export it and start a "
            "run with `init`"
        )
    return ResumePoint(found, universal)


def to_universal(found: Checkpoint) -> Path:
    """DeepSpeed's universal form of a checkpoint, beside it.

    Raises:
        CheckpointError: if DeepSpeed cannot make it.
    """
    target = found.folder.with_name(f"{found.folder.name}_universal")
    shutil.rmtree(target, ignore_errors=True)  # of a conversion that was cut short
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(found.folder), "--output_folder", str(target)]
    command += ["--inject_missing_state"]  # which stages 1 and 2 do not save
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CheckpointError(f"{found.folder}: cannot be made universal ({reason})")
    return target


def _newest_good(run_folder: Path) -> Checkpoint | None:
    """The newest checkpoint with nothing wrong; None if none was ever finished."""
    finished, passed = False, []
    for found in reversed(checkpoint.checkpoints(run_folder)):
        wrong = checkpoint.damage(found)
        if wrong is None:
            for damaged in passed:  # or pruning would take them for the newest good ones
                (damaged.folder / checkpoint.RECORD).unlink(missing_ok=True)
            return found
        passed.append(found)
        log.warning("%s: %s; falling back to the one before", found.folder, wrong)
        finished = finished or found.record is not None
    if finished:
        raise CheckpointError(
            f"{run_folder}: every checkpoint is damaged; move {checkpoint.FOLDER}/ and run.json "
            "away to start again"
        )
    return None


def _check_branch(run: RunConfig, model: ModelConfig, found: Checkpoint) -> None:
    """
    Raises:
        ConfigError: unless the weights and the optimizer state of another run's checkpoint fit
            the network and the parameter groups of this run.
    """
    when = f"{found.folder} was saved"
    config = found.whole["config"]
    before = current_names(RunConfig, config, str(found.folder), notice=False)
    with_init = run.init is not None or before.get("init") is not None
    # Where a model file chose the network, `model` says nothing of it.
    fields = [name for name in NETWORK_FIELDS if not (with_init and name == "model")]
    _check_same(run, before, when, fields, ())
    its_network = found.whole.get("network") or _recorded_network(found)
    if its_network and (different := network_difference(its_network, model)):
        name, old, new = different
        raise ConfigError(
            f"model: the network's {name} was {old} when {when} and is now {new}; start from the "
            "same `init`, or set it in `model.overrides`"
        )
    optimizer = RunConfig.model_validate(before | {"name": run.name}).optimizer
    for name in OPTIMIZER_STATE_FIELDS:
        old, new = getattr(optimizer, name), getattr(run.optimizer, name)
        if old != new:
            raise ConfigError(
                f"optimizer.{name}: was {old or 'empty'} when {when} and is now {new or 'empty'}, "
                "which the saved optimizer state does not fit; export that run and start this one "
                "with `init`"
            )


def _recorded_network(found: Checkpoint) -> dict[str, Any] | None:
    """The network as run.json has it, for checkpoints of versions that did not record theirs."""
    folder = found.folder.parents[1]
    return RunRecord.read(folder).values.get("model") if RunRecord.exists(folder) else None


def _check_same(
    run: RunConfig,
    before: dict[str, Any],
    when: str,
    fields: Sequence[str],
    data_fields: Sequence[str] = IMMUTABLE_DATA_FIELDS,
) -> None:
    """
    Raises:
        ConfigError: naming the first field that is not as it was.
    """
    if different := first_difference(run, before, fields, data_fields):
        name, old, new = different
        raise ConfigError(
            f"{name}: was {old} when {when} and is now {new}; a run keeps it to the end"
        )
