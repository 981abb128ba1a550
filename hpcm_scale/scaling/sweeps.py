"""Sweeps of learning rates: of runs that differ in nothing else, the best rate's count."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpcm_scale.runs.records import Run

FREE = ("name", "out", "seed", "optimizer.lr", "max_hours")
"""Fields of a run's configuration in which the runs of a sweep may differ."""


class Tuned(NamedTuple):
    """Runs that count of some runs with their sweeps."""

    kept: np.ndarray
    """Numbers of the runs that count, in order."""
    edges: frozenset[str]
    """Names of those whose learning rate is the lowest or highest of its sweep."""
    said: list[str]
    """Notes for the reader."""


def tuned(sweep: np.ndarray, lr: np.ndarray, loss: np.ndarray, names: Sequence[str]) -> Tuned:
    """The best rate of every sweep, by mean loss where it has several runs: a law is of tuned runs.

    Args:
        sweep: (runs,) number of the sweep that each run is of.
        lr, loss: (runs,).
    """
    kept: list[int] = []
    edges: dict[str, float] = {}
    between: dict[str, float] = {}
    for number in np.unique(sweep):
        rows = np.flatnonzero(sweep == number)
        rates, which = np.unique(lr[rows], return_inverse=True)
        if len(rates) < 2:  # seeds of one rate
            kept += rows.tolist()
            continue
        means = np.bincount(which, loss[rows]) / np.bincount(which)
        best = int(means.argmin())
        of_best = rows[which == best].tolist()
        kept += of_best
        if best in (0, len(rates) - 1):
            edges.update((str(names[row]), float(rates[best])) for row in of_best)
        else:
            near = slice(best - 1, best + 2)
            between[str(names[of_best[0]])] = lowest(rates[near], means[near])
    said = []
    if len(kept) < len(loss):
        said.append(
            f"of runs that differ in the learning rate alone, the best rate's count: {len(kept)} "
            f"of {len(loss)}"
        )
    if len(between) > 1:
        listed = ", ".join(f"{rate:.2g} ({name})" for name, rate in between.items())
        spread = max(between.values()) / min(between.values())
        said.append(
            f"best learning rates, by parabolas through three: {listed}; they differ by a factor "
            f"of {spread:.2f}"
        )
    if edges:
        shown = [f"{name} ({rate:g})" for name, rate in edges.items()]
        said.append(
            f"under-tuned, perhaps: the best learning rate is the edge of its sweep at "
            f"{', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''}"
        )
    return Tuned(np.sort(np.array(kept, int)), frozenset(edges), said)


def lowest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Where a parabola in the logarithm of the rate, through (3,) points, is lowest."""
    middle = np.log(rates[1])
    a, b, _ = np.polyfit(np.log(rates) - middle, losses, 2)
    return float(np.exp(middle - b / (2 * a)))


def tuned_runs(runs: Sequence[Run]) -> Tuned:
    """The same of this program's runs, told apart by their whole configuration.

    Runs whose records lack the learning rate all count.
    """
    names = [run.name for run in runs]
    rates = [run.config.get("optimizer.lr") for run in runs]
    if any(not isinstance(rate, (int, float)) for rate in rates):
        return Tuned(np.arange(len(runs)), frozenset(), [])
    keys = [
        (
            run.parameters["total"],
            run.curve["crops"][-1],
            *sorted((k, str(v)) for k, v in run.config.items() if k not in FREE),
        )
        for run in runs
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    sweep = np.array([numbers[key] for key in keys])
    losses = np.array([run.final["loss"] for run in runs])
    return tuned(sweep, np.array(rates, float), losses, names)
