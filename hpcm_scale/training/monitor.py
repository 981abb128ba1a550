"""The rows of a run as it goes on: metrics.jsonl, trackers, lines and a progress bar."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import one_line
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.training.trackers import Tracker, open_trackers

log = logging.getLogger(__name__)

EVENTS = {"skip": "step skipped: its loss or gradient is not finite", "spike": "loss spike"}


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
        self.log = MetricsLog(run.folder)
        self.trackers = open_trackers(run, step)
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
            self.log.close()
        with suppress(OSError) if kind else nullcontext():
            self._track(lambda tracker: tracker.close())

    def row(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Add a row of metrics after `step` steps: "train", "val", or "val-" and a set's name."""
        self._write(kind, step, figures)
        self._track(lambda tracker: tracker.scalars(kind, step, figures))
        text = f"loss {figures['loss']:.3f}  {figures['bpp']:.3f} bpp  {figures['psnr']:.2f} dB"
        if kind == "train":
            text += f"  {figures['crops_per_second']:.1f} crops/s"
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
        self._track(lambda tracker: tracker.scalars(kind, step, {"events": 1}))
        loss = f" ({figures['loss']:.4g})" if "loss" in figures else ""
        self.say(f"{step:>6}/{self.steps}  {EVENTS[kind]}{loss}")

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
            pixels = image.float().cpu()
            self._track(
                lambda tracker, name=name, pixels=pixels: tracker.image(
                    f"validation/{name}", step, pixels
                )
            )

    def _track(self, work: Callable[[Tracker], None]) -> None:
        """Hand something to every tracker; one that fails is left out from there on.

        Raises:
            OSError: if it could not write, as on a full disk.
        """
        for name, tracker in list(self.trackers.items()):
            try:
                work(tracker)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the run is worth more
                del self.trackers[name]
                log.warning("trackers: %s failed and is left out: %s", name, one_line(error))

    def _write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        seconds = self.before + time.monotonic() - self.opened
        self.log.append(kind, step, seconds, figures)
