"""Loss against size along λ, of networks that code at every rate: E(λ) + A(λ) N^-α(λ).

Floor and amplitude are free at every λ that was trained; the exponent is α + s·ln(λ / λ₀), λ₀ the
geometric middle of the range, so that s says whether size helps more at high rate. Losses of one
run at several λ are not independent: intervals leave out whole runs in turn (the jackknife, Miller
1974, with Student's t on the runs less one).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from scipy.interpolate import PchipInterpolator

from hpcm_scale.scaling.hold_outs import HoldOut, hold_outs_of
from hpcm_scale.scaling.power_law import Interval, NotFittable, Points
from hpcm_scale.scaling.variable_projection import (
    HIGHEST_EXPONENT,
    LOWEST_EXPONENT,
    coefficients,
)

GRID, ZOOMS = 24, 5
"""Points a side of the grid of exponents, and how often it is narrowed around the best."""
LEAST_SIZES = 3
"""That a law of one size term takes."""


@dataclass(frozen=True)
class Along:
    """Parameters of the law."""

    lambdas: np.ndarray
    """(rates,) increasing."""
    floors: np.ndarray
    """(rates,) E at each."""
    amplitudes: np.ndarray
    """(rates,) A at each, of N / `reference`."""
    reference: float
    """Size that amplitudes are held for."""
    exponent: float
    """α, at the geometric middle of the range."""
    slope: float
    """s, change of the exponent with ln λ."""

    def exponents(self, lmbda: np.ndarray) -> np.ndarray:
        """α + s·ln(λ / λ₀)."""
        return self.exponent + self.slope * (np.log(lmbda) - _middle(self.lambdas))

    def __call__(self, n: float, lmbda: float) -> float:
        """Loss of a network of N parameters at a λ of the range.

        Between trained λ, ln E and ln A are monotone cubics of ln λ.
        """
        floor, amplitude = (
            float(np.exp(PchipInterpolator(np.log(self.lambdas), np.log(v))(np.log(lmbda))))
            for v in (np.maximum(self.floors, 1e-12), self.amplitudes)
        )
        exponent = float(self.exponents(np.array(lmbda)))
        return floor + amplitude * (n / self.reference) ** -exponent

    def at_rates(self, n: np.ndarray) -> np.ndarray:
        """(rates, sizes) losses at the trained λ."""
        powers = (n / self.reference) ** -self.exponents(self.lambdas)[:, None]
        return self.floors[:, None] + self.amplitudes[:, None] * powers


@dataclass(frozen=True)
class RateLaw:
    """The law fitted to some runs, and how well it is known."""

    n: np.ndarray
    """(runs,) sizes."""
    loss: np.ndarray
    """(rates, runs) bpp + λ·distortion of each run at each λ."""
    law: Along
    left_out: list[Along]
    """The law without each run in turn; empty where that leaves too few sizes."""
    confidence: float
    hold_outs: list[HoldOut] = field(default_factory=list)

    @property
    def error(self) -> float:
        """Root mean square of relative residuals."""
        return float(np.sqrt(((self.law.at_rates(self.n) / self.loss - 1) ** 2).mean()))

    def interval(self, name: str) -> Interval | None:
        """Interval of `exponent` or `slope`; None where no run could be left out."""
        return self._jackknife(
            getattr(self.law, name), [getattr(each, name) for each in self.left_out]
        )

    def predict(self, n: float, lmbda: float) -> tuple[float, Interval | None]:
        """Loss at a size and a λ of the range, and its interval, if the law holds there."""
        value = self.law(n, lmbda)
        return value, self._jackknife(value, [each(n, lmbda) for each in self.left_out])

    @property
    def p_equal(self) -> float:
        """The p value of the t test of one exponent at every λ; NaN without an interval."""
        if not self.left_out:
            return float("nan")
        error = _standard_error([each.slope for each in self.left_out])
        return float(2 * stats.t.sf(abs(self.law.slope) / error, len(self.left_out) - 1))

    def _jackknife(self, value: float, left_out: list[float]) -> Interval | None:
        if not left_out:
            return None
        reach = stats.t.ppf(0.5 + self.confidence / 2, len(left_out) - 1)
        half = float(reach * _standard_error(left_out))
        return Interval(value - half, value + half)


def _standard_error(left_out: list[float]) -> float:
    """Jackknife standard error of a statistic, from its values without each run."""
    runs = len(left_out)
    return float(np.std(left_out) * (runs - 1) ** 0.5)


def _middle(lambdas: np.ndarray) -> float:
    return float(np.log(lambdas[[0, -1]]).mean())


def fit_rate_law(
    n: np.ndarray, lambdas: np.ndarray, loss: np.ndarray, *, confidence: float = 0.95
) -> RateLaw:
    """Least squares of relative residuals over all runs and λ.

    Args:
        n: (runs,) sizes.
        lambdas: (rates,) increasing, two or more.
        loss: (rates, runs).

    Raises:
        NotFittable: if sizes or rates are too few, or the loss does not fall with size at some λ.
    """
    n, lambdas, loss = (np.asarray(values, float) for values in (n, lambdas, loss))
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        raise NotFittable("a loss is not finite and above 0: a power law has no place for it")
    law = _fit(n, lambdas, loss)
    left_out = []
    for run in range(len(n)):
        rest = np.arange(len(n)) != run
        try:
            left_out.append(_fit(n[rest], lambdas, loss[:, rest]))
        except NotFittable:
            left_out = []
            break

    def refit(fitted: np.ndarray) -> tuple[np.ndarray, float]:
        part = _fit(n[fitted], lambdas, loss[:, fitted])
        return part.at_rates(n) / loss, part.exponent

    return RateLaw(n, loss, law, left_out, confidence, hold_outs_of(n, refit))


def _fit(n: np.ndarray, lambdas: np.ndarray, loss: np.ndarray) -> Along:
    sizes = len(np.unique(n))
    if sizes < LEAST_SIZES:
        raise NotFittable(f"{sizes} sizes: floor, amplitude and exponent take at least three")
    if len(lambdas) < 2:
        raise NotFittable("1 rate: a law along λ takes two or more")
    each = [Points(n[None], losses, np.arange(len(n))) for losses in loss]
    share = (np.log(lambdas) - np.log(lambdas[0])) / np.log(lambdas[-1] / lambdas[0])
    # Exponents at both ends of the range, which bound all between them.
    low = np.full(2, np.log(LOWEST_EXPONENT))
    high = np.full(2, np.log(HIGHEST_EXPONENT))
    best = low
    for _ in range(ZOOMS):
        axes = [np.linspace(a, b, GRID) for a, b in zip(low, high, strict=True)]
        ends = np.exp(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2))
        sse = np.zeros(len(ends))
        for points, place in zip(each, share, strict=True):
            _, residuals = _projected(points, ends @ (1 - place, place))
            sse += (residuals**2).sum(axis=1)
        best = np.log(ends[int(np.argmin(sse))])
        step = (high - low) / (GRID - 1)
        low = np.maximum(best - 2 * step, np.log(LOWEST_EXPONENT))
        high = np.minimum(best + 2 * step, np.log(HIGHEST_EXPONENT))
    ends = np.exp(best)
    first, last = ends.tolist()
    for exponent, lmbda in ((first, lambdas[0]), (last, lambdas[-1])):
        if not LOWEST_EXPONENT * 1.01 < exponent < HIGHEST_EXPONENT / 1.01:
            raise NotFittable(
                f"the exponent at λ {lmbda:g} ends at the edge of the search, {exponent:.3g}"
            )
    found = np.array(
        [
            _projected(points, ends[None] @ (1 - place, place))[0][0]
            for points, place in zip(each, share, strict=True)
        ]
    )
    for amplitude, lmbda in zip(found[:, 1], lambdas, strict=True):
        if not amplitude > 0:
            raise NotFittable(f"the loss does not fall with size at λ {lmbda:g}")
    return Along(
        lambdas,
        found[:, 0],
        found[:, 1],
        float(each[0].reference[0]),
        float((first + last) / 2),
        float((last - first) / np.log(lambdas[-1] / lambdas[0])),
    )


def _projected(points: Points, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Floor and amplitude of least residual at each of (B,) exponents, (B, 2); residuals (B, n)."""
    c = coefficients(points, np.ones((len(exponents), len(points.y))), exponents[:, None])
    values = c[:, :1] + c[:, 1:] * np.exp(-exponents[:, None] * points.log_x)
    return c, 1 - values / points.y
