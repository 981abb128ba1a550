"""Exact pixels in int64 NumPy, written from EXACT.md alone and for clarity alone."""

from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np

from tests.entropy.exact_reference import Linear, Reference, bounded, clamp, over, over_power


@cache
def power(f: int) -> int:
    """round(2^24 · 2^(−f/65536))."""
    with localcontext() as context:
        context.prec = 40
        value = Decimal(2) ** (24 - Decimal(f) / 65536)
        down = int(value)
        assert abs(value - down - Decimal("0.5")) > Decimal("1e-6")
        return down + (value - down > Decimal("0.5"))


def without_gains(y_hat: np.ndarray, logs: np.ndarray | None, rate: int | None) -> np.ndarray:
    """ŷ (M, h, w) in grid points as what g_s takes."""
    if logs is None or rate is None:
        return clamp(y_hat)
    n = len(logs) - 1
    low = min(rate * n // 65535, n - 1)
    t = rate * n - 65535 * low
    out = np.empty_like(y_hat)
    for c in range(len(y_hat)):
        below, above = (
            round(float(logs[i, c]) * (65536 * 1.4426950408889634)) for i in (low, low + 1)
        )
        twice = 2 * (below * (65535 - t) + above * t)
        octaves, f = divmod((twice + 65535) // (2 * 65535), 65536)
        product = bounded(y_hat[c].clip(-(2**28), 2**28) * power(f))
        down = 24 + octaves
        out[c] = clamp(
            over_power(product, down)
            if down >= 0
            else product.clip(-(2**23), 2**23) << min(-down, 24)
        )
    return out


def pixels_of(
    parameters: dict[str, np.ndarray],
    config: Any,
    y_hat: np.ndarray,
    rate: int | None,
    grey: bool,
) -> np.ndarray:
    """ŷ (M, h, w) in grid points -> 8-bit pixels (16h, 16w, 3), or (16h, 16w)."""
    last = f"g_s.3.{config.synthesis_depths[0]}"
    inner = {name: p for name, p in parameters.items() if not name.startswith(f"{last}.")}
    walk = Reference(inner, config)
    x = without_gains(y_hat, parameters.get("gains.logs"), rate).transpose(1, 2, 0)
    for stage in range(4):
        x = walk.blocks(f"g_s.{stage}", x)
    weight, bias = parameters[f"{last}.weight"], parameters[f"{last}.bias"]  # (I, 3, k, k)
    k, (h, w) = weight.shape[2], x.shape[:2]
    padding = k // 2 - 1
    out = np.empty((2 * h, 2 * w) if grey else (2 * h, 2 * w, 3), np.uint8)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    for a, b in np.ndindex(2, 2):
        # The kernel's rows that meet output row 2i + a: of input row i + d.
        met = [
            (d, e, a + padding - 2 * d, b + padding - 2 * e)
            for d in (-1, 0, 1)
            for e in (-1, 0, 1)
            if 0 <= a + padding - 2 * d < k and 0 <= b + padding - 2 * e < k
        ]
        layer = Linear(np.concatenate([weight[:, :, r, c].T for _, _, r, c in met], 1), bias)
        taps = [padded[1 + d : 1 + d + h, 1 + e : 1 + e + w] for d, e, _, _ in met]
        sums = layer.sum(np.concatenate(taps, axis=2))
        if grey:
            fine = over_power(bounded(255 * sums), layer.k + 2).sum(axis=2)
            out[a::2, b::2] = over(fine.clip(min=0), 768).clip(max=255)
        else:
            out[a::2, b::2] = over_power(bounded(255 * sums), layer.k + 10).clip(0, 255)
    return out
