"""Scaling laws L = E + A N^-α (+ B D^-β) fitted to the final losses of runs, with honest intervals.

Hoffmann et al. 2022 (arXiv 2203.15556, eq. 2) for the form, Golub & Pereyra 1973 for the variable
projection, Besiroglu et al. 2024 (arXiv 2404.10102) for what careless intervals cost.

Which interval is for what:

- `Fit.interval` and `Fit.predict` are profile-likelihood intervals calibrated by Student's t on the
  degrees of freedom left: every value whose best law has a residual within t² s² of the best. They
  hold their level with few sizes and when the curve bends, and can be open-ended.
- `bootstrap.Bootstrap` resamples whole runs. It needs no noise model, and is right for many runs;
  with fewer than about 15 it is too narrow and is reported only beside the profile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from hpcm_scale.scaling import cluster_robust
from hpcm_scale.scaling.power_law import (
    TERM_NAMES,
    Interval,
    NotFittable,
    Points,
    PowerLaw,
    points_of,
    power_law,
)
from hpcm_scale.scaling.variable_projection import (
    HIGHEST_EXPONENT,
    LOWEST_EXPONENT,
    Region,
    region,
    search,
)


@dataclass(frozen=True)
class Fit:
    """A law fitted by variable projection, and how well it is known."""

    points: Points
    law: PowerLaw
    confidence: float
    assumed_noise: float | None
    """Relative seed noise supplied from elsewhere, used when no degree of freedom is left."""

    @cached_property
    def residuals(self) -> np.ndarray:
        """(n,) (L - f) / L."""
        return 1 - self.law(*self.points.x) / self.points.y

    @property
    def sse(self) -> float:
        return float(self.residuals @ self.residuals)

    @property
    def degrees_of_freedom(self) -> int:
        """Points less unknowns; for several points a run, runs less one if that is fewer."""
        left = len(self.points.y) - self.points.unknowns
        if self.points.clusters < len(self.points.y):
            left = min(left, self.points.clusters - 1)
        return left

    @property
    def noise(self) -> float | None:
        """s, the relative standard deviation of a loss about the law; None if nothing tells."""
        left = len(self.points.y) - self.points.unknowns
        return float(np.sqrt(self.sse / left)) if left > 0 else self.assumed_noise

    @property
    def quantile(self) -> float:
        """Student's t of the interval, or the normal one where the noise is assumed."""
        tail = 0.5 + self.confidence / 2
        left = self.degrees_of_freedom
        return float(stats.t.ppf(tail, left) if left > 0 else stats.norm.ppf(tail))

    def _region(self, direction: np.ndarray) -> Region:
        """Laws not rejected about a quantity whose gradient in (c, θ) is `direction`."""
        if self.noise is None:
            raise NotFittable("no degree of freedom is left to tell the noise, and none was given")
        inflation = cluster_robust.variance_ratio(self.points, self.law, direction)
        bound = self.sse + self.quantile**2 * self.noise**2 * inflation
        if bound not in self._regions:
            best = np.array(self.law.exponents)
            self._regions[bound] = region(self.points, best, bound)
        return self._regions[bound]

    @cached_property
    def _regions(self) -> dict[float, Region]:
        return {}

    def interval(self, name: str) -> Interval:
        """Profile interval of E, A, alpha, B or beta.

        Raises:
            NotFittable: if there is no degree of freedom and no assumed noise.
        """
        k = len(self.points.x)
        names = [n for pair in TERM_NAMES[:k] for n in pair]
        direction = np.zeros(1 + 2 * k)
        if name == "E":
            direction[0] = 1
            low, high = self._region(direction).linear(
                lambda grids: [np.ones(())] + [np.zeros(())] * k
            )
            return Interval(low, high)
        j, is_exponent = divmod(names.index(name), 2)
        if is_exponent:
            direction[1 + k + j] = 1
            return Interval(*self._region(direction).exponent(j))
        # d log A = d log c + log(reference) dθ, for the A of raw x against the c of x / reference
        log_reference = np.log(self.points.reference[j])
        scale = self.points.reference[j] ** self.law.exponents[j]
        direction[1 + j] = scale
        direction[1 + k + j] = self.law.amplitudes[j] * log_reference
        held = self._region(direction)
        low, high = held.linear(
            lambda grids: [
                np.exp(grids[j] * log_reference) if i == j + 1 else np.zeros(())
                for i in range(k + 1)
            ]
        )
        ends = held.exponent(j)
        return Interval(low, high if ends[1] is not None else None)

    def predict(self, *x: float, new_run: bool = False) -> tuple[float, Interval]:
        """Loss at one x, and its interval.

        Args:
            new_run: the interval is for the loss one more run would show, not for the law.

        Raises:
            NotFittable: if there is no degree of freedom and no assumed noise.
        """
        k = len(x)
        value = float(self.law(*x))
        log_x = np.log(np.array(x) / self.points.reference)
        powers = np.exp(-log_x * self.law.exponents)
        c = self.law.scaled(self.points)
        direction = np.concatenate([[1.0], powers, -c * powers * log_x])
        low, high = self._region(direction).linear(
            lambda grids: [np.ones(())] + [np.exp(-grids[j] * log_x[j]) for j in range(k)]
        )
        if new_run:
            # Without a degree of freedom or an assumed noise nothing tells how runs differ.
            spread = self.quantile * (self.noise or 0.0) * value
            low = value - np.hypot(value - low, spread)
            high = value + np.hypot(high - value, spread)
        return value, Interval(max(low, 0.0), high)


