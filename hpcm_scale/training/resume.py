"""A session of a run: who may write its folder, and where it goes on from."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import CheckpointError, ConfigError, HpcmError, RunError
from hpcm_scale.training import checkpoint
from hpcm_scale.training.checkpoint import Checkpoint
from hpcm_scale.training.zero_layout import ZeroLayout

log = logging.getLogger(__name__)

IMMUTABLE_FIELDS = ("seed", "model", "loss", "optimizer", "batch", "precision")
"""Sections of a run that stay as they are from its first session to its last."""
IMMUTABLE_DATA_FIELDS = ("crop", "flips", "streams", "shuffle_buffer")
"""Fields of its data section that do."""

NETWORK_FIELDS = ("model", "precision")
"""What a run that branches off another one's checkpoint shares with it."""

T = TypeVar("T")


@dataclass(frozen=True)
class ResumePoint:
    """Where a session begins."""

    checkpoint: Checkpoint | None = None
    """What it continues; None begins the run."""
    universal: bool = False
    """Whether that must go through DeepSpeed's universal form: other ranks or another stage."""


def on_rank_0(rank: int, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and give its result, or its error, to all ranks.

    Raises:
        HpcmError: the one that `work` raised on rank 0.
    """
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = work()
        except HpcmError as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def lock(folder: Path) -> FileLock:
    """Claim a run's folder for as long as this process lives.

    Raises:
        RunError: if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder}: another run is writing there; choose another `name`") from None
    return held


def resolve_resume(run: RunConfig, resume: str, world_size: int, spread: ZeroLayout) -> ResumePoint:
    """Where a session with `--resume` begins; reads every byte of the checkpoint it settles on.

    Args:
        resume: "never"; "auto": the newest good checkpoint of the run, its beginning if there is
            none; or the folder of a checkpoint of another run, which this one branches off.

    Raises:
        RunError: if the folder holds a run that is not to be continued.
        ConfigError: if what makes the sequence of losses has changed.
        CheckpointError: if no checkpoint can be used.
    """
    record_path = run.folder / "run.json"
    exists = record_path.exists()
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
        try:
            before = json.loads(record_path.read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{record_path}: is damaged ({error})") from None
        _check_same(run, before, f"{run.folder} began", IMMUTABLE_FIELDS, IMMUTABLE_DATA_FIELDS)
        found = _newest_good(run.folder)
    else:
        found = checkpoint.at(Path(resume))
        _check_same(run, found.record["config"], f"{found.folder} was saved", NETWORK_FIELDS)
        wrong = checkpoint.damage(found)
        if wrong:
            raise CheckpointError(f"{found.folder}: {wrong}")
    if found is None:
        return ResumePoint()
    stage, on_disk = spread.stage, spread.optimizer_on == "nvme"
    ranks, its_stage = found.record["world_size"], found.record["stage"]
    if 0 in (stage, its_stage) and stage != its_stage:
        raise CheckpointError(
            f"{found.folder}: is of ZeRO stage {its_stage}, which stage {stage} cannot continue; "
            "keep the stage, or export it and begin a run with `init`"
        )
    was_on_disk = found.record.get("on_disk", False)
    if on_disk != was_on_disk:
        raise CheckpointError(
            f"{found.folder}: its optimizer state was "
            f"{'on disks' if was_on_disk else 'in memory'}; keep the run's `deepspeed`, or export "
            "it and begin a run with `init`"
        )
    # Stage 0 spreads nothing: any number of ranks can read it.
    universal = stage > 0 and (ranks, its_stage) != (world_size, stage)
    if universal and on_disk:
        raise CheckpointError(
            f"{found.folder}: its optimizer state was on the disks of {ranks} ranks, and as many "
            f"must continue it, not {world_size}; or export it and begin a run with `init`"
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
            "away to begin again"
        )
    return None


def _check_same(
    run: RunConfig,
    before: dict[str, Any],
    when: str,
    sections: tuple[str, ...],
    data: tuple[str, ...] = (),
) -> None:
    now = run.model_dump(mode="json")
    pairs = [(name, before.get(name), now[name]) for name in sections]
    pairs += [(f"data.{name}", before["data"].get(name), now["data"][name]) for name in data]
    for name, old, new in pairs:
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
            name, old, new = f"{name}.{key}", old.get(key), new.get(key)
        raise ConfigError(
            f"{name}: was {old} when {when} and is now {new}; a run keeps it to the end"
        )
