"""What a run leaves and shows: run.json, metrics.jsonl, TensorBoard events, a progress bar."""

import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.errors import RunError
from hpcm_scale.files import atomic_write
from hpcm_scale.models.complexity import Flops

PACKAGES = ("torch", "deepspeed", "webdataset", "safetensors", "numpy", "hpcm-scale")


def open_folder(folder: Path) -> None:
    """Make the run's folder.

    Raises:
        RunError: if a run has been there before.
    """
    if (folder / "run.json").exists():
        raise RunError(f"{folder}: already holds a run; choose another `name` or `out`")
    folder.mkdir(parents=True, exist_ok=True)


def write_record(
    folder: Path, run: RunConfig, model: ModelConfig, parameters: Mapping[str, int], flops: Flops
) -> None:
    """run.json: the resolved configuration and what is known before the first step."""
    record = {
        "name": run.name,
        "config": run.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "parameters": dict(parameters),
        "flops_per_image": {"forward": flops.forward, "train": flops.train},
        "images_per_step": run.batch,
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "git_commit": _git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    atomic_write(folder / "run.json", json.dumps(record, indent=1) + "\n")


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


class Monitor:
    """Records and shows the rows of one run; used on rank 0 alone."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.console = Console(file=sys.stdout)
        # Warnings (a bad sample, DeepSpeed's) appear above the bar instead of through it.
        logging.basicConfig(
            level=logging.WARNING, handlers=[RichHandler(console=self.console)], force=True
        )
        self.rows = open(run.folder / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115
        self.board = SummaryWriter(run.folder / "tensorboard")
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.progress.add_task(run.name, total=run.steps, figures="")
        self.started = time.monotonic()

    def __enter__(self) -> "Monitor":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.rows.close()
        self.board.close()

    def row(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Add a row of metrics, of kind "train" or "val", after `step` steps."""
        row = {"kind": kind, "step": step, "seconds": time.monotonic() - self.started, **figures}
        self.rows.write(json.dumps(row) + "\n")
        for name, value in figures.items():
            self.board.add_scalar(f"{name}/{kind}", value, step)
        text = f"loss {row['loss']:.3f}  {row['bpp']:.3f} bpp  {row['psnr']:.2f} dB" + (
            f"  {row['images_per_second']:.1f} images/s" if kind == "train" else ""
        )
        self.progress.update(self.task, completed=step, figures=text)
        if kind == "val" or not self.console.is_terminal:
            label = "validation" if kind == "val" else f"{step:>6}/{self.run.steps}"
            left = (self.run.steps - step) * row["seconds"] / step if step else 0
            self.console.print(
                f"{self.run.name}  {label}  {text}  {left:.0f} s left", highlight=False
            )
