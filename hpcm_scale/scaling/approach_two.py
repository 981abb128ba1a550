"""Bias of Approach 2: its parabolas fitted to a law that is known, without any noise.

Hoffmann et al. 2022 fit a parabola in log N to the losses at each budget. A law E + A N^-α + B D^-β
is no parabola there: unless α = β its optimum is displaced, the more the wider the sizes reach
(arXiv 2603.22339). What the displacement is for a fitted law can be computed.
"""

from dataclasses import dataclass

import numpy as np

from hpcm_scale.scaling.isoflop import Cost, optimal_size, parabola, slopes
from hpcm_scale.scaling.power_law import PowerLaw

BUDGETS = 5
SIZES = 9
"""Sizes at each budget, evenly spaced in their logarithm."""


@dataclass(frozen=True)
class Displacement:
    """The parabolas' answer for one reach of sizes, against the law's own."""

    reach: float
    """The sizes of a budget reach so many times their centre up, and as far down from it."""
    drift: float
    """The centres move so many times away from the best sizes, from the lowest to the highest
    budget: experimenters do not know these."""
    size: float
    """Mean over budgets of the parabola's N_opt / the law's."""
    exponent: float
    """Exponent of N_opt ∝ C^exponent by the parabolas. Without drift it is exact: a law looks
    alike at every budget, and so does the displacement."""
    exact: float
    """The same by the law: β / (α + power·β)."""


def displacement(
    law: PowerLaw, cost: Cost, low: float, high: float, reach: float, drift: float = 1.0
) -> Displacement:
    """Parabolas through a law's own losses.

    Args:
        low, high: range of budgets, in FLOPs.
        reach: how far sizes reach from the centre of a budget's, as a factor.
        drift: how far the centres move away from the best sizes, likewise.
    """
    a, b = law.amplitudes
    alpha, beta = law.exponents
    budgets = np.geomspace(low, high, BUDGETS)
    terms = [np.asarray(value) for value in (a, alpha, b, beta)]
    best = np.array([optimal_size(budget, cost, *terms) for budget in budgets])
    found = []
    for budget, centre in zip(budgets, best * np.geomspace(1, drift, BUDGETS), strict=True):
        n = centre * np.geomspace(1 / reach, reach, SIZES)
        losses = law(n, budget / (cost.factor * n**cost.power))
        found.append(parabola(n, losses, np.ones((1, SIZES)))[1][0])
    slope = slopes(np.log(budgets), np.log(found)[:, None])[0]
    exact = beta / (alpha + cost.power * beta)
    return Displacement(
        reach, drift, float(np.exp(np.log(found / best).mean())), float(slope), exact
    )
