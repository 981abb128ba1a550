"""Checkpoints of a run: a folder a step, whole once its checkpoint.json is written.

RUN/checkpoints/latest                      names the newest whole one
RUN/checkpoints/step-00001000/checkpoint.json   step, world size, stage, position, every file's sum
                              *.pt              DeepSpeed's states
                              ema-00000.safetensors  a rank's part of the weights' average
"""

import json
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_scale.errors import CheckpointError
from hpcm_scale.files import atomic_write

FOLDER = "checkpoints"
RECORD = "checkpoint.json"
CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and, where it is whole, its record."""

    folder: Path
    record: dict[str, Any] | None

    @property
    def whole(self) -> dict[str, Any]:
        """The record.

        Raises:
            CheckpointError: if the checkpoint was not written to its end.
        """
        if self.record is None:
            raise CheckpointError(
                f"{self.folder}: was not written to its end ({RECORD} is missing)"
            )
        return self.record

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.folder.name.removeprefix("step-"))

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def folder_of(run_folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps belongs."""
    return run_folder / FOLDER / f"step-{step:08d}"


def checkpoints(run_folder: Path) -> list[Checkpoint]:
    """All checkpoints of a run, whole or not, oldest first."""
    return [
        Checkpoint(folder, _record(folder))
        for folder in sorted((run_folder / FOLDER).glob("step-*"))
        if re.fullmatch(r"step-\d{8,}", folder.name)
    ]


def at(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`.

    Raises:
        CheckpointError: if it is missing or not whole.
    """
    if not re.fullmatch(r"step-\d{8,}", folder.name) or not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint")
    found = Checkpoint(folder, _record(folder))
    _ = found.whole
    return found


def newest(run_folder: Path) -> Path:
    """The folder of the newest whole checkpoint of a run.

    Raises:
        CheckpointError: if there is none.
    """
    whole = [found for found in checkpoints(run_folder) if found.record is not None]
    if not whole:
        raise CheckpointError(f"{run_folder}: has no whole checkpoint")
    return whole[-1].folder


def damage(found: Checkpoint) -> str | None:
    """Fault of a checkpoint: the first file that is not as it was written; None if whole."""
    if found.record is None:
        return f"was not written to its end ({RECORD} is missing)"
    for name, expected in found.record["files"].items():
        path = found.folder / name
        try:
            size = path.stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != expected["bytes"]:
            return f"{name} has {size} bytes, {expected['bytes']} were written"
        if checksum(path) != expected["crc32"]:
            return f"{name} is not what was written (its checksum differs)"
    return None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    return crc


def complete(folder: Path, record: dict[str, Any]) -> None:
    """Declare a checkpoint whole: its record first, then `latest`."""
    atomic_write(folder / RECORD, json.dumps(record, indent=1) + "\n")
    atomic_write(folder.parent / "latest", folder.name + "\n")


def prune(run_folder: Path, keep: int, keep_every: int | None = None) -> list[Checkpoint]:
    """Delete what is neither among the `keep` newest whole checkpoints nor kept for good.

    Checkpoints that are not whole and older than the newest whole one go too.

    Returns:
        what was deleted.
    """
    found = checkpoints(run_folder)
    whole = [c for c in found if c.record is not None]
    if not whole:
        return []
    kept = {c.folder for c in whole[-keep:]}
    kept |= {c.folder for c in whole if keep_every and c.step % keep_every == 0}
    gone = [c for c in found if c.folder not in kept and c.step < whole[-1].step]
    for checkpoint in gone:
        # The record first: a half-deleted checkpoint must not pass for a whole one.
        (checkpoint.folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(checkpoint.folder)
    return gone


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
