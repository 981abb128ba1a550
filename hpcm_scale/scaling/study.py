"""From run records to fitted laws: which points go into which law, and what is asked of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hpcm_scale.scaling.laws import Fit, Interval, LawRefused, cautions, fit_law
from hpcm_scale.scaling.records import Records, Run, SizePart, families

Metric = Literal["loss", "bpp", "mse"]
METRICS: tuple[Metric, ...] = ("loss", "bpp", "mse")


@dataclass(frozen=True)
class Settings:
    """What a study asks of its runs."""

    size: SizePart = "total"
    """Which parameters N counts."""
    target_size: float = 1e10
    """N to extrapolate to."""
    confidence: float = 0.95
    """Level of every interval."""
    seed_noise: float = 0.01
    """Relative standard deviation of a loss between seeds, assumed where the runs cannot tell."""


@dataclass(frozen=True)
class Prediction:
    """A loss somewhere no fitted point is."""

    size: float
    value: float
    interval: Interval
    measured: float | None = None
    """The mean loss found there, when there was a run."""


@dataclass
class FittedLaw:
    """One law of one metric: fitted, or refused with the reason."""

    name: str
    metric: Metric
    x: np.ndarray
    """(k, n) abscissae offered."""
    y: np.ndarray
    """(n,) the metric there."""
    fit: Fit | None = None
    refusal: str | None = None
    cautions: list[str] = field(default_factory=list)
    held_out: Prediction | None = None
    extrapolation: Prediction | None = None


@dataclass
class Family:
    """Runs whose losses can be compared, and their laws."""

    label: str
    runs: list[Run]
    size_laws: dict[Metric, FittedLaw]


@dataclass
class Study:
    """Everything a report shows."""

    settings: Settings
    families: list[Family]
    notes: list[str]
    """What the reader of the records tolerated or left out."""


def study(records: Records, settings: Settings) -> Study:
    """Fit every law the runs can carry; those they cannot are refused with the reason."""
    notes = [f"left out: {line}" for line in records.skipped]
    notes += [note for run in records.runs for note in run.notes]
    groups = families(records.runs)
    if len(groups) > 1:
        notes.append(f"{len(groups)} families are fitted apart: {'; '.join(groups)}")
    return Study(settings, [_family(*item, settings) for item in groups.items()], notes)


def _family(label: str, runs: list[Run], settings: Settings) -> Family:
    runs = sorted(runs, key=lambda r: (r.parameters[settings.size], r.curve["images"][-1], r.seed))
    chosen, caution = equal_images(runs, settings.size)
    laws = {metric: size_law(chosen, metric, settings) for metric in METRICS}
    for law in laws.values():
        law.cautions[:0] = caution
    return Family(label, runs, laws)


def sizes_of(runs: Sequence[Run], part: SizePart) -> np.ndarray:
    """(runs,) parameters counted as N."""
    return np.array([r.parameters[part] for r in runs], float)


def equal_images(runs: Sequence[Run], part: SizePart) -> tuple[list[Run], list[str]]:
    """Runs that saw the same number of images, the number that most sizes share.

    Failing three sizes at any one number, each size's longest runs, with a caution.
    """
    images = np.array([r.curve["images"][-1] for r in runs])
    best: list[Run] = []
    for amount in np.unique(images)[::-1]:
        near = [r for r, i in zip(runs, images, strict=True) if abs(i / amount - 1) <= 0.01]
        if len(set(sizes_of(near, part))) > len(set(sizes_of(best, part))):
            best = near
    every_size = set(sizes_of(runs, part))
    if len(set(sizes_of(best, part))) >= min(3, len(every_size)):
        left_out = len(runs) - len(best)
        if not left_out:
            return best, []
        seen = best[0].curve["images"][-1]
        return best, [
            f"L(N) takes the {len(best)} runs that saw {seen:.4g} images; "
            f"{left_out} that saw another number are left out of it"
        ]
    longest = {n: images[sizes_of(runs, part) == n].max() for n in every_size}
    best = [
        r
        for r, i in zip(runs, images, strict=True)
        if i >= 0.99 * longest[float(r.parameters[part])]
    ]
    return best, [
        f"sizes saw different numbers of images ({images.min():.4g} to {images.max():.4g}): "
        "L(N) mixes the effect of size with that of training"
    ]


def size_law(runs: Sequence[Run], metric: Metric, settings: Settings) -> FittedLaw:
    """L(N) = E + A N^-alpha over the runs' last validation rows, with its checks."""
    n = sizes_of(runs, settings.size)
    y = np.array([r.final[metric] for r in runs])
    law = FittedLaw("L(N)", metric, n[None], y)
    options = {"confidence": settings.confidence, "assumed_noise": settings.seed_noise}
    try:
        law.fit = fit_law(n, y, **options)
    except LawRefused as error:
        law.refusal = str(error)
        return law
    law.cautions = cautions(law.fit)
    if settings.target_size > n.max():
        law.extrapolation = Prediction(settings.target_size, *law.fit.predict(settings.target_size))
        factor = settings.target_size / n.max()
        if factor > (n.max() / n.min()):
            law.cautions.append(
                f"the target is {factor:.3g} times beyond the largest size, further than the sizes "
                f"span ({n.max() / n.min():.3g}): its interval holds only if the law does"
            )
    small = n < n.max()
    try:
        part = fit_law(n[small], y[small], **options)
        value, interval = part.predict(float(n.max()), new_run=True)
        law.held_out = Prediction(float(n.max()), value, interval, float(y[~small].mean()))
    except LawRefused as error:
        law.cautions.append(f"no held-out check of the largest size: {error}")
    return law
