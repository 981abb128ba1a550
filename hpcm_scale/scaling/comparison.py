"""Families side by side: are their exponents equal, and where do their curves cross?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from hpcm_scale.scaling.bootstrap import percentiles
from hpcm_scale.scaling.fit_results import Comparison, FittedLaw, Settings
from hpcm_scale.scaling.power_law import Interval
from hpcm_scale.scaling.variable_projection import HIGHEST_EXPONENT, LOWEST_EXPONENT


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
