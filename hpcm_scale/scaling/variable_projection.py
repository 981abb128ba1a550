"""Variable projection (Golub & Pereyra 1973) for sums of power laws, many resamples at once.

The law is y = c_0 + Σ_j c_j x_j^-θ_j with every c ≥ 0. Given the exponents θ it is linear, so θ is
searched on a grid that is refined around the best cell and c is solved exactly. Residuals are
relative, (f - y) / y: the noise between seeds is taken to be proportional to the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hpcm_scale.scaling.power_law import Points

LOWEST_EXPONENT, HIGHEST_EXPONENT = 0.005, 8.0
"""The search range: below, a power law cannot be told from a logarithm; above, from a step."""

Functional = Callable[[list[np.ndarray]], list[np.ndarray]]
"""Exponent grids [(…), …] -> g, one array per coefficient: the quantity is Σ g_j c_j."""


@dataclass(frozen=True)
class Solved:
    """Least squares over one set of free coefficients at every grid point; the others are 0."""

    free: tuple[int, ...]
    factor: list[list[np.ndarray]]
    c: list[np.ndarray]
    sse: np.ndarray
    """Sum of squared relative residuals, inf where the columns are collinear."""
    feasible: np.ndarray
    """Where no coefficient is negative."""


def _moments(points: Points, weights: np.ndarray, grids: Sequence[np.ndarray]) -> tuple:
    """Normal equations on the product of the grids.

    Args:
        weights: (B, n) how often each point counts.
        grids: k arrays (B or 1, G_j) of exponents.

    Returns:
        gram[i][j] and rhs[i] broadcastable to (B, G_1[, G_2]), and the total weight (B, 1[, 1]).
    """
    k = len(grids)
    inverse = 1 / points.y
    # (B or 1, G_j, n) columns of the design, already divided by y
    columns = [
        np.exp(-g[:, :, None] * lx) * inverse for g, lx in zip(grids, points.log_x, strict=True)
    ]

    def axis(values: np.ndarray, j: int) -> np.ndarray:
        """(B, G_j) placed on axis j + 1 of the product grid."""
        return values if k == 1 else (values[:, :, None] if j == 0 else values[:, None, :])

    def total(values: np.ndarray, j: int) -> np.ndarray:
        return axis((values @ weights[:, :, None])[:, :, 0], j)

    one = (slice(None),) + (None,) * k
    gram: list[list[Any]] = [[None] * (k + 1) for _ in range(k + 1)]
    gram[0][0] = (weights @ inverse**2)[one]
    rhs = [(weights @ inverse)[one]]
    for j, column in enumerate(columns):
        gram[0][j + 1] = gram[j + 1][0] = total(column * inverse, j)
        gram[j + 1][j + 1] = total(column**2, j)
        rhs.append(total(column, j))
    if k == 2:
        cross = (columns[0] * weights[:, None, :]) @ np.swapaxes(columns[1], 1, 2)
        gram[1][2] = gram[2][1] = cross
    return gram, rhs, weights.sum(axis=1)[one]


def _cholesky(gram: list, free: tuple[int, ...]) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Lower factor of gram[free, free] at every grid point, and where it is not singular."""
    size = len(free)
    low: list[list[Any]] = [[None] * size for _ in range(size)]
    regular: Any = True
    for i in range(size):
        for j in range(i + 1):
            rest = gram[free[i]][free[j]] - sum(low[i][m] * low[j][m] for m in range(j))
            if i == j:
                good = rest > 1e-13 * gram[free[i]][free[i]]
                regular = regular & good
                low[i][i] = np.sqrt(np.where(good, rest, 1.0))
            else:
                low[i][j] = rest / low[j][j]
    return low, regular


def _solve(low: list, right: list) -> list[np.ndarray]:
    size = len(right)
    half = []
    for i in range(size):
        half.append((right[i] - sum(low[i][m] * half[m] for m in range(i))) / low[i][i])
    out: list = [None] * size
    for i in reversed(range(size)):
        out[i] = (half[i] - sum(low[m][i] * out[m] for m in range(i + 1, size))) / low[i][i]
    return out


