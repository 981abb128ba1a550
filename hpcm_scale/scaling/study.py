"""From run records to a study: every law the runs can carry, and what is asked of each."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hpcm_scale.runs.records import (
    Records,
    Run,
    differing_conditions,
    families,
    read_runs,
    without_copies,
)
from hpcm_scale.scaling.bootstrap import FEW_RUNS, bootstrap
from hpcm_scale.scaling.comparison import compare
from hpcm_scale.scaling.data_selection import Design, equal_images, frontier, size_and_images
from hpcm_scale.scaling.fit_results import (
    METRICS,
    Comparison,
    Family,
    FittedLaw,
    Law,
    Metric,
    Prediction,
    Settings,
    Study,
    UnfittedLaw,
)
from hpcm_scale.scaling.hold_outs import hold_outs
from hpcm_scale.scaling.huber import HuberFit, fit_huber
from hpcm_scale.scaling.isoflop import Cost, Optimum, cost_of, isoflop, optimum
from hpcm_scale.scaling.laws import Fit, cautions, fit_law
from hpcm_scale.scaling.outliers import reweighted
from hpcm_scale.scaling.power_law import NotFittable
from hpcm_scale.scaling.rate_law import RateLaw, fit_rate_law
from hpcm_scale.scaling.rd_extrapolation import predicted_curves
from hpcm_scale.scaling.sweeps import tuned_runs


def fit_laws(paths: Iterable[Path | str], settings: Settings | None = None) -> Study:
    """Fit every law that the runs in some folders can carry.

    Args:
        paths: run folders, or folders of them.

    Raises:
        RunError: if a record is malformed, or no run is left.
    """
    return study(read_runs(paths), settings or Settings())


def study(records: Records, settings: Settings) -> Study:
    """Fit every law the runs can carry; those they cannot are refused with the reason."""
    records = without_copies(records)
    notes = [f"left out: {line}" for line in records.skipped]
    notes += [note for run in records.runs for note in run.notes]
    groups = families(records.runs)
    if len(groups) > 1:
        notes.append(f"{len(groups)} families are fitted apart: {'; '.join(groups)}")
    for label, runs in groups.items():
        if differing := differing_conditions(runs):
            notes.append(
                f"caution, {label}: the runs differ in {', '.join(differing)}; no law is of one of "
                "these"
            )
    fitted = [_family(*item, settings) for item in groups.items()]
    curves = predicted_curves(fitted, settings)
    return Study(settings, fitted, curves, _comparisons(fitted, settings), notes)


def _comparisons(fitted: Sequence[Family], settings: Settings) -> list[Comparison]:
    """The families of each λ beside each other, by their laws of size and of compute."""
    of_lambda: dict[tuple, list[Family]] = {}
    for family in fitted:
        run = family.runs[0]
        of_lambda.setdefault((run.distortion, run.lmbda, run.rates), []).append(family)
    found = []
    for group in of_lambda.values():
        for pick in (lambda family: family.size_laws["loss"], lambda family: family.frontier):
            laws = [(family.label, pick(family)) for family in group]
            laws = [(label, law) for label, law in laws if isinstance(law, FittedLaw)]
            if len(laws) > 1:
                found.append(compare(laws[0][1].name, laws, settings))
    return found


def _family(label: str, runs: list[Run], settings: Settings) -> Family:
    part = settings.size
    runs = sorted(runs, key=lambda r: (r.parameters[part], r.curve["crops"][-1], r.seed))
    kept, edges, about_rates = tuned_runs(runs)
    runs = [runs[i] for i in kept]
    sizes = equal_images(runs, part)
    size_laws: dict[Metric, Law] = {m: size_law(sizes, m, settings) for m in METRICS}
    at_rates, along_rates = _laws_of_rates(runs, sizes, settings)
    try:
        compute = fit_design("L(C)", "loss", frontier(runs, part), settings, ("FLOP count",))
    except NotFittable as error:
        compute = UnfittedLaw("L(C)", "loss", str(error))
    surface = fit_design(
        "L(N, D)", "loss", size_and_images(runs, part), settings, ("size", "image count")
    )
    view, refusal = None, None
    try:
        view = isoflop(runs, part, confidence=settings.confidence, draws=settings.draws)
    except NotFittable as error:
        refusal = str(error)
    cost, optima = _optima(runs, surface, settings)
    held_out = {}
    for law in (size_laws["loss"], *at_rates):
        if isinstance(law, FittedLaw):
            held_out[law.label] = hold_outs(law.fit)
            law.cautions += reweighted(law, edges)
    if isinstance(along_rates, RateLaw):
        held_out["loss(N, λ)"] = along_rates.hold_outs
    return Family(
        label=label,
        runs=runs,
        size_laws=size_laws,
        frontier=compute,
        surface=surface,
        isoflop=view,
        isoflop_refusal=refusal,
        cost=cost,
        optima=optima,
        hold_outs=held_out,
        at_rates=at_rates,
        along_rates=along_rates,
        cautions=about_rates,
    )


def _laws_of_rates(
    runs: Sequence[Run], sizes: Design, settings: Settings
) -> tuple[list[Law], RateLaw | str | None]:
    """The law of size at each λ of networks that code at every rate, and all of these in one.

    Args:
        sizes: of the runs that L(N) takes.
    """
    rates = runs[0].rates
    taken = [run for run in runs if run.name in sizes.names]
    if not rates:
        return [], None
    n = np.array([run.parameters[settings.size] for run in taken], float)
    losses = np.stack([run.at_rates["loss"] for run in taken], axis=1)  # (rates, runs)
    names = [run.name for run in taken]
    laws = []
    for lmbda, loss in zip(rates, losses, strict=True):
        design = Design(n[None], {"loss": loss}, np.arange(len(n)), names, list(sizes.cautions))
        laws.append(fit_design(f"L(N) at λ {lmbda:g}", "loss", design, settings, ("size",)))
    try:
        return laws, fit_rate_law(n, np.array(rates), losses, confidence=settings.confidence)
    except NotFittable as error:
        return laws, str(error)


def fit_design(
    name: str, metric: Metric, design: Design, settings: Settings, what: Sequence[str]
) -> Law:
    """Both methods, the bootstrap and the cautions for one law."""
    own = list(design.cautions)
    try:
        fit = fit_law(
            design.x,
            design.metric(metric),
            design.run,
            confidence=settings.confidence,
            assumed_noise=settings.seed_noise,
            what=what,
        )
    except NotFittable as error:
        return UnfittedLaw(name, metric, str(error), design, own)
    law = FittedLaw(name, metric, design, fit, cautions=own + cautions(fit, what=what))
    points = law.fit.points
    try:
        law.huber = fit_huber(points, law.fit.law)
    except NotFittable as error:
        law.cautions.append(str(error))
        return law
    if not law.huber.converged:
        law.cautions.append("the Huber fit ended in another place from every start: do not use it")
    law.cautions += _disagreement(law.fit, law.huber)
    if points.clusters > len(points.x) + 2:
        law.bootstrap = bootstrap(points, law.huber, settings.draws)
    return law


def _disagreement(fit: Fit, huber: HuberFit) -> list[str]:
    """Exponents on which the two methods differ by more than the interval."""
    if fit.noise is None:
        return []
    out = []
    for name in ("alpha", "beta")[: len(fit.points.x)]:
        other, (low, high) = huber.law.parameters[name], fit.interval(name).ends
        if not max(low, 0) <= other <= high:
            out.append(
                f"the Huber fit's {name} {other:.3g} lies outside the least-squares interval: some "
                "points pull hard on one of the two"
            )
    return out


def size_law(design: Design, metric: Metric, settings: Settings) -> Law:
    """L(N) = E + A N^-alpha at equal images, with held-out largest size and extrapolation."""
    law = fit_design("L(N)", metric, design, settings, ("size",))
    if isinstance(law, UnfittedLaw):
        return law
    n, y = design.x[0], law.y
    target = settings.target_size
    if target > n.max():
        law.extrapolation = Prediction(target, *law.fit.predict(target))
        if target / n.max() > n.max() / n.min():
            law.cautions.append(
                f"the target is {target / n.max():.3g} times beyond the largest size, further than "
                f"the sizes span ({n.max() / n.min():.3g}): its interval holds only if the law does"
            )
    small = n < n.max()
    try:
        part = fit_law(
            n[small], y[small], confidence=settings.confidence, assumed_noise=settings.seed_noise
        )
        value, interval = part.predict(float(n.max()), new_run=True)
        law.held_out = Prediction(float(n.max()), value, interval, float(y[~small].mean()))
    except NotFittable as error:
        law.cautions.append(f"no held-out check of the largest size: {error}")
    return law


def _optima(runs: list[Run], surface: Law, settings: Settings) -> tuple[Cost | None, list[Optimum]]:
    if isinstance(surface, UnfittedLaw) or surface.bootstrap is None:
        return None, []
    cost = cost_of(runs, settings.size)
    if cost.worst > 0.1:
        surface.cautions.append(
            f"counted FLOPs per image stray from a power of N by up to {cost.worst:.0%}: the "
            "compute-optimal sizes inherit that"
        )
    if len(runs) < FEW_RUNS:
        surface.cautions.append(
            f"the intervals of the compute-optimal sizes resample {len(runs)} runs: too narrow"
        )
    spent = max(run.curve["flops"][-1] for run in runs)
    budgets = [settings.budget] if settings.budget else [spent, 10 * spent, 100 * spent]
    law, resampled = surface.fit.law, surface.bootstrap
    return cost, [optimum(b, cost, law, resampled, settings.confidence) for b in budgets]