def fit_law(
    x: np.ndarray,
    y: np.ndarray,
    cluster: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    assumed_noise: float | None = None,
    what: Sequence[str] = ("size", "image count"),
) -> Fit:
    """Least squares of relative residuals by variable projection.

    Args:
        x: (n,) sizes (or FLOPs), or (2, n) sizes and images.
        y: (n,) losses.
        cluster: (n,) run of each point, when runs give several.
        confidence: level of the intervals.
        assumed_noise: relative standard deviation between seeds, for data that cannot tell it.
        what: what each abscissa is, for messages.

    Raises:
        NotFittable: if the points are too few, flat, rising, or leave an exponent undetermined.
    """
    points = points_of(x, y, cluster)
    _enough(points, what)
    exponents, c = search(points, np.ones((1, len(points.y))))
    fit = Fit(points, power_law(points, c[0], exponents[0]), confidence, assumed_noise)
    check_decreasing(fit, what)
    return fit


def _enough(points: Points, what: Sequence[str]) -> None:
    for values, name in zip(points.x, what, strict=False):
        distinct = len(np.unique(values))
        if distinct < 3:
            plural = "s" if distinct > 1 else ""
            raise NotFittable(
                f"{distinct} {name}{plural}: floor, amplitude and exponent of a power law "
                "are three unknowns, and take at least three"
            )
    if points.clusters < len(points.y) and points.clusters <= points.unknowns:
        raise NotFittable(
            f"{len(points.y)} points of only {points.clusters} runs: points of one run are not "
            f"independent, and {points.unknowns} unknowns take at least {points.unknowns + 1} runs"
        )
    if len(points.y) < points.unknowns:
        raise NotFittable(f"{len(points.y)} points for {points.unknowns} unknowns")


def check_decreasing(fit: Fit, what: Sequence[str]) -> None:
    """Refuse laws in which a term does nothing, or does what no power law does."""
    points, law = fit.points, fit.law
    terms = zip(what, points.x, law.amplitudes, law.exponents, strict=False)
    for name, values, amplitude, exponent in terms:
        fall = amplitude * (values.min() ** -exponent - values.max() ** -exponent)
        if not fall > 1e-9 * points.y.mean():
            raise NotFittable(f"the loss does not fall with {name}: no decreasing power law fits")
    for name, exponent in zip(what, law.exponents, strict=False):
        if not LOWEST_EXPONENT * 1.01 < exponent < HIGHEST_EXPONENT / 1.01:
            shape = "a step" if exponent > 1 else "a logarithm"
            raise NotFittable(
                f"the exponent of {name} ends at the edge of the search, {exponent:.3g}: the loss "
                f"falls as {shape} does, not as a power"
            )
    left = len(points.y) - points.unknowns
    if left == 0 and (rises := _order(points, what[0])):
        raise NotFittable(f"{rises[0]}, and {len(points.y)} points leave nothing to judge it by")
    if left > 0:
        for j in range(len(points.x)):
            p = f_test_term(fit, j, left)
            if p > 0.05:
                raise NotFittable(
                    f"the fall with {what[j]} is no larger than the scatter "
                    f"(F test against no fall, p = {p:.2f}): no exponent can be told from this"
                )
        held = [fit.interval(names[1]) for names in TERM_NAMES[: len(points.x)]]
        if any(i.low is None and i.high is None for i in held):
            raise NotFittable("the scatter is so large that any exponent fits")


