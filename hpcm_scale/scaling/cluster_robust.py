"""Points of one run are not independent: how much wider that makes an interval."""

import numpy as np

from hpcm_scale.scaling.power_law import Points, PowerLaw


def jacobian(points: Points, law: PowerLaw) -> np.ndarray:
    """(n, 2k + 1) derivatives of f / L in (c_0, c_1…, θ_1…), c held for x / reference."""
    exponents = np.array(law.exponents)
    powers = np.exp(-points.log_x * exponents[:, None])
    slopes = -law.scaled(points)[:, None] * powers * points.log_x
    columns = [np.ones((1, len(points.y))), powers, slopes]
    return (np.concatenate(columns) / points.y).T


def variance_ratio(points: Points, law: PowerLaw, direction: np.ndarray) -> float:
    """Variance of a quantity with runs as the independent units, over that of independent points.

    A profile interval's threshold is multiplied by it (Chandler & Bate 2007, vertical scaling).
    The sandwich leaves out each run in turn (CR3, Bell & McCaffrey 2002): with few runs the plain
    one is too small. Kept at 1 or above, so that a quantity whose noise cancels within a run
    (beta, when runs differ by a constant) gets an interval too wide rather than too narrow.

    Args:
        direction: (2k + 1,) gradient of the quantity in (c, θ).

    Returns:
        At least 1; exactly 1 where every point is a run of its own.
    """
    if points.clusters == len(points.y):
        return 1.0
    design = jacobian(points, law)
    residual = 1 - law(*points.x) / points.y
    bread = np.linalg.pinv(design.T @ design)
    scores = []
    for run in range(points.clusters):
        rows = points.cluster == run
        own = design[rows]
        leverage = own @ bread @ own.T
        scores.append(own.T @ (np.linalg.pinv(np.eye(len(own)) - leverage) @ residual[rows]))
    scores = np.array(scores)
    runs = points.clusters
    robust = (runs - 1) / runs * bread @ (scores.T @ scores) @ bread
    left = max(len(points.y) - points.unknowns, 1)
    plain = residual @ residual / left * bread
    ratio = direction @ robust @ direction / max(direction @ plain @ direction, 1e-300)
    return max(1.0, float(ratio))
