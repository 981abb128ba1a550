"""BD-rate: the mean rate difference between two rate-distortion curves at equal quality."""

import numpy as np
from scipy.interpolate import PchipInterpolator

from hpcm_scale.errors import RunError


def bd_rate(
    anchor_rate: np.ndarray, anchor_quality: np.ndarray, rate: np.ndarray, quality: np.ndarray
) -> float:
    """Mean log-rate difference over the shared range of quality (Bjøntegaard, VCEG-M33).

    The curves are interpolated by monotone cubics (PCHIP), as JVET does, not by one polynomial.

    Args:
        anchor_rate: (n,) rates of the reference, n ≥ 2, in any unit.
        anchor_quality: (n,) its qualities, for example PSNR in dB, one for each rate.
        rate: (m,) rates of the codec in question, in the same unit.
        quality: (m,) its qualities.

    Returns:
        Percent; negative where the codec needs fewer bits than the anchor.

    Raises:
        RunError: if a curve does not rise with rate, or the qualities do not overlap.
    """
    curves = []
    for name, r, q in (("anchor", anchor_rate, anchor_quality), ("curve", rate, quality)):
        order = np.argsort(r)
        r, q = np.asarray(r, float)[order], np.asarray(q, float)[order]
        if len(r) < 2 or not (np.diff(q) > 0).all() or not (r > 0).all():
            raise RunError(f"BD-rate: the {name}'s quality does not rise with its rate")
        curves.append(PchipInterpolator(q, np.log(r)))
    low = max(c.x[0] for c in curves)
    high = min(c.x[-1] for c in curves)
    if high <= low:
        raise RunError("BD-rate: the two curves share no range of quality")
    areas = [c.integrate(low, high) for c in curves]
    return float(100 * np.expm1((areas[1] - areas[0]) / (high - low)))
