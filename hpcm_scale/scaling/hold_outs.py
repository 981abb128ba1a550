"""Hold-outs: sizes predicted from smaller ones, and parts of the sizes from all others."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcm_scale.scaling.laws import Fit, fit_law
from hpcm_scale.scaling.power_law import NotFittable

PARTS = 6
"""A hold-out cuts the runs, ordered by size, into so many parts."""

Refit = Callable[[np.ndarray], tuple[np.ndarray, float]]
"""From the runs to fit (a mask) to every run's predicted over measured value, (runs,) or
(rates, runs), and the law's first exponent; raises NotFittable."""


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


def hold_outs(of: Fit) -> list[HoldOut]:
    """Hold-outs of one law."""
    x, y = of.points.x, of.points.y

    def refit(fitted: np.ndarray) -> tuple[np.ndarray, float]:
        fit = fit_law(x[:, fitted], y[fitted], confidence=of.confidence)
        return fit.law(*x) / y, float(fit.law.exponents[0])

    return hold_outs_of(x[0], refit)


def hold_outs_of(x: np.ndarray, refit: Refit) -> list[HoldOut]:
    """Predict sizes from smaller ones, part by part to the largest, then each part from the others.

    A law that only interpolates fails the former; one that hangs on a part, the latter. A part that
    the others carry no law for is left out.

    Args:
        x: (runs,) sizes.
    """
    sizes = np.unique(x)
    parts = np.array_split(sizes, min(PARTS, len(sizes)))
    masks = [(x >= part[0]) & (x <= part[-1]) for part in parts]
    wanted = [
        ("smaller", x <= before[-1], mask) for before, mask in zip(parts, masks[1:], strict=False)
    ]
    wanted += [("others", ~mask, mask) for mask in masks]
    found = []
    for kind, fitted, predicted in wanted:
        try:
            ratios, exponent = refit(fitted)
        except NotFittable:
            continue
        errors = ratios[..., predicted] - 1
        found.append(
            HoldOut(
                kind,
                int(fitted.sum()),
                float(x[predicted].min()),
                float(x[predicted].max()),
                int(predicted.sum()),
                float(errors.mean()),
                float(np.sqrt((errors**2).mean())),
                exponent,
            )
        )
    return found
