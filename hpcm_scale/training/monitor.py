"""What a run leaves and shows: run.json, metrics.jsonl, TensorBoard events, a progress bar."""

import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.files import atomic_write
from hpcm_scale.models.complexity import Flops

PACKAGES = ("torch", "deepspeed", "webdataset", "safetensors", "numpy", "hpcm-scale")


def write_record(
    run: RunConfig,
    model: ModelConfig,
    parameters: Mapping[str, int],
    flops: Flops,
    world_size: int,
    continued: Path | None,
) -> None:
    """run.json: the resolved configuration, what is known before the first step, the sessions.

    Args:
        continued: the checkpoint that this session goes on from.
    """
    path = run.folder / "run.json"
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "world_size": world_size,
        "git_commit": _git_commit(),
        "from": None if continued is None else str(continued),
    }
    before = json.loads(path.read_text()) if path.exists() else {"sessions": []}
    record = {
        "name": run.name,
        "config": run.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "parameters": dict(parameters),
        "flops_per_image": {"forward": flops.forward, "train": flops.train},
        "images_per_step": run.batch,
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "git_commit": session["git_commit"],
        "started": before.get("started", session["started"]),
        "sessions": [*before["sessions"], session],
    }
    atomic_write(path, json.dumps(record, indent=1) + "\n")


def rewind(folder: Path, step: int) -> float:
    """Drop the rows of metrics after `step`; returns the seconds the run had taken by then."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the last line of a session that was killed
        if row["step"] <= step:
            kept.append(line + "\n")
            seconds = max(seconds, row["seconds"])
    atomic_write(path, "".join(kept))
    return seconds


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
    """Records and shows the rows of one run; used on rank 0 alone.

    Args:
        steps: of the whole run.
        step, seconds: what the run had done and taken before this session.
    """

    def __init__(self, run: RunConfig, steps: int, step: int, seconds: float) -> None:
        self.run, self.steps, self.first = run, steps, step
        self.console = Console(file=sys.stdout)
        # Warnings (a bad sample, DeepSpeed's) appear above the bar instead of through it.
        logging.basicConfig(
            level=logging.WARNING, handlers=[RichHandler(console=self.console)], force=True
        )
        self.rows = open(run.folder / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115
        self.board = SummaryWriter(run.folder / "tensorboard", purge_step=step + 1)
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
        self.task = self.progress.add_task(run.name, total=steps, completed=step, figures="")
        self.opened = time.monotonic()
        self.before = seconds

    def __enter__(self) -> "Monitor":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.progress.stop()
        # What is left to write would fail again, with a poorer message.
        with suppress(OSError) if kind else nullcontext():
            self.rows.close()
        with suppress(OSError) if kind else nullcontext():
            self.board.close()

    def row(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Add a row of metrics after `step` steps: "train", "val", or "val-" and a set's name."""
        row = self._write(kind, step, figures)
        for name, value in figures.items():
            self.board.add_scalar(f"{name}/{kind}", value, step)
        text = f"loss {row['loss']:.3f}  {row['bpp']:.3f} bpp  {row['psnr']:.2f} dB"
        if kind == "train":
            text += f"  {row['images_per_second']:.1f} images/s"
        self.progress.update(self.task, completed=step, figures=text)
        if kind != "train" or not self.console.is_terminal:
            label = f"{step:>6}/{self.steps}" if kind == "train" else kind
            label = label.replace("val", "validation", 1)
            spent = time.monotonic() - self.opened
            left = (self.steps - step) * spent / max(1, step - self.first)
            self.say(f"{label}  {text}  {left:.0f} s left")

    def event(self, kind: str, step: int, **figures: float) -> None:
        """Record a "skip" or a "spike"."""
        self._write(kind, step, figures)
        self.board.add_scalar(f"events/{kind}", 1, step)
        what = {"skip": "step skipped: its loss or gradient is not finite", "spike": "loss spike"}
        loss = f" ({figures['loss']:.4g})" if "loss" in figures else ""
        self.say(f"{step:>6}/{self.steps}  {what[kind]}{loss}")

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self.console.print(f"{self.run.name}  {text}", highlight=False, markup=False)

    def pictures(self, step: int, x: Tensor, x_hat: Tensor, bit_map: Tensor) -> None:
        """An image (3, H, W), its reconstruction, and its bits a latent position (H/16, W/16)."""
        bit_map = bit_map.float()
        shown = {
            "original": x,
            "reconstruction": x_hat.clamp(0, 1),
            "bits": (bit_map / bit_map.max().clamp(min=1e-9))[None],
        }
        for name, image in shown.items():
            self.board.add_image(f"validation/{name}", image.float().cpu(), step)

    def _write(self, kind: str, step: int, figures: Mapping[str, Any]) -> dict[str, Any]:
        seconds = self.before + time.monotonic() - self.opened
        row = {"kind": kind, "step": step, "seconds": seconds, **figures}
        try:
            self.rows.write(json.dumps(row) + "\n")
        except OSError as error:
            error.filename = self.rows.name  # which the message would not tell
            raise
        return row
