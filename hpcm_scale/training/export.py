"""A run's checkpoint, spread over ranks by ZeRO, written as a model file one tensor at a time."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hpcm_scale.config import DataConfig, LossConfig, parse, parse_model
from hpcm_scale.errors import CheckpointError, DataError, RunError
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.runs.run_record import RunRecord
from hpcm_scale.training import checkpoint
from hpcm_scale.training.loss import RateDistortion
from hpcm_scale.training.single_precision import set_tf32
from hpcm_scale.training.validate import validate
from hpcm_scale.training.zero_checkpoint import EMA_FILES, ema_weights, master_weights
from hpcm_scale.weights.model_file import ModelInfo, load_model, parameter_shapes, save_model

TOLERANCE = 1e-4
"""Relative difference of validation losses: float32 sums in another order."""
ROUNDED_TOLERANCE = 1e-2
"""Where one of the two had weights of 16 bits, which have three digits."""

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Exported:
    """A model file just written."""

    info: ModelInfo
    checkpoint: Path
    weights: Weights
    check: str
    """A few words on whether the model reproduces the run's validation loss."""


def export_run(
    run_folder: Path,
    target: Path,
    *,
    step: str | None = None,
    weights: Weights | None = None,
    shard_size: int | None = None,
    half: bool = False,
    in_bytes: bool = False,
    check: bool = True,
) -> Exported:
    """Write a checkpoint of a run as a model file.

    The weights stay on disk but for the parameter being written. The checkpoint is DeepSpeed's own
    format, which unpickles: export only runs you trust.

    Args:
        target: as `save_model` takes it, with `shard_size`, `half` and `in_bytes`.
        step: the checkpoint's folder name, such as step-00000150; None for the newest whole one.
        weights: the moving average or what the optimizer updates; None for the average if the run
            keeps one, which is then what it validates.
        check: compute the validation loss of what was written, and put it in place only if it is
            the run's of that step.

    Raises:
        RunError: if the folder is not a run.
        CheckpointError: if there is no such checkpoint, it is damaged or lacks those weights, or
            the model's validation loss is not the run's or cannot be compared with it.
    """
    if not RunRecord.exists(run_folder):
        raise RunError(f"{run_folder}: is not a run folder (no run.json)")
    record = RunRecord.read(run_folder)
    model = parse_model(record.field("model", dict), f"{record.path}: model")
    folder = (
        run_folder / checkpoint.FOLDER / step if step is not None else checkpoint.newest(run_folder)
    )
    found = checkpoint.at(folder)
    fault = checkpoint.damage(found)
    if fault is not None:
        raise CheckpointError(f"{folder}: {fault}; export another with --checkpoint")
    averaged = any(folder.glob(EMA_FILES))
    weights = weights or ("ema" if averaged else "raw")
    if weights == "ema":
        state = ema_weights(folder, parameter_shapes(model, str(record.path)))
    else:
        state = master_weights(folder)
    row = _validation(run_folder, found.step)
    outcome = "not checked"

    def check_model(path: Path) -> None:
        nonlocal outcome
        if averaged and weights == "raw":
            raise CheckpointError(_unchecked(target, "the run validated its moving average"))
        if row is None:
            reason = f"the run has no validation at step {found.step}"
            raise CheckpointError(_unchecked(target, reason))
        outcome = _check(path, target, folder, record, row, half or in_bytes)

    info = save_model(
        target,
        state,
        model,
        lmbda=None if model.rates else record.positive("config.loss.lmbda"),
        record={
            "run": record.name,
            "checkpoint": folder.name,
            "weights": weights,
            "validation": row,
            "versions": record.field("versions", dict),
            "git_commit": record.values.get("git_commit"),
        },
        shard_size=shard_size,
        half=half,
        in_bytes=in_bytes,
        check=check_model if check else None,
    )
    return Exported(info, folder, weights, outcome)


def _unchecked(target: Path, reason: str) -> str:
    return (
        f"{target}: not written: it cannot be checked, {reason} (--no-check writes it all the same)"
    )


def _check(
    path: Path,
    target: Path,
    folder: Path,
    record: RunRecord,
    row: dict[str, Any],
    half: bool,
) -> str:
    """Compare the validation loss of the model at `path` with the run's, in its precision."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    network = load_model(path, device).network
    set_tf32(record.field("config.precision", str) == "tf32")
    in_bf16 = any(folder.glob("bf16_*"))
    if in_bf16:
        network = network.to(torch.bfloat16)
    where = f"{record.path}: config"
    loss_config = parse(LossConfig, record.field("config.loss", dict), f"{where}.loss")
    objective = RateDistortion(loss_config, network.config.rates)
    data = parse(DataConfig, record.field("config.data", dict), f"{where}.data")
    try:
        loss = validate(network, data, objective, 0, 1)["loss"]
    except DataError as error:
        raise CheckpointError(_unchecked(target, f"{error}")) from None
    rounded = half or in_bf16
    if not math.isclose(loss, row["loss"], rel_tol=ROUNDED_TOLERANCE if rounded else TOLERANCE):
        raise CheckpointError(
            f"{target}: not written: the exported model's validation loss is {loss:.6g}, that of "
            f"the run at {folder.name} is {row['loss']:.6g}; the data or the code have changed "
            "since, or the checkpoint is damaged (--no-check writes it all the same)"
        )
    seen = f" (training: {row['loss']:.4f})" if rounded else ", as in training"
    return f"validation loss {loss:.4f}{' in bf16' if in_bf16 else ''}{seen}"


def _validation(run_folder: Path, step: int) -> dict[str, Any] | None:
    """The "val" row of the run's metrics after `step` steps; the last, if a resume repeated it."""
    log = MetricsLog(run_folder)
    log.update()
    rows = [row for row in log.rows if row["kind"] == "val" and row["step"] == step]
    return rows[-1] if rows else None
