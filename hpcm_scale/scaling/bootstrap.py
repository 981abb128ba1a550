"""Resampling whole runs: intervals without a noise model, for ladders of many runs.

Checkpoints of one run share its seed, so runs are drawn, never points. With fewer than about 15
runs percentile intervals are too narrow (a resample of five sizes often holds only three): the
profile intervals of `laws.Fit` are the ones to quote there, and these are shown beside them.
"""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from hpcm_scale.scaling.huber import HuberFit, resample_huber
from hpcm_scale.scaling.power_law import TERM_NAMES, Interval, Points
from hpcm_scale.scaling.variable_projection import search

FEW_RUNS = 15
"""Below this many runs the percentile intervals are too narrow to quote."""


@dataclass(frozen=True)
class Bootstrap:
    """Laws of resampled runs."""

    names: tuple[str, ...]
    """E, A, alpha (, B, beta): the columns of the samples."""
    projected: np.ndarray
    """(kept, 2k + 1) variable projection's parameters in raw units."""
    huber: np.ndarray
    """(kept, 2k + 1) the Huber fit's."""
    drawn: int
    degenerate: int
    """Resamples left out: too few different sizes or images to hold a law."""

    def interval(self, samples: np.ndarray, name: str, confidence: float) -> Interval:
        """Percentile interval of one parameter over `samples` (projected or huber)."""
        values = samples[:, self.names.index(name)]
        return percentiles(values, confidence)

    def standard_error(self, samples: np.ndarray, name: str) -> float:
        return float(np.nanstd(samples[:, self.names.index(name)]))


def percentiles(values: np.ndarray, confidence: float) -> Interval:
    """Central percentile interval, NaNs left out."""
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def draw_runs(points: Points, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, n) how often each point counts when whole runs are drawn with replacement."""
    runs = points.clusters
    counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=draws)  # (draws, runs)
    return counts[:, points.cluster].astype(float)


@threadpool_limits.wrap(limits=1, user_api="blas")
def bootstrap(points: Points, huber: HuberFit, draws: int) -> Bootstrap:
    """Refit both methods to `draws` resamples of the runs, all at once."""
    weights = draw_runs(points, draws, np.random.default_rng(0))
    enough = np.ones(draws, bool)
    for values in points.x:
        _, which = np.unique(values, return_inverse=True)
        present = np.zeros((draws, which.max() + 1))
        np.maximum.at(present.T, which, (weights > 0).T)
        enough &= present.sum(axis=1) >= 3
    weights = weights[enough]
    pairs = TERM_NAMES[: len(points.x)]
    return Bootstrap(
        names=("E", *(name for pair in pairs for name in pair)),
        projected=_by_term(points, *search(points, weights)[::-1]),
        huber=_by_term(points, *resample_huber(points, weights, huber.law)),
        drawn=draws,
        degenerate=int(draws - enough.sum()),
    )


def _by_term(points: Points, c: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """(B, 2k + 1) E, A, alpha (, B, beta) in raw units."""
    pairs = np.stack([c[:, 1:] * points.reference**exponents, exponents], axis=2)
    return np.concatenate([c[:, :1], pairs.reshape(len(c), -1)], axis=1)
