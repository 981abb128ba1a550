"""Huber loss on log residuals (Hoffmann et al. 2022, eq. 3), δ = 1e-3: robust to outlying runs.

Each law is held as logarithms, log f = logsumexp(log c_0, log c_j - θ_j log(x_j / reference)), so
that every coefficient stays positive. The sum, not the mean, is minimised to a tight tolerance:
the mean with an optimiser's default tolerance stops early (Besiroglu et al. 2024, section 3.3).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize
from threadpoolctl import threadpool_limits

from hpcm_scale.scaling.power_law import NotFittable, Points, PowerLaw, power_law
from hpcm_scale.scaling.variable_projection import HIGHEST_EXPONENT, LOWEST_EXPONENT, coefficients

DELTA = 1e-3
START_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class HuberFit:
    """A law fitted by L-BFGS-B from many starts, and whether they agree."""

    law: PowerLaw
    objective: float
    """Sum of Huber losses of log f - log L."""
    starts: int
    agreeing: int
    """Starts that ended within 0.01 % of the best objective."""
    gradient: float
    """Largest component of the gradient at the end, in whitened parameters, over the objective."""

    @property
    def converged(self) -> bool:
        """Several starts found the same minimum."""
        return self.agreeing >= 2


def _terms(points: Points, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log residual and its derivatives.

    Args:
        p: (B, 2k + 1): log c_0 … log c_k, θ_1 … θ_k.

    Returns:
        (B, n) log f - log L and (B, n, 2k + 1).
    """
    k = len(points.x)
    logs = p[:, : k + 1, None] + np.zeros(len(points.y))
    logs[:, 1:] -= p[:, k + 1 :, None] * points.log_x
    top = logs.max(axis=1, keepdims=True)
    shares = np.exp(logs - top)
    total = shares.sum(axis=1, keepdims=True)
    shares /= total
    residual = (top + np.log(total))[:, 0] - np.log(points.y)
    slopes = np.concatenate([shares, -shares[:, 1:] * points.log_x], axis=1)
    return residual, np.swapaxes(slopes, 1, 2)


def _huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))


def objective(p: np.ndarray, points: Points) -> tuple[float, np.ndarray]:
    """Sum of Huber losses at p (2k + 1,) and its analytic gradient."""
    residual, slopes = _terms(points, p[None])
    return float(_huber(residual).sum()), np.clip(residual[0], -DELTA, DELTA) @ slopes[0]


def _pack(c: np.ndarray, exponents: np.ndarray, points: Points) -> np.ndarray:
    """Logarithms of (B, k + 1) coefficients, those at 0 lifted to where they hardly count."""
    least = 1e-3 * points.y.mean()
    return np.concatenate([np.log(np.maximum(c, least)), exponents], axis=1)


def _law(p: np.ndarray, points: Points) -> PowerLaw:
    k = len(points.x)
    return power_law(points, np.exp(p[: k + 1]), p[k + 1 :])


# L-BFGS-B solves 10×10 triangles: threads waiting for each other make that 20 times slower.
@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_huber(points: Points, near: PowerLaw) -> HuberFit:
    """Minimise the Huber loss by L-BFGS-B from a grid of exponents, their coefficients projected.

    Args:
        near: the least-squares law; its curvature makes the parameters comparable in size, without
            which L-BFGS-B needs thousands of steps along the valley of E, A and alpha.

    Raises:
        NotFittable: if from every start the exponents leave the range of the search.

    Source: Hoffmann et al. 2022, section 3.3 and appendix D.3.
    """
    k = len(points.x)
    exponents = np.array(list(product(START_EXPONENTS, repeat=k)))
    weights = np.ones((len(exponents), len(points.y)))
    starts = _pack(coefficients(points, weights, exponents), exponents, points)
    centre = _pack(
        np.array([[near.floor, *near.scaled(points)]]), np.array([near.exponents]), points
    )
    slopes = _terms(points, centre)[1][0]
    curvature = slopes.T @ slopes
    curvature += 1e-9 * np.trace(curvature) * np.eye(len(curvature))
    whiten = np.linalg.inv(np.linalg.cholesky(curvature)).T
    unit = max(objective(centre[0], points)[0], 1e-12)

    def whitened(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(centre[0] + whiten @ z, points)
        return value / unit, gradient @ whiten / unit

    ends = []
    for start in starts:
        end = optimize.minimize(
            whitened,
            np.linalg.solve(whiten, start - centre[0]),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 400, "ftol": 1e-14, "gtol": 1e-9},
        )
        p = centre[0] + whiten @ end.x
        if (p[k + 1 :] >= LOWEST_EXPONENT).all() and (p[k + 1 :] <= HIGHEST_EXPONENT).all():
            ends.append((float(end.fun), float(np.abs(end.jac).max()), p))
    if not ends:
        raise NotFittable("the Huber fit runs out of the range of exponents from every start")
    value, gradient, p = min(ends, key=lambda e: e[0])
    agreeing = sum(e[0] <= value * (1 + 1e-4) + 1e-9 for e in ends)
    return HuberFit(_law(p, points), value * unit, len(starts), agreeing, gradient)


def resample_huber(
    points: Points, weights: np.ndarray, start: PowerLaw
) -> tuple[np.ndarray, np.ndarray]:
    """Refit the Huber law to many resamples at once, from the full fit.

    Levenberg-Marquardt on the reweighted squares that touch the Huber loss from above, so each
    accepted step lowers every resample's own objective.

    Args:
        weights: (B, n) how often each point counts.
        start: the law fitted to all points.

    Returns:
        (B, k + 1) coefficients for x / points.reference and (B, k) exponents; NaN where the
        iteration did not settle.
    """
    k = len(points.x)
    exponents = np.array([start.exponents])
    c = np.array([[start.floor, *start.scaled(points)]])
    p = np.repeat(_pack(c, exponents, points), len(weights), axis=0)
    damping = np.full(len(p), 1e-3)
    active = np.arange(len(p))
    value = np.full(len(p), np.inf)
    quiet = np.zeros(len(p), int)
    eye = np.eye(p.shape[1])
    for _ in range(400):
        w = weights[active]
        residual, slopes = _terms(points, p[active])
        value[active] = (w * _huber(residual)).sum(axis=1)
        pull = w * np.minimum(1, DELTA / np.maximum(np.abs(residual), 1e-300))
        gradient = ((pull * residual)[:, None, :] @ slopes)[:, 0]
        hessian = np.swapaxes(slopes * pull[:, :, None], 1, 2) @ slopes
        scale = np.maximum(np.einsum("bii->bi", hessian), 1e-12)
        hessian = hessian + eye * (damping[active, None] * scale)[:, None, :]
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        trial = p[active] - step
        trial[:, : k + 1] = np.maximum(trial[:, : k + 1], np.log(points.y.min()) - 30)
        trial[:, k + 1 :] = np.clip(trial[:, k + 1 :], LOWEST_EXPONENT, HIGHEST_EXPONENT)
        reached = (w * _huber(_terms(points, trial)[0])).sum(axis=1)
        gain = (value[active] - reached) / np.maximum(value[active], 1e-300)
        better = gain >= 0
        p[active[better]] = trial[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.3, 6.0), 1e-9, 1e9)
        quiet[active] = np.where(gain > 1e-6, 0, quiet[active] + 1)
        active = active[quiet[active] < 6]
        if not len(active):
            break
    p[active] = np.nan
    return np.exp(p[:, : k + 1]), p[:, k + 1 :]
