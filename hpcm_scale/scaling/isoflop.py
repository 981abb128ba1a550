"""The isoFLOP view (Hoffmann et al. 2022, approach 2) and the compute-optimal size and images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcm_scale.runs.records import Run, SizePart
from hpcm_scale.scaling.bootstrap import FEW_RUNS, Bootstrap, percentiles
from hpcm_scale.scaling.data_selection import MID_SCHEDULE, SETTLED, sizes_of
from hpcm_scale.scaling.power_law import Interval, NotFittable, PowerLaw

BUDGETS = 6


@dataclass(frozen=True)
class Slice:
    """Losses of several sizes at one count of FLOPs, and the parabola in log N through them."""

    flops: float
    sizes: np.ndarray
    """(n,)"""
    losses: np.ndarray
    """(n,)"""
    parabola: np.ndarray
    """(3,) loss = p_0 + p_1 v + p_2 v², v = log(N / geometric mean of the sizes)."""
    optimum: float | None
    """N of least loss; None when the least is not between the smallest and largest size."""


@dataclass(frozen=True)
class IsoFlop:
    """Slices at several budgets and N_opt ∝ C^exponent where three or more are bracketed."""

    slices: list[Slice]
    exponent: float | None
    interval: Interval | None
    """Percentiles over resampled runs: slices share runs, so they are not independent."""
    refusal: str | None
    cautions: list[str]


def isoflop(runs: Sequence[Run], part: SizePart, *, confidence: float, draws: int) -> IsoFlop:
    """Cut the runs' curves at equal FLOPs and find the size of least loss at each.

    Raises:
        NotFittable: if no count of FLOPs was passed by four sizes.
    """
    n = sizes_of(runs, part)
    ends = np.array([r.curve["flops"][-1] for r in runs])
    starts = np.array([max(SETTLED * r.curve["flops"][-1], r.curve["flops"][0]) for r in runs])
    at_ends = _shared_ends(n, ends)
    budgets = at_ends if len(at_ends) else _shared_range(n, starts, ends)
    table = np.full((len(budgets), len(runs)), np.nan)  # loss of each run at each budget
    for i, budget in enumerate(budgets):
        for j, run in enumerate(runs):
            if len(at_ends):
                if abs(ends[j] / budget - 1) <= 0.05:
                    table[i, j] = run.curve["loss"][-1]
            elif starts[j] <= budget <= ends[j]:
                log_c, log_l = np.log(run.curve["flops"]), np.log(run.curve["loss"])
                table[i, j] = np.exp(np.interp(np.log(budget), log_c, log_l))
    slices = []
    for budget, losses in zip(budgets, table, strict=True):
        here = np.isfinite(losses)
        curve, optimum = parabola(n[here], losses[here], np.ones((1, here.sum())))
        best = None if np.isnan(optimum[0]) else float(optimum[0])
        slices.append(Slice(float(budget), n[here], losses[here], curve[0], best))
    cautions = [] if len(at_ends) else [MID_SCHEDULE]
    bracketed = [s for s in slices if s.optimum is not None]
    if len(bracketed) < 3:
        return IsoFlop(
            slices, None, None,
            f"{len(bracketed)} of {len(slices)} budgets have their best size between the smallest "
            "and the largest: no exponent of N_opt against C (three are needed)", cautions,
        )  # fmt: skip
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=draws)
    optima = []
    for losses in table:
        here = np.isfinite(losses)
        optima.append(parabola(n[here], losses[here], counts[:, here].astype(float))[1])
    samples = slopes(np.log(budgets), np.log(np.array(optima)))
    point = slopes(np.log([s.flops for s in bracketed]), np.log([[s.optimum] for s in bracketed]))
    if len(runs) < FEW_RUNS:
        cautions = [*cautions, f"its interval resamples {len(runs)} runs: too narrow"]
    held = np.isfinite(samples)
    if held.mean() < 0.9:
        cautions = [
            *cautions,
            f"{1 - held.mean():.0%} of resampled ladders lose the bracketed optima",
        ]
    return IsoFlop(slices, float(point[0]), percentiles(samples, confidence), None, cautions)


def _shared_ends(n: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Budgets at which four or more sizes stopped, within 5 %."""
    found: list[float] = []
    for end in np.sort(ends):
        near = np.abs(ends / end - 1) <= 0.05
        if len(set(n[near])) >= 4 and not (found and end / found[-1] < 1.05):
            found.append(float(np.exp(np.log(ends[near]).mean())))
    return np.array(found)


