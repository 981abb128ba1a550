"""Runs side by side while they go on: curves, and the last row of each.

Read are run.json and metrics.jsonl alone, the latter from where it was read to before; nothing
needs torch.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from hpcm_scale.errors import RunError
from hpcm_scale.files import atomic_path
from hpcm_scale.runs.records import run_folders
from hpcm_scale.runs.terminal_chart import MARK, Series, chart

COLOURS = ("#4c9be8", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#d4a72c", "#9c755f")
X_LABELS = {
    "step": "optimizer steps",
    "images": "training crops seen",
    "flops": "counted training FLOPs",
    "seconds": "minutes",
}
STALE_SECONDS, STALE_INTERVALS = 120.0, 5.0
"""A run that goes on is stale when it has written nothing for both: so long, and so many times the
time between its last rows."""
WIDE = 20.0
"""Largest over smallest value from which the metric is drawn by its logarithm."""


@dataclass
class Rows:
    """The rows of a metrics.jsonl that is being written."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    _place: tuple[int, int] = (0, 0)
    """The file's number on its disk and how many bytes of it have been read."""

    def update(self) -> None:
        """Read what has been added, up to the last whole line.

        Raises:
            RunError: if a line is not a row.
        """
        try:
            with open(self.path, "rb") as file:
                status = self.path.stat()
                inode, offset = self._place
                # A resumed run drops the rows past its checkpoint by writing the file anew.
                if inode != status.st_ino or status.st_size < offset:
                    self.rows, offset = [], 0
                file.seek(offset)
                new = file.read()
        except FileNotFoundError:
            return
        end = new.rfind(b"\n") + 1
        for line in new[:end].splitlines():
            try:
                row = json.loads(line)
                row["kind"], row["step"] = str(row["kind"]), int(row["step"])
            except (ValueError, KeyError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise RunError(f"{self.path}: is not lines of metrics ({reason})") from None
            self.rows.append(row)
        self._place = (status.st_ino, offset + end)


class WatchedRun:
    """One run: what it is, and its rows as far as they have been written.

    Raises:
        RunError: if its run.json cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "run.json"
        try:
            record = json.loads(path.read_text())
            config = record["config"]
            self.name = str(record["name"])
            self.batch = int(config["batch"])
            self.steps = _total_steps(config, record["flops_per_image"]["train"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RunError(f"{path}: is not the record of a run ({reason})") from None
        self.folder = folder
        self._metrics = Rows(folder / "metrics.jsonl")
        self.update()

    def update(self) -> None:
        """Read the rows written since."""
        self._metrics.update()

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Its rows of kind "train" or "val"."""
        return [row for row in self._metrics.rows if row["kind"] == kind]

    def curve(self, kind: str, x: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """x and metric of its rows of that kind that have both, finite, x rising."""
        points = [(row.get(x), row.get(metric)) for row in self.rows(kind)]
        finite = [
            p for p in points if all(isinstance(v, int | float) and math.isfinite(v) for v in p)
        ]
        values = np.array(sorted(finite), float).reshape(-1, 2)
        return values[:, 0] / (60 if x == "seconds" else 1), values[:, 1]

    @property
    def begun(self) -> bool:
        """Whether it has written a row."""
        return bool(self._metrics.rows)

    @property
    def done(self) -> int:
        """Steps done, as far as rows tell."""
        return max((row["step"] for row in self._metrics.rows), default=0)

    @property
    def finished(self) -> bool:
        return self.done >= self.steps

    def age(self, now: float) -> float | None:
        """Seconds since its last row was written, at the time `now`; None without one."""
        if not self._metrics.rows:
            return None
        return max(0.0, now - self._metrics.path.stat().st_mtime)

    def stale(self, now: float) -> bool:
        """Whether it is not finished and has written nothing for too long."""
        age = self.age(now)
        if age is None or self.finished:
            return False
        seconds = [row["seconds"] for row in self._metrics.rows[-10:] if "seconds" in row]
        usual = max(np.diff(seconds), default=0.0)
        return age > max(STALE_SECONDS, STALE_INTERVALS * usual)

    def left(self) -> float | None:
        """Seconds it still needs at its last pace."""
        pace = next((row.get("images_per_second") for row in reversed(self.rows("train"))), None)
        return (self.steps - self.done) * self.batch / pace if pace else None


def watched(paths: Iterable[Path]) -> list[WatchedRun]:
    """The runs in those folders, or one level below them.

    Raises:
        RunError: if there is none, or a record cannot be read.
    """
    return [WatchedRun(folder) for folder in run_folders(paths)]


def series(runs: Sequence[WatchedRun], x: str, metric: str) -> list[Series]:
    """The curves of a metric: training as lines, validation as marks.

    Raises:
        RunError: if no row of any run has it.
    """
    drawn = [
        Series(
            run.name,
            COLOURS[i % len(COLOURS)],
            run.curve("train", x, metric),
            run.curve("val", x, metric),
        )
        for i, run in enumerate(runs)
    ]
    drawn = [s for s in drawn if s.line[0].size or s.marks[0].size]
    if not drawn:
        known = sorted({key for run in runs for row in run.rows("train")[-1:] for key in row})
        raise RunError(
            f"--metric: no run has rows of {metric!r} over {x!r}"
            + (f"; rows hold {', '.join(known)}" if known else "; none has written any row yet")
        )
    return drawn


def by_logarithm(drawn: Sequence[Series]) -> bool:
    """Whether the values span so much that their logarithms show more."""
    values = np.concatenate([part for s in drawn for part in (s.line[1], s.marks[1])])
    return bool(values.min() > 0 and values.max() > WIDE * values.min())


def terminal_chart(
    runs: Sequence[WatchedRun], x: str, metric: str, width: int, height: int
) -> Text:
    """The curves in braille, with what they are above."""
    drawn = series(runs, x, metric)
    text = Text().append(f"{metric}: lines training, {MARK} validation\n", "bold")
    return text.append_text(chart(drawn, width, height, by_logarithm(drawn), X_LABELS[x]))


def table(runs: Sequence[WatchedRun], now: float | None = None) -> Table:
    """The last row of each run."""
    now = time.time() if now is None else now
    shown = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    optional = [k for k in ("skipped", "spikes") if any(r.get(k) for w in runs for r in _last(w))]
    columns = ("step", "loss", "bpp", "PSNR", "val", "img/s", "left", *optional, "last row")
    shown.add_column("run", overflow="fold", min_width=10)
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for i, run in enumerate(runs):
        train = next(iter(_last(run)), {})
        val = next(iter(run.rows("val")[-1:]), {})
        age, left = run.age(now), run.left()
        if age is None:
            state = Text("none yet", "dim")
        elif not math.isfinite(train.get("loss", 0)):
            state = Text(f"diverged {duration(age)}", "bold red")
        elif run.finished:
            state = Text("finished", "green")
        elif run.stale(now):
            state = Text(f"stale {duration(age)}", "bold red")
        else:
            state = Text(f"{duration(age)} ago")
        shown.add_row(
            Text(run.name, COLOURS[i % len(COLOURS)]),
            f"{run.done}/{run.steps}",
            _number(train, "loss", ".4g"),
            _number(train, "bpp", ".3f"),
            _number(train, "psnr", ".2f"),
            _number(val, "loss", ".4g"),
            _number(train, "images_per_second", ".1f"),
            "–" if left is None or run.finished else duration(left),
            *(_number(train, key, ".0f") for key in optional),
            state,
        )
    return shown


def save_chart(runs: Sequence[WatchedRun], x: str, metric: str, path: Path) -> None:
    """The curves as PNG or SVG.

    Raises:
        RunError: for another kind of file, or a metric that no run has.
    """
    if path.suffix not in (".png", ".svg"):
        raise RunError(f"--output: {path} ends in neither .png nor .svg")
    drawn = series(runs, x, metric)
    from matplotlib import rc_context  # here: the terminal does not wait for it
    from matplotlib.figure import Figure

    from hpcm_scale.plotting import STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for s in drawn:
            axes.plot(*s.line, color=s.colour, lw=1, alpha=0.55)
            axes.plot(*s.marks, "o-", color=s.colour, ms=4, lw=1.8)
            axes.plot([], [], "o-", color=s.colour, label=s.name)
        if by_logarithm(drawn):
            axes.set_yscale("log")
        axes.set(
            xlabel=X_LABELS[x],
            ylabel="Loss (bpp + λ · distortion)" if metric == "loss" else metric,
            title="thin: training, dots: validation",
        )
        axes.legend()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)


def duration(seconds: float) -> str:
    """Two units of time: 45 s, 12 min, 3 h 05, 2 d 04 h."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02}"
    return f"{minutes // 1440} d {minutes // 60 % 24:02} h"


def _last(run: WatchedRun) -> list[dict[str, Any]]:
    """The last training row, if any."""
    return run.rows("train")[-1:]


def _number(row: dict[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    return format(value, form) if isinstance(value, int | float) else "–"


def _total_steps(config: dict[str, Any], flops_per_image: float) -> int:
    """Steps of the whole run, by the one of its lengths that is given."""
    if config.get("steps") is not None:
        return int(config["steps"])
    images = config.get("images")
    images = images if images is not None else config["flops"] / flops_per_image
    return max(1, math.ceil(images / config["batch"]))
