"""Run folders in, plain arrays out: the only files read are run.json and metrics.jsonl."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpcm_scale.errors import RunError
from hpcm_scale.runs.metrics_log import FILE as METRICS
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.runs.nested import flat
from hpcm_scale.runs.run_record import FILE, RunRecord, checked_field
from hpcm_scale.units import psnr

SizePart = Literal["total", "transform", "hyper", "context"]
SIZE_PARTS: tuple[SizePart, ...] = ("total", "transform", "hyper", "context")
RATE_FIELDS = ("loss", "bpp", "psnr")
CURVE_FIELDS = ("step", "crops", "flops", "loss", "bpp", "mse")

# Two runs that differ in one of these are not two sizes of one family.
FAMILY_FIELDS = ("architecture", "schedule", "hierarchical", "hyper_alignment", "fusion")
CONDITIONS = (
    *("data.train", "data.val", "data.crop", "data.flips", "batch", "precision", "init"),
    "initial_weights",
    *("optimizer.type", "optimizer.schedule", "optimizer.decay_fraction", "optimizer.ema"),
    *("optimizer.weight_decay", "optimizer.grad_clip_norm", "optimizer.parametrization"),
)
"""Fields of a run's configuration that should not differ between the runs of a law."""


@dataclass(frozen=True)
class Run:
    """One training run as its records tell it."""

    name: str
    folder: Path
    lmbda: float
    distortion: str
    seed: int
    family: tuple[str, ...]
    """Values of FAMILY_FIELDS in the network's config, "" where it has none."""
    parameters: dict[str, int]
    """Parameters in all and by part: SIZE_PARTS."""
    train_flops_per_crop: float
    """Counted FLOPs of one training crop, forward and backward."""
    curve: dict[str, np.ndarray]
    """Validation rows by field (CURVE_FIELDS), each (rows,) float64, steps increasing.
    crops are training crops seen; flops are counted training FLOPs spent; mse is on [0, 1]."""
    config: dict[str, Any]
    """The resolved configuration, flat: dotted key -> value."""
    git_commit: str
    started: str
    rates: tuple[float, ...] = ()
    """λ of each gain vector of a network that codes at every rate; none for one of one rate."""
    at_rates: dict[str, np.ndarray] = field(default_factory=dict)
    """Figures of the last validation at each of `rates`, (rates,) float64: RATE_FIELDS. The loss is
    λ·distortion + bpp, without the weight that training gives each rate."""
    notes: tuple[str, ...] = ()
    """Faults that the reader tolerated: a torn last line, rows written twice by a resumed run."""

    @property
    def final(self) -> dict[str, float]:
        """The last validation row."""
        return {field: float(values[-1]) for field, values in self.curve.items()}

    @property
    def final_psnr(self) -> float:
        """dB, of the last validation's mean MSE."""
        return psnr(self.curve["mse"][-1])


@dataclass(frozen=True)
class Records:
    """The runs that can be fitted, and a line for each that cannot."""

    runs: tuple[Run, ...]
    skipped: tuple[str, ...]


def _validation_rows(
    folder: Path, rates: Sequence[float]
) -> tuple[list[dict[str, float]], list[str]]:
    """The rows of validations, steps increasing, and what of the log had to be tolerated.

    Args:
        rates: λ whose own figures each row has too: RATE_FIELDS, as "bpp_0.013".
    """
    fields = (*CURVE_FIELDS, *(f"{name}_{rate:g}" for rate in rates for name in RATE_FIELDS))
    log = MetricsLog(folder)
    log.update()
    if not log.path.exists():
        raise RunError(f"{log.path}: is missing")
    notes = []
    if log.torn:
        # A crash can cut only the line being written: no newline after it.
        notes.append(f"{log.path}: last line is torn (crashed while writing); left out")
    rows: list[dict[str, float]] = []
    rewritten = 0
    for number, row in enumerate(log.rows, start=1):
        if row["kind"] != "val":
            continue
        where = f"{log.path}:{number}"
        values = {f: float(checked_field(row, where, f, (int, float))) for f in fields}
        # A resumed run starts again from its checkpoint: what it wrote past that is superseded.
        while rows and rows[-1]["step"] >= values["step"]:
            rows.pop()
            rewritten += 1
        rows.append(values)
    if rewritten:
        notes.append(
            f"{log.path}: {rewritten} validation rows written again after a resume; last kept"
        )
    return rows, notes


