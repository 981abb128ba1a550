"""Runs of a small network, each a process as a user would start it, on pictures made here."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from hpcm_scale.data.pack import pack
from hpcm_scale.data.recipe import Recipe
from hpcm_scale.errors import RunError
from hpcm_scale.runs.metrics_log import MetricsLog

CROP = 256
TIMEOUT = 900.0
"""Seconds a run may take."""


class SmallRuns:
    """Runs of one folder, on one dataset.

    Args:
        folder: of settings, pictures, shards and runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def dataset(self) -> Path:
        """Smooth random pictures in shards, made once."""
        shards = self.folder / "shards"
        if not (shards / "manifest.json").exists():
            photos = self.folder / "photos"
            photos.mkdir(exist_ok=True)
            for i in range(8):
                smooth_picture(320, 288, seed=i).save(photos / f"{i}.png")
            recipe = Recipe.model_validate(
                {"licence": "made here", "min_side": CROP, "val": {"names": ["0", "1"]}}
            )
            pack(str(photos), shards, recipe)
        return shards

    def _command(self, name: str, *changes: str, ranks: int = 1) -> list[str]:
        """Words that start or resume a run."""
        config = self.folder / "run.yaml"
        batch = ranks * math.ceil(4 / ranks)
        config.write_text(
            json.dumps(
                {
                    "name": "check",
                    "out": str(self.folder / "runs"),
                    "model": {"variant": "base", "width": 0.025},
                    "data": {"train": str(self.dataset()), "streams": batch, "workers": 0},
                    "optimizer": {"lr": 1e-3, "decay_fraction": 0},
                    "precision": "fp32",
                    "steps": 4,
                    "batch": batch,
                    "log_every": 1,
                    "trackers": ["jsonl"],
                }
            )
        )
        words = [sys.executable, "-m", "hpcm_scale", "train", str(config), "--resume", "auto"]
        for change in (f"name={name}", *changes):
            words += ["--set", change]
        return [*words, "-n", str(ranks)] if ranks > 1 else words

    def train(self, name: str, *changes: str, ranks: int = 1) -> list[float]:
        """Losses of a run, step by step.

        Args:
            name: of the run, which resumes if its folder holds one.
            changes: of its settings, each "field=value".
            ranks: processes, or GPUs.

        Raises:
            RunError: if it fails.
        """
        words = self._command(name, *changes, ranks=ranks)
        try:
            done = subprocess.run(
                words, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"{name}: has not ended within {TIMEOUT:.0f} s") from None
        if done.returncode:
            text = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise RunError(f"{name}: exit code {done.returncode}: {text[-1] if text else ''}")
        return self._losses(name)

    def kill(self, name: str, steps: int, *changes: str) -> None:
        """Start a run, and kill its process once it has written the losses of so many steps."""
        job = subprocess.Popen(
            self._command(name, *changes),
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + TIMEOUT
        while job.poll() is None and time.monotonic() < deadline:
            if len(self._losses(name)) >= steps:
                break
            time.sleep(0.05)
        job.send_signal(signal.SIGKILL)
        job.wait()

    def _losses(self, name: str) -> list[float]:
        """Losses that a run has written so far, in the order of its steps."""
        log = MetricsLog(self.folder / "runs" / name)
        log.update()
        found = {row["step"]: row["loss"] for row in log.rows if row["kind"] == "train"}
        return [found[step] for step in sorted(found)]


def _environment() -> dict[str, str]:
    """The variables of this process, with the programs of its Python first."""
    binaries = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{binaries}:{os.environ.get('PATH', '')}", "COLUMNS": "200"}


def smooth_picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture that has something to code and is no noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
