"""A study's results in words and rows, the same on the terminal as on the page."""

import math
from collections.abc import Iterator, Sequence

from hpcm_scale.scaling.bootstrap import FEW_RUNS
from hpcm_scale.scaling.fit_results import (
    CurvePrediction,
    Family,
    FittedLaw,
    Settings,
    UnfittedLaw,
)
from hpcm_scale.scaling.power_law import Interval

FORMS = {
    "L(N)": "E + A N^-alpha",
    "L(C)": "E + A C^-alpha",
    "L(N, D)": "E + A N^-alpha + B D^-beta",
}
ROW_HEADS = ("law", "", "least squares", "profile interval", "Huber", "bootstrap", "dof")


def figures(value: float) -> str:
    """Four significant figures."""
    return f"{value:.4g}"


def span(interval: Interval) -> str:
    """low … high, with words for an open end."""
    low, high = interval.ends
    match math.isfinite(low), math.isfinite(high):
        case False, False:
            return "not bounded"
        case False, True:
            return f"below {figures(high)}"
        case True, False:
            return f"above {figures(low)}"
    return f"{figures(low)} … {figures(high)}"


def rows(law: FittedLaw) -> Iterator[tuple[str, ...]]:
    """One row of ROW_HEADS for each parameter of a fitted law."""
    fit = law.fit
    for i, (name, value) in enumerate(fit.law.parameters.items()):
        resampled = "–"
        if law.bootstrap is not None:
            resampled = span(
                law.bootstrap.interval(law.bootstrap.projected, name, fit.confidence)
            ) + ("" if fit.points.clusters >= FEW_RUNS else " *")
        yield (
            f"{law.metric} = {FORMS[law.name]}" if i == 0 else "",
            name,
            figures(value),
            span(fit.interval(name)),
            "–" if law.huber is None else figures(law.huber.law.parameters[name]),
            resampled,
            str(max(fit.degrees_of_freedom, 0)) if i == 0 else "",
        )


def heading(family: Family, settings: Settings) -> str:
    """Summary of the runs, in a line."""
    n = [run.parameters[settings.size] for run in family.runs]
    sizes, seeds = len(set(n)), len({run.seed for run in family.runs})
    return (
        f"{family.label}: {_count(len(n), 'run')}, {_count(sizes, 'size')} "
        f"({figures(min(n))} to {figures(max(n))}), {_count(seeds, 'seed')}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def refusals(family: Family) -> list[str]:
    """Laws that were not fitted, each with its reason."""
    unfitted = [law for law in family.laws if isinstance(law, UnfittedLaw)]
    out = [f"{law.label} refused: {law.refusal}" for law in unfitted]
    view = family.isoflop
    reason = family.isoflop_refusal if view is None else view.refusal
    return [*out, f"isoFLOP refused: {reason}"] if reason else out


def findings(family: Family) -> list[str]:
    """Held-out checks, extrapolations, compute-optimal choices."""
    out = []
    for law in family.fitted:
        if (p := law.held_out) is not None and p.measured is not None:
            low, high = p.interval.ends
            within = low <= p.measured <= high
            out.append(
                f"{law.label} held out: the size {figures(p.size)}, predicted from the others, "
                f"{figures(p.value)} ({span(p.interval)}); measured {figures(p.measured)}, so the "
                f"prediction is {p.value / p.measured - 1:+.2%} off and the measurement "
                f"{'inside' if within else 'OUTSIDE'} its interval"
            )
    for law in family.fitted:
        if (p := law.extrapolation) is not None:
            out.append(
                f"{law.label} at N = {figures(p.size)}: {figures(p.value)} ({span(p.interval)})"
            )
    view = family.isoflop
    if view is not None and view.exponent is not None and view.interval is not None:
        out.append(f"isoFLOP: best N grows as C^{view.exponent:.3g} ({span(view.interval)})")
    for o in family.optima:
        out.append(
            f"with {figures(o.flops)} FLOPs, best: N {figures(o.size)} ({span(o.size_interval)}) "
            f"on {figures(o.images)} crops ({span(o.images_interval)}), loss {figures(o.loss)} "
            f"({span(o.loss_interval)})"
        )
    return out


def across_lambdas(curves: Sequence[CurvePrediction]) -> list[str]:
    """Predicted savings of the extrapolated curves, in words."""
    out = []
    for c in curves:
        where = f"{c.label}: R-D curve of {len(c.lambdas)} λ at N = {figures(c.target_size)}"
        if c.refusal is not None:
            out.append(f"{where}: {c.refusal}")
            continue
        sure = "" if c.interval is None else f" ({c.interval.low:+.1f} … {c.interval.high:+.1f})"
        out.append(
            f"{where}: BD-rate {c.bd_rate:+.1f} %{sure} against the {figures(c.anchor_size)} "
            "models as measured; it takes both laws, of rate and of MSE, for granted at every λ"
        )
    return out


def gathered_cautions(family: Family) -> list[str]:
    """Every caution once, after the laws it is about; a refused law needs none."""
    about: dict[str, list[str]] = {}
    for law in family.fitted:
        for caution in law.cautions:
            about.setdefault(caution, []).append(law.label)
    if family.isoflop is not None:
        for caution in family.isoflop.cautions:
            about.setdefault(caution, []).append("isoFLOP")
    return [f"{', '.join(labels)}: {caution}" for caution, labels in about.items()]


def foot(fitted: Sequence[FittedLaw]) -> str | None:
    """Meaning of the asterisk in the bootstrap's column."""
    few = any(law.bootstrap is not None and law.fit.points.clusters < FEW_RUNS for law in fitted)
    return f"* fewer than {FEW_RUNS} runs: too narrow, quote the profile interval" if few else None