def _shared_range(n: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Budgets, evenly spaced in log C, that four or more sizes passed while training."""
    edges = np.sort(np.concatenate([starts, ends]))
    held = [e for e in edges if len(set(n[(starts <= e) & (e <= ends)])) >= 4]
    if len(held) < 2:
        raise NotFittable("no count of FLOPs was passed by four sizes")
    return np.geomspace(held[0], held[-1], BUDGETS)


def parabola(
    n: np.ndarray, losses: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of losses on log N.

    Args:
        weights: (B, n) how often each run counts.

    Returns:
        (B, 3) coefficients and (B,) sizes of least loss, NaN where not convex or not bracketed.
    """
    v = np.log(n) - np.log(n).mean()
    design = np.stack([np.ones_like(v), v, v**2], axis=1)
    gram = np.einsum("bn,ni,nj->bij", weights, design, design)
    right = np.einsum("bn,ni,n->bi", weights, design, losses)
    distinct = np.stack([(weights[:, n == size] > 0).any(axis=1) for size in np.unique(n)])
    enough = distinct.sum(axis=0) >= 3
    gram = np.where(enough[:, None, None], gram, np.eye(3))
    p = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
    bottom = -p[:, 1] / (2 * np.where(p[:, 2] > 0, p[:, 2], np.nan))
    inside = enough & (bottom > v.min()) & (bottom < v.max())
    return p, np.where(inside, np.exp(np.where(inside, bottom, 0) + np.log(n).mean()), np.nan)


def slopes(log_c: np.ndarray, log_n: np.ndarray) -> np.ndarray:
    """(B,) slopes of the columns of log_n (slices, B), NaN where under three are finite."""
    held = np.isfinite(log_n)
    count = held.sum(axis=0)
    safe = np.maximum(count, 1)
    x = np.asarray(log_c)[:, None]
    y = np.where(held, log_n, 0)
    dx = np.where(held, x - (x * held).sum(axis=0) / safe, 0)
    spread = (dx**2).sum(axis=0)
    return np.where(count >= 3, (dx * y).sum(axis=0) / np.where(spread > 0, spread, np.nan), np.nan)


@dataclass(frozen=True)
class Optimum:
    """Best use of a budget, by L(N, D)."""

    flops: float
    size: float
    images: float
    loss: float
    size_interval: Interval
    images_interval: Interval
    loss_interval: Interval
    """Percentiles over resampled runs."""


@dataclass(frozen=True)
class Cost:
    """Counted training FLOPs of one image against size: factor · N^power."""

    factor: float
    power: float
    worst: float
    """Largest relative deviation of a run from it."""


def cost_of(runs: Sequence[Run], part: SizePart) -> Cost:
    """Fit counted FLOPs per image against N: C is never taken to be 6ND.

    Raises:
        NotFittable: if the runs have one size only.
    """
    log_n = np.log(sizes_of(runs, part))
    log_f = np.log([r.train_flops_per_crop for r in runs])
    if np.ptp(log_n) == 0:
        raise NotFittable("one size tells nothing of how FLOPs grow with size")
    power, factor = np.polyfit(log_n, log_f, 1)
    worst = np.abs(np.expm1(log_f - factor - power * log_n)).max()
    return Cost(float(np.exp(factor)), float(power), float(worst))


def optimal_size(
    flops: float, cost: Cost, a: np.ndarray, alpha: np.ndarray, b: np.ndarray, beta: np.ndarray
) -> np.ndarray:
    """N of least E + A N^-alpha + B D^-beta on factor N^power D = flops.

    Setting the derivative to 0: N^(alpha + power beta) = alpha A / (power beta B) (C / factor)^beta
    (Hoffmann et al. 2022, eq. 4, there with power 1 and factor 6).
    """
    ratio = alpha * a / (cost.power * beta * b)
    return (ratio * (flops / cost.factor) ** beta) ** (1 / (alpha + cost.power * beta))


def optimum(
    flops: float, cost: Cost, law: PowerLaw, bootstrap: Bootstrap, confidence: float
) -> Optimum:
    """The compute-optimal size and images for a budget, with intervals over resampled runs."""

    def spend(e, a, alpha, b, beta):
        size = optimal_size(flops, cost, a, alpha, b, beta)
        images = flops / (cost.factor * size**cost.power)
        return size, images, e + a * size**-alpha + b * images**-beta

    columns = bootstrap.projected.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        samples = spend(*columns)
    values = spend(*law.parameters.values())
    size, images, loss = (float(v) for v in values)
    of_size, of_images, of_loss = (
        percentiles(np.where(np.isfinite(s), s, np.nan), confidence) for s in samples
    )
    return Optimum(flops, size, images, loss, of_size, of_images, of_loss)
