"""A run's checkpoint, spread over ranks by ZeRO, written as a model file one tensor at a time."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hpcm_scale.config import DataConfig, LossConfig, parse, parse_model
from hpcm_scale.errors import CheckpointError, DataError, RunError
from hpcm_scale.training import checkpoint
from hpcm_scale.training.loss import RateDistortion
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
    """What was written."""

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
    check: bool = True,
) -> Exported:
    """Write a checkpoint of a run as a model file.

    The weights stay on disk but for the parameter being written. The checkpoint is DeepSpeed's own
    format, which unpickles: export only runs you trust.

    Args:
        target: as `save_model` takes it, with `shard_size` and `half`.
        step: the checkpoint's folder name, such as step-00000150; None for the newest whole one.
        weights: the moving average or what the optimizer updates; None for the average if the run
            keeps one, which is then what it validates.
        check: compute the validation loss of what was written, and put it in place only if it is
            the run's of that step. Left out if the run did not validate those weights, or its
            validation images cannot be read.

    Raises:
        RunError: if the folder is not a run.
        CheckpointError: if there is no such checkpoint, it is damaged or lacks those weights, or
            the model's validation loss is not the run's.
    """
    record_path = run_folder / "run.json"
    try:
        record = json.loads(record_path.read_text())
    except OSError:
        raise RunError(f"{run_folder}: is not a run folder (no run.json)") from None
    except ValueError as error:
        raise RunError(f"{record_path}: is damaged ({error})") from None
    model = parse_model(record["model"], f"{record_path}: model")
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
        state = ema_weights(folder, parameter_shapes(model, str(record_path)))
    else:
        state = master_weights(folder)
    row = _validation(run_folder, found.step)
    outcome = "not checked"

    def check_model(path: Path) -> None:
        nonlocal outcome
        outcome = _check(path, target, folder, record, row, half)

    if check and averaged and weights == "raw":
        outcome = "not checked: the run validated its moving average"
    elif check and row is None:
        outcome = f"not checked: the run has no validation at step {found.step}"
    info = save_model(
        target,
        state,
        model,
        lmbda=record["config"]["loss"]["lmbda"],
        record={
            "run": record["name"],
            "checkpoint": folder.name,
            "weights": weights,
            "validation": row,
            "versions": record["versions"],
            "git_commit": record["git_commit"],
        },
        shard_size=shard_size,
        half=half,
        check=check_model if check and outcome == "not checked" else None,
    )
    return Exported(info, folder, weights, outcome)


def _check(
    path: Path,
    target: Path,
    folder: Path,
    record: dict[str, Any],
    row: dict[str, Any],
    half: bool,
) -> str:
    """Compare the validation loss of the model at `path` with the run's."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    config = record["config"]
    network = load_model(path, device).network
    objective = RateDistortion(parse(LossConfig, config["loss"], "run.json: config.loss"))
    data = parse(DataConfig, config["data"], "run.json: config.data")
    try:
        loss = validate(network, data, objective, 0, 1)["loss"]
    except DataError as error:
        return f"not checked: {error}"
    rounded = half or any(folder.glob("bf16_*"))
    if not math.isclose(loss, row["loss"], rel_tol=ROUNDED_TOLERANCE if rounded else TOLERANCE):
        raise CheckpointError(
            f"{target}: not written: the exported model's validation loss is {loss:.6g}, that of "
            f"the run at {folder.name} is {row['loss']:.6g}; the data or the code have changed "
            "since, or the checkpoint is damaged (--no-check writes it all the same)"
        )
    seen = f" (training: {row['loss']:.4f})" if rounded else ", as in training"
    return f"validation loss {loss:.4f}{seen}"


def _validation(run_folder: Path, step: int) -> dict[str, Any] | None:
    """The "val" row of the run's metrics after `step` steps; the last, if a resume repeated it."""
    try:
        lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return None
    found = None
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # half-written
            continue
        if row["kind"] == "val" and row["step"] == step:
            found = row
    return found