def read_run(folder: Path | str) -> Run:
    """Read one run folder.

    Raises:
        RunError: naming file and field, if run.json or metrics.jsonl is missing, malformed or
            lacks a field, if there is no validation row yet, or if the last is not finite.
    """
    folder = Path(folder)
    record = RunRecord.read(folder)
    parameters = {part: int(record.field(f"parameters.{part}", int)) for part in SIZE_PARTS}
    record.positive("parameters.total")
    # The network as built; config.model has the multipliers and overrides that led to it.
    model = record.field("model" if "model" in record.values else "config.model", dict)
    metrics = folder / METRICS
    rates = tuple(float(rate) for rate in model.get("rates") or ())
    rows, notes = _validation_rows(folder, rates)
    if not rows:
        raise UnfinishedRun(f"{metrics}: no validation row yet")
    bad = [f for f in ("loss", "bpp", "mse") if not math.isfinite(rows[-1][f])]
    if bad:
        raise UnfinishedRun(
            f"{metrics}: {bad[0]}: not finite at step {rows[-1]['step']:.0f} (the run diverged)"
        )
    rows = [r for r in rows if all(math.isfinite(r[f]) and r[f] > 0 for f in CURVE_FIELDS)]
    if not rows:
        raise UnfinishedRun(f"{metrics}: no validation row after the first step")
    return Run(
        name=record.name,
        folder=folder,
        lmbda=record.positive("config.loss.lmbda"),
        distortion=str(record.field("config.loss.distortion", str)),
        seed=int(record.field("config.seed", int)),
        family=tuple(str(model.get(field, "")) for field in FAMILY_FIELDS),
        parameters=parameters,
        train_flops_per_crop=record.positive("flops_per_image.train"),
        curve={f: np.array([r[f] for r in rows]) for f in CURVE_FIELDS},
        config=dict(flat(record.field("config", dict))),
        git_commit=str(record.values.get("git_commit", "")),
        started=str(record.values.get("started", "")),
        rates=rates,
        at_rates=_at_rates(rows[-1], rates, record) if rates else {},
        notes=tuple(notes),
    )


def _at_rates(
    row: dict[str, float], rates: Sequence[float], record: RunRecord
) -> dict[str, np.ndarray]:
    """Figures of a validation row at each rate, the losses freed from their weights."""
    found = {name: np.array([row[f"{name}_{rate:g}"] for rate in rates]) for name in RATE_FIELDS}
    balance = float(record.field("config.loss.rate_balance", (int, float)))
    centre = math.sqrt(rates[0] * rates[-1])
    found["loss"] = found["loss"] * (np.array(rates) / centre) ** balance
    return found


class UnfinishedRun(RunError):
    """A well-formed run with nothing to fit: not validated yet, or diverged."""


def run_folders(paths: Iterable[Path | str]) -> list[Path]:
    """The run folders named, or one level below a folder that is not itself a run.

    Raises:
        RunError: if a path is neither a run folder nor a folder of runs.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = [path] if RunRecord.exists(path) else []
        if not inside and path.is_dir():
            inside = sorted(p.parent for p in path.glob(f"*/{FILE}"))
        if not inside:
            what = "holds no run.json, nor do its folders" if path.is_dir() else "does not exist"
            raise RunError(f"{path}: {what}; give run folders, or a folder of them")
        found.update({p.resolve(): p for p in inside})
    return list(found.values())


def read_runs(paths: Iterable[Path | str]) -> Records:
    """Read every run under `paths`, leaving out those with nothing to fit.

    Raises:
        RunError: if a record is malformed, or no run is left.
    """
    runs, skipped = [], []
    for folder in run_folders(paths):
        try:
            runs.append(read_run(folder))
        except UnfinishedRun as error:
            skipped.append(str(error))
    if not runs:
        raise RunError(f"no run to fit: {'; '.join(skipped) or 'no run folder given'}")
    return Records(tuple(runs), tuple(skipped))


def families(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs whose losses can be compared, by label: one λ, one distortion, one kind of model.

    Returns:
        label -> runs, sorted by λ. The label names a model field only where the runs differ in it.
    """
    runs = list(runs)
    varying = [i for i in range(len(FAMILY_FIELDS)) if len({r.family[i] for r in runs}) > 1]
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda r: (r.distortion, r.lmbda, r.family)):
        lmbda = f"{run.rates[0]:g} to {run.rates[-1]:g}" if run.rates else f"{run.lmbda:g}"
        label = f"λ {lmbda} {run.distortion}"
        label += "".join(f", {FAMILY_FIELDS[i]} {run.family[i]}" for i in varying)
        groups.setdefault(label, []).append(run)
    return groups


def differing_conditions(runs: Sequence[Run]) -> list[str]:
    """Conditions that differ between some runs, each with the number of its values.

    A field that one of them lacks came with a later version and tells nothing.
    """
    found = []
    for name in CONDITIONS:
        values = {str(run.config[name]) for run in runs if name in run.config}
        if len(values) > 1:
            found.append(f"{name} ({len(values)} values)")
    return found


def without_copies(records: Records) -> Records:
    """One of each run: two never end at the same loss to the last digit."""
    kept: dict[tuple, Run] = {}
    copies = []
    for run in records.runs:
        last = run.final
        key = (run.parameters["total"], run.lmbda, last["loss"], last["bpp"], last["step"])
        if key in kept:
            copies.append(f"{run.folder}: is a copy of {kept[key].folder}, to the last digit")
        kept.setdefault(key, run)
    return Records(tuple(kept.values()), (*records.skipped, *copies))
