"""A run's checkpoint, spread over ranks by ZeRO, gathered into one model file."""

import contextlib
import io
import json
from pathlib import Path

import torch
from torch import Tensor

from hpcm_scale.config import ModelConfig, parse
from hpcm_scale.errors import CheckpointError, RunError
from hpcm_scale.training.checkpoint import newest
from hpcm_scale.weights.modelfile import ModelInfo, save_model


def export_run(run_folder: Path, target: Path) -> ModelInfo:
    """Write the newest checkpoint of a run as a model file.

    The checkpoint is DeepSpeed's own format, which unpickles: export only runs you trust.

    Raises:
        RunError: if the folder is not a run.
        CheckpointError: if it has no checkpoint, or one that cannot be read.
    """
    record_path = run_folder / "run.json"
    try:
        record = json.loads(record_path.read_text())
    except OSError:
        raise RunError(f"{run_folder}: is not a run folder (no run.json)") from None
    except ValueError as error:
        raise RunError(f"{record_path}: is damaged ({error})") from None
    model = parse(ModelConfig, record["model"], str(record_path))
    folder = newest(run_folder)
    return save_model(
        target,
        gather(folder),
        model,
        lmbda=record["config"]["loss"]["lmbda"],
        record={
            "run": record["name"],
            "checkpoint": folder.name,
            "validation": _last_validation(run_folder),
            "versions": record["versions"],
            "git_commit": record["git_commit"],
        },
    )


def gather(folder: Path) -> dict[str, Tensor]:
    """The fp32 master weights of a checkpoint, whole.

    Raises:
        CheckpointError: if it cannot be read.
    """
    # Imported here: after hpcm_scale.training has said which accelerator there is.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        if not list(folder.glob("*_optim_states.pt")):  # stage 0: nothing is spread
            states = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)
            return states["module"]
        quiet = io.StringIO()  # it prints its progress
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from None


def _last_validation(run_folder: Path) -> dict[str, float] | None:
    """The last "val" row of the run's metrics."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return next((row for row in reversed(rows) if row["kind"] == "val"), None)
