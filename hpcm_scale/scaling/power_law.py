"""The form of the laws, and the points they are fitted to."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcm_scale.errors import RunError

TERM_NAMES = (("A", "alpha"), ("B", "beta"))


class NotFittable(RunError):
    """The points cannot carry the law: the message says why, and no number is given."""


@dataclass(frozen=True)
class Points:
    """Points that a law is fitted to."""

    x: np.ndarray
    """(k, n) positive regressors: sizes; or sizes and images; or FLOPs."""
    y: np.ndarray
    """(n,) positive losses."""
    cluster: np.ndarray
    """(n,) int, the run each point comes from: 0 … clusters - 1."""

    @cached_property
    def reference(self) -> np.ndarray:
        """(k,) geometric means of x; coefficients held for x / reference are well conditioned."""
        return np.exp(np.log(self.x).mean(axis=1))

    @cached_property
    def log_x(self) -> np.ndarray:
        """(k, n) log(x / reference)."""
        return np.log(self.x / self.reference[:, None])

    @property
    def clusters(self) -> int:
        return int(self.cluster.max()) + 1

    @property
    def unknowns(self) -> int:
        return 1 + 2 * len(self.x)


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = E + Σ_j A_j x_j^-α_j."""

    floor: float
    """E, the loss no size can go below."""
    amplitudes: tuple[float, ...]
    """A (and B), in loss × unit of x to the power of the exponent."""
    exponents: tuple[float, ...]
    """alpha (and beta)."""

    def __call__(self, *x: np.ndarray | float) -> np.ndarray:
        """Loss at x_1 (, x_2), broadcast together."""
        terms = (
            a * np.asarray(v, float) ** -e
            for v, a, e in zip(x, self.amplitudes, self.exponents, strict=True)
        )
        return np.asarray(self.floor + sum(terms))

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters under the papers' names: E, A, alpha (, B, beta)."""
        out = {"E": self.floor}
        for names, a, e in zip(TERM_NAMES, self.amplitudes, self.exponents, strict=False):
            out.update(zip(names, (a, e), strict=True))
        return out

    def scaled(self, points: Points) -> np.ndarray:
        """(k,) amplitudes for x / points.reference, those the solvers hold."""
        return np.array(self.amplitudes) * points.reference ** -np.array(self.exponents)


def power_law(points: Points, c: np.ndarray, exponents: np.ndarray) -> PowerLaw:
    """The law of (k + 1,) coefficients for x / points.reference and (k,) exponents."""
    amplitudes = c[1:] * points.reference**exponents
    return PowerLaw(float(c[0]), tuple(amplitudes.tolist()), tuple(exponents.tolist()))


def points_of(x: np.ndarray, y: np.ndarray, cluster: np.ndarray | None = None) -> Points:
    """Check and pack what a law is fitted to.

    Args:
        x: (k, n) or (n,) regressors.
        y: (n,) losses.
        cluster: (n,) label of the run each point comes from; None when each is a run of its own.

    Raises:
        NotFittable: if shapes differ, or a value is not finite and above 0.
    """
    x, y = np.atleast_2d(np.asarray(x, float)), np.asarray(y, float)
    if x.shape[1:] != y.shape:
        raise NotFittable(f"{x.shape[1]} abscissae for {y.size} losses")
    for name, values in (("abscissa", x), ("loss", y)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise NotFittable(
                f"a {name} is not finite and above 0: a power law has no place for it"
            )
    labels = np.arange(y.size) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    return Points(x, y, labels)


@dataclass(frozen=True)
class Interval:
    """A confidence interval; an end that the data leave open is None."""

    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float]:
        """low and high, infinite where open."""
        return (
            -math.inf if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )
