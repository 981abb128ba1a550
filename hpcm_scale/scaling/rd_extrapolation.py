"""R-D curves predicted at the target size, as a BD-rate."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpcm_scale.errors import RunError
from hpcm_scale.evaluation.bd_rate import bd_rate
from hpcm_scale.scaling.bootstrap import Bootstrap, percentiles
from hpcm_scale.scaling.data_selection import sizes_of
from hpcm_scale.scaling.fit_results import CurvePrediction, Family, FittedLaw, Settings
from hpcm_scale.scaling.power_law import Interval

LEAST_LAMBDAS = 4
"""Bjøntegaard's measure is defined on four points; fewer give no curve."""
DRAWS = 300


def predicted_curves(families: Sequence[Family], settings: Settings) -> list[CurvePrediction]:
    """One prediction for each kind of model trained with MSE at four or more λ."""
    kinds: dict[tuple[str, ...], list[_Rung]] = {}
    for family in families:
        run = family.runs[0]
        rate, mse = family.size_laws["bpp"], family.size_laws["mse"]
        if (
            run.rates
            or run.distortion != "mse"
            or not (isinstance(rate, FittedLaw) and isinstance(mse, FittedLaw))
        ):
            continue
        if rate.extrapolation is not None and mse.extrapolation is not None:
            rung = _Rung(family, rate, mse, rate.extrapolation.value, mse.extrapolation.value)
            kinds.setdefault(run.family, []).append(rung)
    return [_predict(group, settings) for group in kinds.values() if len(group) >= LEAST_LAMBDAS]


class _Rung(NamedTuple):
    """One λ: its laws of rate and MSE, and what they say of the target size."""

    family: Family
    rate: FittedLaw
    mse: FittedLaw
    bpp_there: float
    mse_there: float


def _psnr(mse: np.ndarray | float) -> np.ndarray:
    return -10 * np.log10(mse)


def _predict(group: list[_Rung], settings: Settings) -> CurvePrediction:
    bpp = [rung.bpp_there for rung in group]
    psnr = [float(_psnr(rung.mse_there)) for rung in group]
    shared = set.intersection(
        *(set(sizes_of(rung.family.runs, settings.size).tolist()) for rung in group)
    )
    anchor = max(shared, default=float("nan"))
    value, interval, refusal = None, None, None
    try:
        if not shared:
            raise RunError("BD-rate: no size was trained at every λ")
        rates, qualities = np.array([_measured(rung, anchor) for rung in group]).T
        value = bd_rate(rates, qualities, np.array(bpp), np.array(psnr))
        interval = _interval(group, rates, qualities, settings)
    except RunError as error:
        refusal = str(error)
    return CurvePrediction(
        label=", ".join(part for part in group[0].family.runs[0].family if part),
        lambdas=[rung.family.runs[0].lmbda for rung in group],
        anchor_size=anchor,
        target_size=settings.target_size,
        bpp=bpp,
        psnr=psnr,
        bd_rate=value,
        interval=interval,
        refusal=refusal,
    )


def _measured(rung: _Rung, size: float) -> tuple[float, float]:
    """Mean bpp, and PSNR of the mean MSE, of the runs of one size in the L(N) design."""
    here = rung.rate.design.x[0] == size
    if not here.any():
        raise RunError(f"BD-rate: no run of size {size:.4g} is among those of L(N)")
    return float(rung.rate.y[here].mean()), float(_psnr(rung.mse.y[here].mean()))


def _interval(
    group: list[_Rung], rates: np.ndarray, qualities: np.ndarray, settings: Settings
) -> Interval | None:
    rng = np.random.default_rng(0)
    curves = []  # a column (bpp, PSNR) of draws for each λ
    for rung in group:
        if rung.rate.bootstrap is None or rung.mse.bootstrap is None:
            return None
        rate = _resampled(rung.rate.bootstrap, settings.target_size)
        mse = _resampled(rung.mse.bootstrap, settings.target_size)
        # The same draw of runs for rate and distortion, which go together; another for each λ.
        picks = rng.integers(len(rate), size=DRAWS)
        curves.append((rate[picks], _psnr(mse[picks])))
    values = []
    for draw in range(DRAWS):
        rate, psnr = np.array([(r[draw], q[draw]) for r, q in curves]).T
        try:
            values.append(bd_rate(rates, qualities, rate, psnr))
        except RunError:
            values.append(np.nan)
    if np.isnan(values).mean() > 0.05:
        return None
    return percentiles(np.array(values), settings.confidence)


def _resampled(bootstrap: Bootstrap, size: float) -> np.ndarray:
    """(draws,) predictions of the resampled laws at one size."""
    e, a, alpha = bootstrap.projected.T
    return e + a * size**-alpha
