"""Where the runs of a ladder stand, and how its ablations compare, as tables."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from scipy import stats

from hpcm_scale.errors import RunError
from hpcm_scale.ladder.runs import LadderRun, status
from hpcm_scale.runs.records import Run, read_run
from hpcm_scale.runs.run_record import RunRecord
from hpcm_scale.runs.watch import duration

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


def compared(
    runs: Sequence[LadderRun], folder: Path | None = None, confidence: float = 0.95
) -> Table:
    """The ablations of a ladder against the size they change, paired by seed.

    Runs of one seed share initial weights where they can, the order of samples, crops and noise:
    the difference within a seed varies less than the losses do. Its interval is Student's.

    Args:
        folder: of copied records; the ladder's own runs if not given.

    Raises:
        RunError: if the ladder has no ablations, or the unchanged size has no finished run.
    """
    final: dict[str, dict[int, Run]] = {}
    unfinished = []
    for run in runs:
        if run.ablation is None:
            continue
        place = run.config.folder if folder is None else folder / run.name
        done = status(run).state == "done" if folder is None else RunRecord.exists(place)
        if done:
            final.setdefault(run.ablation, {})[run.config.seed] = read_run(place)
        else:
            unfinished.append(run.name)
    if "" not in final:
        raise RunError(
            "ablations: no finished run of the unchanged size (or the ladder has no ablations)"
        )
    base = final.pop("")
    shown = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("ablation")
    for column in ("seeds", "parameters", "GFLOPs/crop", "loss", "bpp", "PSNR", "difference"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column(f"{confidence:.0%} interval", justify="right", no_wrap=True)
    for ablation, by_seed in ({"": base} | final).items():
        every = list(by_seed.values())
        seeds = sorted(set(by_seed) & set(base)) if ablation else []
        low, mean, high = difference(
            [by_seed[s].final["loss"] for s in seeds],
            [base[s].final["loss"] for s in seeds],
            confidence,
        )
        shown.add_row(
            ablation or "unchanged",
            str(len(every)),
            f"{every[0].parameters['total'] / 1e6:.3f} M",
            f"{every[0].train_flops_per_crop / 1e9:.2f}",
            f"{np.mean([run.final['loss'] for run in every]):.4f}",
            f"{np.mean([run.final['bpp'] for run in every]):.4f}",
            f"{np.mean([run.final_psnr for run in every]):.2f}",
            "–" if math.isnan(mean) else f"{mean:+.2%}",
            "–" if math.isnan(low) else f"{low:+.2%} … {high:+.2%}",
        )
    shown.caption_justify = "left"
    shown.caption = "difference of the loss within a seed, relative to unchanged"
    if unfinished:
        shown.caption += f"; not done: {', '.join(unfinished)}"
    return shown


def difference(
    losses: Sequence[float], base: Sequence[float], confidence: float
) -> tuple[float, float, float]:
    """Mean relative difference of paired losses between the ends of its Student interval.

    Returns:
        low, mean, high; NaN where there are too few pairs.
    """
    ratio = np.asarray(losses) / np.asarray(base) - 1
    if len(ratio) == 0:
        return math.nan, math.nan, math.nan
    mean = float(ratio.mean())
    if len(ratio) == 1:
        return math.nan, mean, math.nan
    half = stats.t.ppf((1 + confidence) / 2, len(ratio) - 1) * stats.sem(ratio)
    return mean - half, mean, mean + half