def project(points: Points, weights: np.ndarray, grids: Sequence[np.ndarray]) -> list[Solved]:
    """Solve the linear part at every grid point, for each set of coefficients allowed to be free.

    The best feasible set is the non-negative least-squares solution; with at most three
    coefficients, trying every set is exact and stays vectorised.
    """
    gram, rhs, total = _moments(points, weights, grids)
    shape = np.broadcast_shapes(*(r.shape for r in rhs))
    out = []
    for size in range(1, len(rhs) + 1):
        for free in combinations(range(len(rhs)), size):
            low, regular = _cholesky(gram, free)
            c = _solve(low, [rhs[i] for i in free])
            sse = total - sum(rhs[i] * value for i, value in zip(free, c, strict=True))
            feasible = regular & np.all([value >= 0 for value in np.broadcast_arrays(*c)], axis=0)
            sse = np.broadcast_to(np.where(regular, np.maximum(sse, 0), np.inf), shape)
            out.append(Solved(free, low, c, sse, np.broadcast_to(feasible, shape)))
    return out


def best_sse(solutions: list[Solved]) -> np.ndarray:
    """(B, G_1[, G_2]) the non-negative least-squares residual at each grid point."""
    return np.min([np.where(s.feasible, s.sse, np.inf) for s in solutions], axis=0)


def _coarse(k: int) -> list[np.ndarray]:
    count = 161 if k == 1 else 33
    return [np.geomspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, count)[None]] * k


