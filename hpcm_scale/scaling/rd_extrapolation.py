"""What an extrapolation means as a codec: the R-D curve predicted at the target, as a BD-rate."""

from collections.abc import Sequence

import numpy as np

from hpcm_scale.errors import RunError
from hpcm_scale.evaluation.bd_rate import bd_rate
from hpcm_scale.scaling.bootstrap import percentiles
from hpcm_scale.scaling.data_selection import sizes_of
from hpcm_scale.scaling.fit_results import CurvePrediction, Family, FittedLaw, Settings
from hpcm_scale.scaling.power_law import Interval

LEAST_LAMBDAS = 4
"""Bjøntegaard's measure is defined on four points; fewer give no curve."""
DRAWS = 300


def predicted_curves(families: Sequence[Family], settings: Settings) -> list[CurvePrediction]:
    """One prediction for each kind of model trained with MSE at four or more λ."""
    kinds: dict[tuple[str, ...], list[Family]] = {}
    for family in families:
        run = family.runs[0]
        laws = (family.size_laws["bpp"], family.size_laws["mse"])
        if run.distortion == "mse" and all(law.extrapolation is not None for law in laws):
            kinds.setdefault(run.family, []).append(family)
    return [_predict(group, settings) for group in kinds.values() if len(group) >= LEAST_LAMBDAS]


def _psnr(mse: np.ndarray | float) -> np.ndarray:
    return -10 * np.log10(mse)


def _predict(group: list[Family], settings: Settings) -> CurvePrediction:
    target = settings.target_size
    bpp = [family.size_laws["bpp"].extrapolation.value for family in group]
    psnr = [float(_psnr(family.size_laws["mse"].extrapolation.value)) for family in group]
    shared = set.intersection(*(set(sizes_of(f.runs, settings.size).tolist()) for f in group))
    label = ", ".join(part for part in group[0].runs[0].family if part)
    lambdas = [family.runs[0].lmbda for family in group]
    anchor = max(shared, default=float("nan"))
    value, interval, refusal = None, None, None
    try:
        if not shared:
            raise RunError("BD-rate: no size was trained at every λ")
        reference = [_measured(family, anchor) for family in group]
        value = bd_rate(*np.array(reference).T, np.array(bpp), np.array(psnr))
        interval = _interval(group, np.array(reference), settings)
    except RunError as error:
        refusal = str(error)
    return CurvePrediction(
        label, lambdas, anchor, target, bpp, psnr, value, interval, refusal
    )  # fmt: skip


def _measured(family: Family, size: float) -> tuple[float, float]:
    """Mean bpp, and PSNR of the mean MSE, of the runs of one size in the L(N) design."""
    laws = [family.size_laws[metric] for metric in ("bpp", "mse")]
    here = laws[0].design.x[0] == size
    if not here.any():
        raise RunError(f"BD-rate: no run of size {size:.4g} is among those of L(N)")
    return float(laws[0].y[here].mean()), float(_psnr(laws[1].y[here].mean()))


def _interval(group: list[Family], reference: np.ndarray, settings: Settings) -> Interval | None:
    rng = np.random.default_rng(0)
    curves = []  # a column (bpp, PSNR) of draws for each λ
    for family in group:
        laws = [family.size_laws[metric] for metric in ("bpp", "mse")]
        if any(law.bootstrap is None for law in laws):
            return None
        rate, mse = (_resampled(law, settings.target_size) for law in laws)
        # The same draw of runs for rate and distortion, which go together; another for each λ.
        picks = rng.integers(len(rate), size=DRAWS)
        curves.append((rate[picks], _psnr(mse[picks])))
    values = []
    for draw in range(DRAWS):
        rate, psnr = np.array([(r[draw], q[draw]) for r, q in curves]).T
        try:
            values.append(bd_rate(*reference.T, rate, psnr))
        except RunError:
            values.append(np.nan)
    if np.isnan(values).mean() > 0.05:
        return None
    return percentiles(np.array(values), settings.confidence)


def _resampled(law: FittedLaw, size: float) -> np.ndarray:
    """(draws,) predictions of the resampled laws at one size."""
    e, a, alpha = law.bootstrap.projected.T
    return e + a * size**-alpha
