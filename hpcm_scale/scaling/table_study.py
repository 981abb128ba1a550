"""Laws of runs that come as tables: what a table has decides which laws can be fitted."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import optimize, stats

from hpcm_scale.runs.run_table import RunTable
from hpcm_scale.scaling.approach_two import Displacement, displacement
from hpcm_scale.scaling.bootstrap import percentiles
from hpcm_scale.scaling.data_selection import Design
from hpcm_scale.scaling.fit_results import FittedLaw, Law, Settings
from hpcm_scale.scaling.isoflop import Cost
from hpcm_scale.scaling.laws import fit_law
from hpcm_scale.scaling.outliers import standing_out
from hpcm_scale.scaling.power_law import Interval, NotFittable
from hpcm_scale.scaling.study import fit_design
from hpcm_scale.scaling.three_term import ThreeTermLaw, fit_three_terms
from hpcm_scale.scaling.variable_projection import HIGHEST_EXPONENT, LOWEST_EXPONENT

PARTS = 6
"""A hold-out cuts the runs, ordered by size, into so many parts."""
DESIGNS = ((4.0, 1.0), (16.0, 1.0), (16.0, 4.0))
"""Reach and drift of the sizes for which Approach 2 is looked at."""


@dataclass(frozen=True)
class HoldOut:
    """Some sizes predicted from others: from all smaller ones, or from all others."""

    kind: str
    """smaller or others: what they are predicted from."""
    fitted: int
    """Runs fitted."""
    low: float
    high: float
    """Range of the predicted runs' first variable."""
    runs: int
    """Runs predicted."""
    bias: float
    """Mean of predicted / measured - 1."""
    error: float
    """Root mean square of the same."""
    exponent: float
    """First exponent of the law that predicts them."""


@dataclass
class TableFamily:
    """One family of runs and its laws."""

    table: RunTable
    laws: list[Law]
    hold_outs: dict[str, list[HoldOut]] = field(default_factory=dict)
    """By law."""
    cautions: list[str] = field(default_factory=list)
    displacements: list[Displacement] = field(default_factory=list)
    """What Approach 2 would make of the law L(N, D), on budgets as these runs had."""
    batches: ThreeTermLaw | str | None = None
    """The law of size, steps and batch, or why there is none; None where batches do not differ."""

    @property
    def fitted(self) -> list[FittedLaw]:
        """Laws that were fitted."""
        return [law for law in self.laws if isinstance(law, FittedLaw)]


@dataclass(frozen=True)
class Comparison:
    """Two or more families by one law of one variable."""

    law: str
    families: list[str]
    common_exponent: float
    p: float
    """Of the F test of equal exponents: small where they differ."""
    crossings: list[tuple[str, str, float, Interval, float]]
    """Two families, where their curves cross, its interval, and the share of resamples that do."""


@dataclass(frozen=True)
class TableStudy:
    """Everything `hpcm-scale fit` shows of tables."""

    settings: Settings
    families: list[TableFamily]
    comparisons: list[Comparison]
    notes: list[str]


def table_study(
    tables: Sequence[RunTable], notes: Sequence[str], settings: Settings, flops_per: float | None
) -> TableStudy:
    """Fit every law that the tables can carry.

    Args:
        notes: how they were read.
        flops_per: where a table has C and N but not D, D is C / (flops_per · N); None: it is left.
    """
    notes = list(notes)
    families = []
    for table in tables:
        if table.d is None and table.n is not None and table.c is not None and flops_per:
            d = table.c / (flops_per * table.n)
            table = replace(table, d=d)
            notes.append(f"{table.label}: D is taken to be C / ({flops_per:g} N)")
        families.append(_family(table, settings))
    comparisons = []
    for name in ("L(N)", "L(C)"):
        group = [(f.table.label, law) for f in families for law in f.fitted if law.name == name]
        if len(group) > 1:
            comparisons.append(compare(name, group, settings))
    return TableStudy(settings, families, comparisons, notes)


