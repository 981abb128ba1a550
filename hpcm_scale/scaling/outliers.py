"""Runs that stand out from a law or may be under-tuned, and the law with less weight on them."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from hpcm_scale.scaling.fit_results import FittedLaw
from hpcm_scale.scaling.power_law import PowerLaw, power_law
from hpcm_scale.scaling.variable_projection import search

STANDING_OUT = 4.0
"""Residuals so many robust standard deviations from the law are down-weighted."""
EDGE_WEIGHT = 0.25
"""Weight of a run whose learning rate is the lowest or highest of its sweep."""
SHOWN = 3
"""Runs that are named."""


@dataclass(frozen=True)
class DownWeighted:
    """A law refitted with less weight on some points."""

    weights: np.ndarray
    """(n,) 1, or (STANDING_OUT s / |r|)² of a relative residual r beyond STANDING_OUT s; at most
    EDGE_WEIGHT at the edge of a sweep."""
    residuals: np.ndarray
    """(n,) relative residuals r about the Huber law, by which the points are judged."""
    far: np.ndarray
    """Numbers of the points beyond STANDING_OUT s, the farthest first."""
    law: PowerLaw


def down_weighted(law: FittedLaw, edges: Collection[str] = ()) -> DownWeighted | None:
    """Refit a law once with some points down-weighted; None where none is.

    s is 1.4826 times the median absolute deviation of the residuals. No residual is judged with
    fewer than twice as many points as unknowns: a law bends to so few.

    Args:
        edges: names of runs whose learning rate is at the edge of its sweep.
    """
    points = law.fit.points
    reference = law.fit.law if law.huber is None else law.huber.law
    residuals = 1 - reference(*points.x) / points.y
    spread = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    distance = np.zeros(len(residuals))
    if len(residuals) >= 2 * points.unknowns and spread > 0:
        distance = np.abs(residuals) / (STANDING_OUT * spread)
    at_edge = np.array([name in edges for name in law.design.names])
    weights = np.where(at_edge, EDGE_WEIGHT, 1.0) * np.maximum(distance, 1) ** -2
    if (weights == 1).all():
        return None
    far = np.argsort(-distance)[: (distance > 1).sum()]
    exponents, c = search(points, weights[None])
    return DownWeighted(weights, residuals, far, power_law(points, c[0], exponents[0]))


def reweighted(law: FittedLaw, edges: Collection[str] = ()) -> list[str]:
    """The caution about points that should weigh less: which, and the law that this gives.

    Args:
        edges: names of runs whose learning rate is at the edge of its sweep.
    """
    found = down_weighted(law, edges)
    if found is None:
        return []
    said, rules = [], []
    if len(found.far):
        named = [
            f"{law.design.names[i]} ({found.residuals[i]:+.1%}, weight {found.weights[i]:.2g})"
            for i in found.far[:SHOWN]
        ]
        more = ", ..." if len(found.far) > SHOWN else ""
        said.append(
            f"{len(found.far)} of {len(found.weights)} points lie over {STANDING_OUT:g} robust "
            f"standard deviations s from the law: {', '.join(named)}{more}; least "
            "squares follows them, the Huber fit hardly does"
        )
        rules.append(f"({STANDING_OUT:g} s / residual)²")
    if at_edge := sum(name in edges for name in law.design.names):
        said.append(
            f"{at_edge} of {len(found.weights)} points are of runs at the edge of their sweep of "
            "learning rates, perhaps too high"
        )
        rules.append(f"{EDGE_WEIGHT:g} at an edge")
    values = ", ".join(f"{name} {value:.4g}" for name, value in found.law.parameters.items())
    return [f"{'; '.join(said)}; weighted by {' and '.join(rules)}, it gives {values}"]
