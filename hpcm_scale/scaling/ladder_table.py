"""Where the runs of a ladder stand, as a table."""

import math
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from hpcm_scale.scaling.ladder import LadderRun, status
from hpcm_scale.scaling.watch import duration

STYLES = {"done": "green", "running": "bold", "failed": "bold red", "stopped": "yellow"}


def table(runs: Sequence[LadderRun]) -> Table:
    """State, step, losses, time taken and time left of every run.

    Raises:
        RunError: if the records of one cannot be read.
    """
    shown = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("run", overflow="fold", min_width=8)
    shown.add_column("state")
    for column in ("step", "loss", "val loss", "time", "left"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    states: Counter[str] = Counter()
    for run in runs:
        now = status(run)
        states[now.state] += 1
        train = now.rows.rows("train")[-1:] if now.rows else []
        left = now.rows.left() if now.rows and now.state in ("running", "stopped") else None
        shown.add_row(
            run.name,
            Text(now.state, STYLES.get(now.state, "dim")),
            f"{now.rows.done if now.rows else 0}/{run.steps}",
            _number(train[0].get("loss") if train else None),
            _number(now.val_loss),
            duration(train[0]["seconds"]) if train else "–",
            "–" if left is None else duration(left),
            now.reason,
        )
    shown.caption_justify = "left"
    shown.caption = ", ".join(f"{n} {state}" for state, n in states.items())
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"