def tuned(table: RunTable) -> tuple[RunTable, list[str]]:
    """The best run of each sweep of learning rates, and what its reader should know.

    A sweep is of runs that differ in nothing but the rate: a law is of tuned runs. Where the best
    rate is the lowest or highest tried, the run may be under-tuned, which is said.
    """
    if table.lr is None:
        return table, []
    parts = [x for x in (table.n, table.d, table.c, table.batch) if x is not None]
    _, sweep = np.unique(np.stack(parts), axis=1, return_inverse=True)
    sweep = sweep.reshape(-1)
    kept, edges = [], []
    for number in range(sweep.max() + 1):
        rows = np.flatnonzero(sweep == number)
        rates = table.lr[rows]
        if len(np.unique(rates)) < 2:  # seeds of one rate
            kept += rows.tolist()
            continue
        best = rates[table.loss[rows].argmin()]
        kept += rows[rates == best].tolist()
        if best in (rates.min(), rates.max()):
            edges.append(f"{table.names[rows[0]]} ({best:g})")
    said = []
    if len(kept) < len(table):
        said.append(
            f"of runs that differ in the learning rate alone, the best rate's count: {len(kept)} "
            f"of {len(table)}"
        )
    if edges:
        said.append(
            f"under-tuned, perhaps: the best learning rate is the edge of its sweep at "
            f"{', '.join(edges[:3])}{', ...' if len(edges) > 3 else ''}"
        )
    return table.kept(np.sort(np.array(kept))), said


def _family(given: RunTable, settings: Settings) -> TableFamily:
    whole, about_rates = tuned(given)
    table = whole
    laws: list[Law] = []
    n, d, c = table.n, table.d, table.c
    if n is not None and d is not None and len(np.unique(d)) >= 3:
        laws.append(_law("L(N, D)", table, [n, d], settings, ("size", "amount of data"), []))
    elif n is not None:
        said = []
        if d is not None and d.max() > 1.02 * d.min():
            said = [
                f"runs saw {d.min():.4g} or {d.max():.4g} {table.unit}: L(N) mixes the effect of "
                "size with that of training"
            ]
        laws.append(_law("L(N)", table, [n], settings, ("size",), said))
    if c is not None:
        lead = _frontier(c, table.loss)
        said = []
        if n is not None and len(lead) < len(c):
            said = [f"L(C) takes the {len(lead)} runs that no run of fewer FLOPs betters"]
            c, table = c[lead], table.kept(lead)
        laws.append(_law("L(C)", table, [c], settings, ("FLOP count",), said))
    family = TableFamily(whole, laws, cautions=about_rates)
    for law in family.fitted:
        family.hold_outs[law.name] = hold_outs(law)
        if law.name == "L(N, D)" and whole.c is not None:
            family.displacements = _displacements(law, whole.c)
        law.cautions += standing_out(law)
    if n is not None and d is not None and whole.batch is not None and np.ptp(whole.batch) > 0:
        try:
            family.batches = fit_three_terms(
                n, d / whole.batch, whole.batch, whole.loss, confidence=settings.confidence
            )
        except NotFittable as error:
            family.batches = str(error)
    if whole.differing:
        family.cautions.append(
            f"the runs differ in {', '.join(whole.differing)}: no law is of one of these; "
            "--group fits each apart"
        )
    return family


def _law(
    name: str,
    table: RunTable,
    x: Sequence[np.ndarray],
    settings: Settings,
    what: Sequence[str],
    said: list[str],
) -> Law:
    """The law of a table's losses against `x`, which has a value for each of its runs."""
    design = Design(np.stack(x), {"loss": table.loss}, np.arange(len(table)), table.names, said)
    return fit_design(name, "loss", design, settings, what)


