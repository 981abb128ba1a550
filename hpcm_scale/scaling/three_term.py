"""Loss against size, steps and batch: E + A N^-α + B S^-β + C K^-γ, with N, S steps of K crops.

Source: Schaipp, arXiv 2607.01487: data are split into steps and batch, each with a term of its own,
so that runs of any batch can be fitted and the best batch for an amount of data follows: more steps
or larger ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from hpcm_scale.scaling.bootstrap import percentiles
from hpcm_scale.scaling.power_law import Interval, NotFittable
from hpcm_scale.scaling.variable_projection import HIGHEST_EXPONENT, LOWEST_EXPONENT

NAMES = ("E", "A", "alpha", "B", "beta", "C", "gamma")
TERMS = ("sizes", "numbers of steps", "batches")
LEAST_VALUES = 3
"""Distinct values that each abscissa must have."""
STARTS = (0.2, 0.5)
"""Exponents that the search starts from, in every combination."""
DRAWS = 200


@dataclass(frozen=True)
class ThreeTermLaw:
    """A fitted law; `parameters` in the order of `NAMES`."""

    parameters: np.ndarray
    draws: np.ndarray
    """(draws, 7) of resampled runs."""
    error: float
    """Root mean square of relative residuals."""
    confidence: float

    def __call__(self, n: np.ndarray, steps: np.ndarray, batch: np.ndarray) -> np.ndarray:
        e, a, alpha, b, beta, c, gamma = self.parameters
        return e + a * n**-alpha + b * steps**-beta + c * batch**-gamma

    def interval(self, name: str) -> Interval:
        """Percentiles of a parameter over resampled runs."""
        return percentiles(self.draws[:, NAMES.index(name)], self.confidence)

    def best_batch(self, data: float) -> tuple[float, Interval]:
        """The batch of least loss where steps · batch = `data`, and its interval."""
        value = float(_best_batch(self.parameters[None], data)[0])
        return value, percentiles(_best_batch(self.draws, data), self.confidence)

    def batch_exponent(self) -> tuple[float, Interval]:
        """p of: the best batch grows as data^p; and its interval."""

        def exponent(rows: np.ndarray) -> np.ndarray:
            return rows[:, 4] / (rows[:, 4] + rows[:, 6])

        value = float(exponent(self.parameters[None])[0])
        return value, percentiles(exponent(self.draws), self.confidence)


def _best_batch(rows: np.ndarray, data: float) -> np.ndarray:
    """Where the derivative of B (data/K)^-β + C K^-γ by K is 0; NaN if a term is missing."""
    b, beta, c, gamma = rows[:, 3:].T
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (gamma * c / (beta * b) * data**beta) ** (1 / (beta + gamma))
    return np.where((b > 0) & (c > 0), found, np.nan)


def fit_three_terms(
    n: np.ndarray,
    steps: np.ndarray,
    batch: np.ndarray,
    loss: np.ndarray,
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> ThreeTermLaw:
    """Least squares of relative residuals, amplitudes and floor at least 0.

    Args:
        n, steps, batch, loss: (runs,).

    Raises:
        NotFittable: if runs or values are too few, steps and batch go together, or a term does
            nothing.
    """
    x = np.stack([n, steps, batch]).astype(float)
    for values, name in zip(x, TERMS, strict=True):
        if len(np.unique(values)) < LEAST_VALUES:
            raise NotFittable(f"{len(np.unique(values))} {name}: each term takes three")
    if len(loss) < len(NAMES) + 1:
        raise NotFittable(f"{len(loss)} runs for {len(NAMES)} unknowns")
    centred = np.log(x) - np.log(x).mean(axis=1, keepdims=True)
    if np.linalg.cond(np.corrcoef(centred)) > 1e4:
        raise NotFittable("size, steps and batch go together: no run tells them apart")
    starts = [np.array(start) for start in np.stack(np.meshgrid(*[STARTS] * 3), -1).reshape(-1, 3)]
    best, sse = _search(centred, loss, starts)
    parameters = _raw(x, best, *_amplitudes(centred, loss, best))
    for amplitude, name in zip(parameters[1::2], TERMS, strict=True):
        if not amplitude > 0:
            raise NotFittable(f"the loss does not fall with the {name}")
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(draws):
        rows = rng.integers(len(loss), size=len(loss))
        exponents, _ = _search(centred[:, rows], loss[rows], [best])
        found = _amplitudes(centred[:, rows], loss[rows], exponents)
        resampled.append(_raw(x, exponents, *found))
    return ThreeTermLaw(
        parameters, np.array(resampled), float(np.sqrt(sse / len(loss))), confidence
    )


def _amplitudes(
    log_x: np.ndarray, loss: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, float]:
    """Floor and amplitudes of centred abscissae, and the sum of squared relative residuals."""
    terms = np.exp(-exponents[:, None] * log_x)
    design = np.vstack([np.ones_like(loss), terms]).T / loss[:, None]
    found, norm = optimize.nnls(design, np.ones(len(loss)))
    return found, float(norm**2)


def _search(
    log_x: np.ndarray, loss: np.ndarray, starts: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Exponents of least residual, and that."""
    bounds = [(np.log(LOWEST_EXPONENT), np.log(HIGHEST_EXPONENT))] * 3

    def residual(log_exponents: np.ndarray) -> float:
        return _amplitudes(log_x, loss, np.exp(log_exponents))[1]

    found = [
        optimize.minimize(
            residual,
            np.log(start),
            method="Nelder-Mead",
            bounds=bounds,
            options={"xatol": 1e-6, "fatol": 1e-16, "maxiter": 1000},
        )
        for start in starts
    ]
    best = min(found, key=lambda result: result.fun)
    return np.exp(best.x), float(best.fun)


def _raw(x: np.ndarray, exponents: np.ndarray, found: np.ndarray, _: float) -> np.ndarray:
    """Parameters of the raw abscissae, in the order of `NAMES`."""
    amplitudes = found[1:] * np.exp(exponents * np.log(x).mean(axis=1))
    return np.concatenate([found[:1], np.stack([amplitudes, exponents], axis=1).ravel()])
