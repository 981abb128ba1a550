"""Bjøntegaard deltas: the mean difference between two rate-distortion curves (VCEG-M33)."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from hpcm_scale.errors import RunError

Method = Literal["pchip", "akima", "cubic"]
LEAST_POINTS = {"pchip": 2, "akima": 2, "cubic": 4}
"""Points a curve must have to determine its interpolation."""


LEAST_OVERLAP = 0.1
"""Share of the wider curve's range below which a figure says little of the curves."""


class _Curve(Protocol):
    def integrate(self, a: float, b: float) -> Any: ...


class _Cubic:
    """One cubic polynomial through all points, by least squares where there are more than four."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self._polynomial = np.polynomial.Polynomial.fit(x, y, 3)

    def integrate(self, a: float, b: float) -> Any:
        primitive = self._polynomial.integ()
        return primitive(b) - primitive(a)


_CURVES: dict[str, Callable[[np.ndarray, np.ndarray], _Curve]] = {
    "pchip": PchipInterpolator,
    "akima": Akima1DInterpolator,
    "cubic": _Cubic,
}


def bd_rate(
    anchor_rate: np.ndarray,
    anchor_quality: np.ndarray,
    rate: np.ndarray,
    quality: np.ndarray,
    method: Method = "pchip",
) -> float:
    """Mean rate difference, in log-rate, over the shared range of quality.

    Args:
        anchor_rate: (n,) rates of the reference, in any unit.
        anchor_quality: (n,) its qualities, for example PSNR in dB, one for each rate.
        rate: (m,) rates of the codec in question, in the same unit.
        quality: (m,) its qualities.
        method: how the points are joined: monotone piecewise cubics (pchip, as JVET), Akima's
            piecewise cubics, or one cubic for the whole curve (the original proposal).

    Returns:
        Percent; negative where the codec needs fewer bits than the anchor.

    Raises:
        RunError: if a curve has too few points or does not rise with rate, or the qualities do
            not overlap.
    """
    anchor = _checked("anchor", anchor_rate, anchor_quality, method)
    curve = _checked("curve", rate, quality, method)
    (r0, q0), (r1, q1) = anchor, curve
    difference = _mean_difference((q0, np.log(r0)), (q1, np.log(r1)), method, "quality")
    return float(100 * np.expm1(difference))


def bd_psnr(
    anchor_rate: np.ndarray,
    anchor_quality: np.ndarray,
    rate: np.ndarray,
    quality: np.ndarray,
    method: Method = "pchip",
) -> float:
    """Mean quality difference over the shared range of log-rate.

    Args: as for `bd_rate`.

    Returns:
        In the unit of the qualities (dB); positive where the codec is better than the anchor.

    Raises:
        RunError: as `bd_rate`, for rates that do not overlap.
    """
    anchor = _checked("anchor", anchor_rate, anchor_quality, method)
    curve = _checked("curve", rate, quality, method)
    (r0, q0), (r1, q1) = anchor, curve
    return float(_mean_difference((np.log(r0), q0), (np.log(r1), q1), method, "rate"))


def overlap(anchor: np.ndarray, curve: np.ndarray) -> float:
    """The range that two sets of values share, as a part of the wider one's; 0 if it has none."""
    wider = max(np.ptp(anchor), np.ptp(curve))
    shared = min(anchor.max(), curve.max()) - max(anchor.min(), curve.min())
    return float(max(shared, 0) / wider) if wider > 0 else 0.0


def _checked(
    name: str, rate: np.ndarray, quality: np.ndarray, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    """A curve's points by rising rate."""
    if method not in _CURVES:
        raise RunError(f"BD-rate: method {method!r} is not one of {', '.join(_CURVES)}")
    order = np.argsort(rate)
    r, q = np.asarray(rate, float)[order], np.asarray(quality, float)[order]
    if len(r) < LEAST_POINTS[method]:
        raise RunError(
            f"BD-rate: the {name} has {len(r)} points, {method} needs {LEAST_POINTS[method]}"
        )
    if not (np.isfinite(r).all() and np.isfinite(q).all() and (r > 0).all()):
        raise RunError(f"BD-rate: the {name} has rates or qualities that are not finite")
    if not ((np.diff(q) > 0) & (np.diff(r) > 0)).all():
        k = int(np.argmin((np.diff(q) > 0) & (np.diff(r) > 0)))
        raise RunError(
            f"BD-rate: the {name}'s quality does not rise with its rate "
            f"({q[k]:.4g} at {r[k]:.4g}, {q[k + 1]:.4g} at {r[k + 1]:.4g})"
        )
    return r, q


def _mean_difference(
    anchor: tuple[np.ndarray, np.ndarray],
    curve: tuple[np.ndarray, np.ndarray],
    method: Method,
    shared: str,
) -> float:
    """Mean of curve minus anchor over the range of x that both (x, y) have."""
    low = max(anchor[0][0], curve[0][0])
    high = min(anchor[0][-1], curve[0][-1])
    if high <= low:
        raise RunError(f"BD-rate: the two curves share no range of {shared}")
    areas = [_CURVES[method](*points).integrate(low, high) for points in (anchor, curve)]
    return (areas[1] - areas[0]) / (high - low)