def f_test_term(fit: Fit, j: int, left: int) -> float:
    """p-value of the law without term j: two unknowns fewer."""
    points = fit.points
    others = [i for i in range(len(points.x)) if i != j]
    if others:
        rest = Points(points.x[others], points.y, points.cluster)
        exponents, c = search(rest, np.ones((1, len(points.y))))
        value = c[0, 0] + c[0, 1] * np.exp(-rest.log_x[0] * exponents[0, 0])
    else:
        value = (1 / points.y).sum() / (1 / points.y**2).sum()
    without = float(((1 - value / points.y) ** 2).sum())
    return float(stats.f.sf((without - fit.sse) / 2 / max(fit.sse / left, 1e-300), 2, left))


def cautions(fit: Fit, *, what: Sequence[str] = ("size", "image count")) -> list[str]:
    """Cautions that a reader must know before believing the numbers, one sentence each."""
    points, law, out = fit.points, fit.law, []
    distinct = len(np.unique(points.x[0]))
    left = fit.degrees_of_freedom
    if left <= 0:
        passes = np.abs(fit.residuals).max() < 1e-5
        out.append(
            f"{len(points.y)} points fix {points.unknowns} unknowns, no degree of freedom left: "
            + (
                "the curve passes through them whatever they are, so the fit is no evidence for it"
                if passes
                else "no falling power law passes through them, and the nearest is shown"
            )
        )
        if fit.assumed_noise is not None:
            out.append(
                f"the intervals assume that seeds differ by {fit.assumed_noise:.1%} of the loss; "
                "these runs cannot tell"
            )
    elif left < 5:
        out.append(
            f"{left} degree{'s' if left > 1 else ''} of freedom left: the noise itself is poorly "
            "known, and the intervals are wide because of it"
        )
    if points.clusters < min(len(points.y), 10):
        out.append(
            f"{len(points.y)} points of only {points.clusters} runs: the intervals count runs, and "
            "so few tell little of how runs differ"
        )
    if distinct < 5:
        out.append(
            f"only {distinct} {what[0]}s: five or more are needed to see whether a power law holds"
        )
    for values, name in zip(points.x, what, strict=False):
        span = values.max() / values.min()
        if span < 10:
            out.append(
                f"the {name} spans only a factor of {span:.1f}: floor and exponent trade off freely"
            )
    if law.floor <= 1e-9 * points.y.min():
        out.append("the floor E is at 0: the points show no levelling off, so E is not determined")
    out += _order(points, what[0])
    out += _lack_of_fit(fit)
    if fit.noise is not None:
        for pair in TERM_NAMES[: len(points.x)]:
            interval = fit.interval(pair[1])
            if interval.low is None or interval.high is None:
                end = "below" if interval.low is None else "above"
                out.append(f"{pair[1]} is not bounded from {end} by these points")
    return out


def _order(points: Points, name: str) -> list[str]:
    """Places where the loss rises, for laws of one variable."""
    if len(points.x) > 1:
        return []
    sizes, inverse = np.unique(points.x[0], return_inverse=True)
    mean = np.bincount(inverse, points.y) / np.bincount(inverse)
    rises = np.flatnonzero(np.diff(mean) > 0)
    if not len(rises):
        return []
    worst = rises[np.argmax((mean[rises + 1] - mean[rises]) / mean[rises])]
    return [
        f"not monotone: the mean loss rises from {mean[worst]:.4g} at {name} {sizes[worst]:.4g} to "
        f"{mean[worst + 1]:.4g} at {sizes[worst + 1]:.4g}; a law that only falls cannot follow it"
    ]


def _lack_of_fit(fit: Fit) -> list[str]:
    """Pure-error F test, where sizes were repeated with other seeds."""
    points = fit.points
    if points.clusters < len(points.y):
        return []
    _, inverse = np.unique(points.x, axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    counts = np.bincount(inverse)
    groups, n = len(counts), len(points.y)
    spare, repeats = groups - points.unknowns, n - groups
    if spare < 1 or repeats < 1:
        return []
    centred = fit.residuals - (np.bincount(inverse, fit.residuals) / counts)[inverse]
    pure = float(centred @ centred)
    ratio = (fit.sse - pure) / spare / max(pure / repeats, 1e-300)
    p = float(stats.f.sf(ratio, spare, repeats))
    if p > 0.05:
        return []
    return [
        f"the sizes stray from the law by more than seeds stray from each other (F test, p = "
        f"{p:.1g}): a power law may be the wrong form here"
    ]