def search(points: Points, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best exponents of every resample.

    Args:
        weights: (B, n) how often each point counts.

    Returns:
        (B, k) exponents and (B, k + 1) coefficients for x / points.reference,
        NaN where no law fits.
    """
    k, rows = len(points.x), np.arange(len(weights))
    grids = _coarse(k)
    # Steps of the coarse grid in log θ; a window of ±2 cells shrinks threefold a round.
    width = np.log(grids[0][0, 1] / grids[0][0, 0]) * 2
    offsets = np.linspace(-1, 1, 13 if k == 1 else 9)
    lowest, highest = np.log([LOWEST_EXPONENT, HIGHEST_EXPONENT])
    centre: list[np.ndarray] = []
    for _ in range(18):
        sse = best_sse(project(points, weights, grids))
        flat = sse.reshape(len(rows), -1)
        cell = np.unravel_index(flat.argmin(axis=1), sse.shape[1:])
        centre = [np.log(g[rows if len(g) > 1 else 0, i]) for g, i in zip(grids, cell, strict=True)]
        grids = [np.exp(np.clip(c[:, None] + width * offsets, lowest, highest)) for c in centre]
        width /= 3
    exponents = np.exp(np.stack(centre, axis=1))
    return exponents, coefficients(points, weights, exponents)


def coefficients(points: Points, weights: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """(B, k + 1) non-negative coefficients for x / points.reference at given (B, k) exponents."""
    k = len(points.x)
    solutions = project(points, weights, [exponents[:, [j]] for j in range(k)])
    out = np.full((len(weights), k + 1), np.nan)
    lowest = np.full(len(weights), np.inf)
    for solved in solutions:
        sse = np.where(solved.feasible, solved.sse, np.inf).reshape(len(weights))
        better = sse < lowest
        lowest = np.where(better, sse, lowest)
        values = np.zeros_like(out)
        for i, value in zip(solved.free, solved.c, strict=True):
            values[:, i] = np.broadcast_to(value, solved.sse.shape).reshape(-1)
        out = np.where(better[:, None], values, out)
    return out


@dataclass(frozen=True)
class Region:
    """Every law whose residual stays within a bound: exponents on a grid, coefficients exact."""

    grids: list[np.ndarray]
    """k arrays (1, G) of exponents spanning the region."""
    solutions: list[Solved]
    inside: np.ndarray
    """(1, G[, G]) bool."""
    bound: float

    def exponent(self, j: int) -> tuple[float | None, float | None]:
        """Ends of exponent j over the region; None where it runs out of the search range."""
        others = tuple(i for i in range(self.inside.ndim) if i != j + 1)
        held = np.flatnonzero(self.inside.any(axis=others))
        log = np.log(self.grids[j][0])
        half = (log[1] - log[0]) / 2
        low = None if log[held[0]] <= np.log(LOWEST_EXPONENT) + 1e-9 else log[held[0]] - half
        high = None if log[held[-1]] >= np.log(HIGHEST_EXPONENT) - 1e-9 else log[held[-1]] + half
        return (
            None if low is None else float(np.exp(low)),
            None if high is None else float(np.exp(high)),
        )

    def linear(self, functional: Functional) -> tuple[float, float]:
        """Least and greatest Σ g_j c_j over the region, c ≥ 0 kept.

        A linear function on an ellipsoid cut by the non-negative orthant is greatest on one of
        its faces: every set of free coefficients is tried and only attained values are taken.
        """
        k = len(self.grids)
        spread = [
            g if k == 1 else (g[:, :, None] if j == 0 else g[:, None, :])
            for j, g in enumerate(self.grids)
        ]
        g = functional(spread)
        lows, highs = zip(*(_extremes(s, g, self.bound) for s in self.solutions), strict=True)
        return float(min(v.min() for v in lows)), float(max(v.max() for v in highs))


def region(points: Points, best: np.ndarray, bound: float) -> Region:
    """The set {law: Σ ((f - y) / y)² ≤ bound}, its exponents gridded to 1/150 of its extent.

    Args:
        best: (k,) exponents of the best law, always taken to be inside.
        bound: greatest sum of squared relative residuals accepted.
    """
    k = len(points.x)
    count = 241 if k == 1 else 81
    weights = np.ones((1, len(points.y)))
    lowest, highest = np.log([LOWEST_EXPONENT, HIGHEST_EXPONENT])
    ends = [(lowest, highest)] * k
    grids: list[np.ndarray] = []
    solutions: list[Solved] = []
    inside = np.zeros(0, bool)
    for _ in range(12):
        logs = [np.linspace(low, high, count) for low, high in ends]
        grids = [np.exp(g)[None] for g in logs]
        solutions = project(points, weights, grids)
        inside = best_sse(solutions) <= bound
        nearest = [int(np.abs(g - np.log(b)).argmin()) for g, b in zip(logs, best, strict=True)]
        inside[(0, *nearest)] = True
        held = [
            np.flatnonzero(inside.any(axis=tuple(i for i in range(k + 1) if i != j + 1)))
            for j in range(k)
        ]
        if all(h[-1] - h[0] > 0.6 * count for h in held):
            break
        ends = [
            (log[max(h[0] - 1, 0)], log[min(h[-1] + 1, count - 1)])
            for log, h in zip(logs, held, strict=True)
        ]
    return Region(grids, solutions, inside, bound)


def _extremes(solved: Solved, g: list[np.ndarray], bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest Σ g c over {sse ≤ bound}, each kept only where attained with c ≥ 0."""
    g = [g[i] for i in solved.free]
    direction = _solve(solved.factor, g)
    variance = sum(a * b for a, b in zip(g, direction, strict=True))
    value = sum(a * b for a, b in zip(g, solved.c, strict=True))
    room = bound - solved.sse
    reach = np.sqrt(np.maximum(room, 0) / np.where(variance > 0, variance, np.inf))
    ends = []
    for sign in (-1, 1):
        attained = room >= 0
        for c, d in zip(solved.c, direction, strict=True):
            attained = attained & (c + sign * reach * d >= 0)
        ends.append(np.where(attained, value + sign * reach * variance, -sign * np.inf))
    return ends[0], ends[1]
