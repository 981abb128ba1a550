"""Runs that stand out from a law, and the law with less weight on them."""

from dataclasses import dataclass

import numpy as np

from hpcm_scale.scaling.fit_results import FittedLaw
from hpcm_scale.scaling.power_law import PowerLaw, power_law
from hpcm_scale.scaling.variable_projection import search

STANDING_OUT = 4.0
"""Residuals so many robust standard deviations from the law are down-weighted."""
SHOWN = 3
"""Runs that are named."""


@dataclass(frozen=True)
class DownWeighted:
    """A law refitted with less weight on the points that stand out."""

    weights: np.ndarray
    """(n,) 1, or (STANDING_OUT s / |r|)² of a relative residual r beyond STANDING_OUT s."""
    residuals: np.ndarray
    """(n,) relative residuals r about the Huber law, by which the points are judged."""
    law: PowerLaw


def down_weighted(law: FittedLaw) -> DownWeighted | None:
    """Refit a law once with points far from it down-weighted; None where no point is far.

    s is 1.4826 times the median absolute deviation of the residuals. Nothing is judged with fewer
    than twice as many points as unknowns: a law bends to so few.
    """
    points = law.fit.points
    reference = law.fit if law.huber is None else law.huber
    residuals = 1 - reference.law(*points.x) / points.y
    spread = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    if len(residuals) < 2 * points.unknowns or not spread > 0:
        return None
    distance = np.abs(residuals) / (STANDING_OUT * spread)
    if not (distance > 1).any():
        return None
    weights = np.maximum(distance, 1) ** -2
    exponents, c = search(points, weights[None])
    return DownWeighted(weights, residuals, power_law(points, c[0], exponents[0]))


def standing_out(law: FittedLaw) -> list[str]:
    """The caution about runs that stand out: which, their weight, and the law that gives."""
    found = down_weighted(law)
    if found is None:
        return []
    far = np.flatnonzero(found.weights < 1)
    worst = far[np.argsort(found.weights[far])][:SHOWN]
    named = ", ".join(
        f"{law.design.names[i]} ({found.residuals[i]:+.1%}, weight {found.weights[i]:.2g})"
        for i in worst
    )
    values = ", ".join(f"{name} {value:.4g}" for name, value in found.law.parameters.items())
    return [
        f"{len(far)} of {len(found.weights)} points lie over {STANDING_OUT:g} robust standard "
        f"deviations s from the law: {named}{', ...' if len(far) > SHOWN else ''}; least squares "
        f"follows them, the Huber fit hardly does; weighted by ({STANDING_OUT:g} s / residual)², "
        f"it gives {values}"
    ]
