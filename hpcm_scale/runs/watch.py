"""Runs side by side while they go on: curves, and the last row of each.

Read are run.json and metrics.jsonl alone, the latter from where it was read to before; nothing
needs torch.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from hpcm_scale.errors import RunError
from hpcm_scale.plotting import save_figure, style
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.runs.records import run_folders
from hpcm_scale.runs.run_record import RunRecord
from hpcm_scale.runs.terminal_chart import MARK, Series, chart

COLOURS = ("#4c9be8", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#d4a72c", "#9c755f")
X_LABELS = {
    "step": "optimizer steps",
    "crops": "training crops seen",
    "flops": "counted training FLOPs",
    "seconds": "minutes",
}
STALE_SECONDS, STALE_INTERVALS = 120.0, 5.0
"""A running run is stale when it has written nothing for both: so long, and so many times the
time between its last rows."""
WIDE = 20.0
"""Largest over smallest value from which the metric is drawn by its logarithm."""


class WatchedRun:
    """One run: what it is, and its rows as far as they have been written.

    Raises:
        RunError: if its run.json cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        record = RunRecord.read(folder)
        self.name, self.batch, self.steps = record.name, record.batch, record.total_steps
        self.folder = folder
        self._metrics = MetricsLog(folder)
        self.update()

    def update(self) -> None:
        """Read the rows written since."""
        self._metrics.update()

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Rows of kind "train" or "val"."""
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
        pace = next((row.get("crops_per_second") for row in reversed(self.rows("train"))), None)
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
    columns = ("step", "loss", "bpp", "PSNR", "val", "crops/s", "left", *optional, "last row")
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
            _number(train, "crops_per_second", ".1f"),
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
    from matplotlib.figure import Figure  # here: the terminal does not wait for it

    with style():
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
    save_figure(figure, path.with_suffix(""), [path.suffix])


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