def _frontier(c: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Numbers of the runs that no run of fewer or equal FLOPs betters."""
    order = np.lexsort((loss, c))
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return np.sort(order[loss[order] < before])


def hold_outs(law: FittedLaw) -> list[HoldOut]:
    """Predict sizes from smaller ones, part by part to the largest, then each part from the others.

    A law that only interpolates fails the former; one that hangs on a part, the latter.
    """
    sizes = np.unique(law.fit.points.x[0])
    parts = np.array_split(sizes, min(PARTS, len(sizes)))
    x = law.fit.points.x[0]
    masks = [(x >= part[0]) & (x <= part[-1]) for part in parts]
    found = [
        _held_out(law, "smaller", x <= before[-1], mask)
        for before, mask in zip(parts, masks[1:], strict=False)
    ]
    found += [_held_out(law, "others", ~mask, mask) for mask in masks]
    return [part for part in found if part is not None]


def _held_out(
    law: FittedLaw, kind: str, fitted: np.ndarray, predicted: np.ndarray
) -> HoldOut | None:
    """Some runs predicted from others; None where these carry no law."""
    x, y = law.fit.points.x, law.y
    try:
        fit = fit_law(x[:, fitted], y[fitted], confidence=law.fit.confidence)
    except NotFittable:
        return None
    errors = fit.law(*x[:, predicted]) / y[predicted] - 1
    return HoldOut(
        kind,
        int(fitted.sum()),
        float(x[0][predicted].min()),
        float(x[0][predicted].max()),
        int(predicted.sum()),
        float(errors.mean()),
        float(np.sqrt((errors**2).mean())),
        float(fit.law.exponents[0]),
    )


def _displacements(law: FittedLaw, c: np.ndarray) -> list[Displacement]:
    """What Approach 2 would find of a law L(N, D), within the budgets of its runs."""
    n, d = law.fit.points.x
    power, factor = np.polyfit(np.log(n), np.log(c / d), 1)
    cost = Cost(float(np.exp(factor)), float(power), 0.0)
    return [
        displacement(law.fit.law, cost, float(c.min()), float(c.max()), reach, drift)
        for reach, drift in DESIGNS
    ]


def compare(name: str, group: Sequence[tuple[str, FittedLaw]], settings: Settings) -> Comparison:
    """Test that the exponents of several families are equal, and find where their curves cross.

    The F test takes every family's losses to scatter by the same share of the loss.
    """
    laws = [law for _, law in group]

    def shared(log_exponent: float) -> float:
        exponent = np.exp(log_exponent)
        return sum(_sse_at(law.fit.points.x[0], law.y, exponent) for law in laws)

    grid = np.linspace(np.log(LOWEST_EXPONENT), np.log(HIGHEST_EXPONENT), 400)
    best = int(np.argmin([shared(value) for value in grid]))
    near = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found: Any = optimize.minimize_scalar(shared, bounds=near, method="bounded")
    apart = sum(law.fit.sse for law in laws)
    extra = len(laws) - 1
    left = sum(len(law.y) - law.fit.points.unknowns for law in laws)
    p = float("nan")
    if left > 0:
        ratio = (float(found.fun) - apart) / extra / max(apart / left, 1e-300)
        p = float(stats.f.sf(max(ratio, 0.0), extra, left))
    crossings = []
    for i, (first, one) in enumerate(group):
        for second, other in group[i + 1 :]:
            crossing = _crossing(one, other, settings)
            if crossing is not None:
                crossings.append((first, second, *crossing))
    return Comparison(name, [label for label, _ in group], float(np.exp(found.x)), p, crossings)


def _sse_at(x: np.ndarray, y: np.ndarray, exponent: float) -> float:
    """Least sum of squared relative residuals of E + A x^-exponent with E, A ≥ 0."""
    scaled = (x / np.exp(np.log(x).mean())) ** -exponent
    return float(optimize.nnls(np.stack([1 / y, scaled / y], axis=1), np.ones(len(y)))[1] ** 2)


def _crossing(
    one: FittedLaw, other: FittedLaw, settings: Settings
) -> tuple[float, Interval, float] | None:
    """Where two laws are equal within 100 times the range of their runs, if they are once."""
    x = np.concatenate([one.fit.points.x[0], other.fit.points.x[0]])
    grid = np.geomspace(x.min() / 100, x.max() * 100, 2000)

    def cross(first: np.ndarray, second: np.ndarray) -> float:
        difference = (first[0] + first[1] * grid ** -first[2]) - (
            second[0] + second[1] * grid ** -second[2]
        )
        changes = np.flatnonzero(np.sign(difference[1:]) != np.sign(difference[:-1]))
        return float(grid[changes[0]]) if len(changes) == 1 else np.nan

    values = [np.array(list(law.fit.law.parameters.values())) for law in (one, other)]
    at = cross(*values)
    if not np.isfinite(at) or one.bootstrap is None or other.bootstrap is None:
        return None
    rng = np.random.default_rng(0)
    draws = [
        law.bootstrap.projected[rng.integers(len(law.bootstrap.projected), size=settings.draws)]
        for law in (one, other)
        if law.bootstrap is not None
    ]
    found = np.array([cross(a, b) for a, b in zip(*draws, strict=True)])
    return at, percentiles(found, settings.confidence), float(np.isfinite(found).mean())
