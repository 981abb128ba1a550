"""Latents that the beginning of a file does not hold, from those around them."""

import numpy as np

_WEIGHTS = ((1, 2, 1), (2, 4, 2), (1, 2, 1))


def filled(y_hat: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Latents (1, M, h, w) with means of their known neighbours where `known` is False.

    Args:
        known: bool, of the same shape; some of every channel.
    """
    values = np.where(known, y_hat, 0).astype(np.float32)
    there = known.astype(np.float32)
    while not there.all():
        total, weight = _around(values), _around(there)
        reached = (there == 0) & (weight > 0)
        if not reached.any():
            break
        values[reached] = total[reached] / weight[reached]
        there[reached] = 1
    return values


def _around(x: np.ndarray) -> np.ndarray:
    """Weighted sums of 3×3 neighbourhoods, zeros outside."""
    h, w = x.shape[-2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(x)
    for i, row in enumerate(_WEIGHTS):
        for j, weight in enumerate(row):
            out += weight * padded[..., i : i + h, j : j + w]
    return out
