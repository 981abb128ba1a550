"""A study's results in words and rows, the same on the terminal as on the page."""

import math
from collections.abc import Iterator, Mapping, Sequence

from hpcm_scale.scaling.bootstrap import FEW_RUNS
from hpcm_scale.scaling.fit_results import (
    Comparison,
    CurvePrediction,
    Family,
    FittedLaw,
    Settings,
    UnfittedLaw,
)
from hpcm_scale.scaling.hold_outs import HoldOut
from hpcm_scale.scaling.power_law import Interval
from hpcm_scale.scaling.rate_law import RateLaw

FORMS = {
    "L(N)": "E + A N^-alpha",
    "L(C)": "E + A C^-alpha",
    "L(N, D)": "E + A N^-alpha + B D^-beta",
}
TEN = 10
"""How far beyond the largest size the law along λ is followed."""
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
            _form(law) if i == 0 else "",
            name,
            figures(value),
            span(fit.interval(name)),
            "–" if law.huber is None else figures(law.huber.law.parameters[name]),
            resampled,
            str(max(fit.degrees_of_freedom, 0)) if i == 0 else "",
        )


def _form(law: FittedLaw) -> str:
    """Such as loss = E + A N^-alpha; with λ where the law is of one of many."""
    name, at, lmbda = law.name.partition(" at ")
    return f"{law.metric}{at}{lmbda} = {FORMS[name]}"


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
    if reason:
        out.append(f"isoFLOP refused: {reason}")
    if isinstance(family.along_rates, str):
        out.append(f"loss(N, λ) refused: {family.along_rates}")
    return out


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
    if isinstance(family.along_rates, RateLaw):
        out += _along_rates(family.along_rates)
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


def _along_rates(law: RateLaw) -> list[str]:
    """The law along λ, and what it says of ten times the largest size."""
    lambdas = law.law.lambdas
    middle = math.sqrt(lambdas[0] * lambdas[-1])
    exponent, slope = law.interval("exponent"), law.interval("slope")
    first = (
        f"loss(N, λ) = E(λ) + A(λ) N^-alpha(λ) at {len(lambdas)} λ of {lambdas[0]:g} to "
        f"{lambdas[-1]:g}: alpha {figures(law.law.exponent)} ({_sure(exponent)}) at λ "
        f"{figures(middle)}, {law.law.slope:+.3g} ({_sure(slope)}) for each factor e of λ"
    )
    if exponent is not None:
        first += f", p = {law.p_equal:.2g} that it is the same at every λ"
    n = TEN * float(law.n.max())
    there = (
        f"{figures(value)} ({_sure(interval)}) at λ {lmbda:g}"
        for lmbda in lambdas.tolist()
        for value, interval in (law.predict(n, lmbda),)
    )
    return [
        f"{first}; rms of relative residuals {law.error:.2%}; intervals leave out runs in turn",
        f"loss(N, λ) at N = {figures(n)}: {', '.join(there)}",
    ]


def _sure(interval: Interval | None) -> str:
    return "too few sizes for an interval" if interval is None else span(interval)


def compared(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Families side by side: a heading, the test of equal exponents, and where curves cross."""
    for comparison in comparisons:
        yield f"{comparison.law}, {' and '.join(comparison.families)}"
        yield (
            f"one exponent for all: {figures(comparison.common_exponent)}; F test of equal "
            f"exponents, p = {comparison.p:.2g}"
        )
        for first, second, at, interval, share in comparison.crossings:
            yield (
                f"{first} and {second} cross at {figures(at)} ({span(interval)}; {share:.0%} of "
                "resamples cross once)"
            )


HOLD_OUT_HEADS = ("", "", "fitted", "predicted", "runs", "mean", "rms", "exponent")
HOLD_OUT_TITLE = "hold-outs: sizes predicted from smaller ones, and from all others"


def hold_out_rows(by_law: Mapping[str, Sequence[HoldOut]]) -> Iterator[list[tuple[str, ...]]]:
    """Rows of HOLD_OUT_HEADS, law by law."""
    for name, parts in by_law.items():
        found, before = [], None
        for i, part in enumerate(parts):
            ends = (
                f"{end:.2g}".replace("e+0", "e").replace("e+", "e") for end in (part.low, part.high)
            )
            found.append(
                (
                    "" if i else name,
                    "" if part.kind == before else part.kind,
                    *(str(part.fitted), " … ".join(dict.fromkeys(ends)), str(part.runs)),
                    *(f"{part.bias:+.2%}", f"{part.error:.2%}", f"{part.exponent:.3f}"),
                )
            )
            before = part.kind
        yield found


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
    said = [f"{', '.join(labels)}: {caution}" for caution, labels in about.items()]
    return [*family.cautions, *said]


def foot(fitted: Sequence[FittedLaw]) -> str | None:
    """Meaning of the asterisk in the bootstrap's column."""
    few = any(law.bootstrap is not None and law.fit.points.clusters < FEW_RUNS for law in fitted)
    return f"* fewer than {FEW_RUNS} runs: too narrow, quote the profile interval" if few else None
