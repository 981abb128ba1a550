"""Checkpoints of a run: DeepSpeed's sharded state, a folder a step, `latest` naming the newest."""

from pathlib import Path
from typing import Any

from deepspeed.runtime.engine import DeepSpeedEngine

from hpcm_scale.errors import CheckpointError

FOLDER = "checkpoints"


def save(engine: DeepSpeedEngine, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Save what continuing after `step` needs; every rank must call it.

    `latest` is moved to the new checkpoint only after all of it is written.
    """
    engine.save_checkpoint(str(folder / FOLDER), tag=f"step-{step:08d}", client_state=state)


def newest(run_folder: Path) -> Path:
    """The folder of the newest whole checkpoint of a run.

    Raises:
        CheckpointError: if there is none.
    """
    pointer = run_folder / FOLDER / "latest"
    if not pointer.is_file():
        raise CheckpointError(f"{run_folder}: has no checkpoint ({pointer} is missing)")
    folder = pointer.parent / pointer.read_text().strip()
    if not folder.is_dir():
        raise CheckpointError(f"{pointer}: names {folder.name}, which is missing")
    return folder
