"""The Huber fit against the published refit of Hoffmann et al.'s runs (arXiv 2404.10102)."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from hpcm_scale.scaling.bootstrap import bootstrap
from hpcm_scale.scaling.huber import fit_huber
from hpcm_scale.scaling.laws import fit_law
from hpcm_scale.scaling.power_law import PowerLaw

# Table 2 of arXiv 2404.10102: estimate and bootstrapped standard error.
PUBLISHED = {
    "E": (1.8172, 0.03),
    "A": (482.01, 124.58),
    "alpha": (0.3478, 0.02),
    "B": (2085.43, 1293.23),
    "beta": (0.3658, 0.02),
}
LAW = PowerLaw(1.8172, (482.01, 2085.43), (0.3478, 0.3658))


def shared_runs() -> Path:
    root = Path(__file__).parents[2]
    shared = Path(os.environ.get("HPCM_SHARED", root.parent / "shared"))
    return shared / "data" / "scaling" / "chinchilla_svg_extracted.csv"


@pytest.mark.skipif(
    not shared_runs().exists(),
    reason=f"{shared_runs()} is not there (HPCM_SHARED names the folder of development data)",
)
def test_the_huber_fit_of_published_runs_is_as_published():
    rows = list(csv.DictReader(shared_runs().open()))
    n, c, loss = (
        np.array([float(row[key]) for row in rows])
        for key in ("Model Size", "Training FLOP", "loss")
    )
    kept = np.argsort(loss)[:-5]
    n, c, loss = n[kept], c[kept], loss[kept]
    least_squares = fit_law(np.array([n, c / (6 * n)]), loss)
    points = least_squares.points
    huber = fit_huber(points, least_squares.law)
    assert huber.agreeing >= huber.starts // 2
    for name, (value, error) in PUBLISHED.items():
        assert abs(huber.law.parameters[name] - value) < error, name
    # Far closer than a standard error in what the data determine.
    assert abs(huber.law.parameters["E"] - 1.8172) < 1e-3
    assert abs(huber.law.parameters["alpha"] - 0.3478) < 2e-3
    assert abs(huber.law.parameters["beta"] - 0.3658) < 3e-3
    resampled = bootstrap(points, huber, 400)
    for name, (_, error) in PUBLISHED.items():
        ratio = resampled.standard_error(resampled.huber, name) / error
        # The published errors of E, alpha and beta are rounded to one figure.
        assert 0.7 < ratio < 1.4, (name, ratio)


def published_ladder(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Runs as theirs lie: sizes 50 M to 15 B, images (tokens) about N over a factor of 30."""
    rng = np.random.default_rng(seed)
    n = np.exp(rng.uniform(np.log(5e7), np.log(1.5e10), 240))
    d = 20 * n**0.5 * 1e9**0.5 * np.exp(rng.uniform(-1.7, 1.7, 240))
    return np.array([n, d]), LAW(n, d) * np.exp(noise * rng.standard_normal(240))


def test_both_methods_refit_noiseless_losses():
    x, y = published_ladder(0, 0.0)
    fit = fit_law(x, y)
    huber = fit_huber(fit.points, fit.law)
    for name, value in LAW.parameters.items():
        assert fit.law.parameters[name] == pytest.approx(value, rel=2e-3), name
        assert huber.law.parameters[name] == pytest.approx(value, rel=2e-3), name


def test_both_methods_refit_noisy_losses():
    x, y = published_ladder(1, 0.005)
    fit = fit_law(x, y)
    huber = fit_huber(fit.points, fit.law)
    resampled = bootstrap(fit.points, huber, 300)
    for name, value in LAW.parameters.items():
        interval = fit.interval(name)
        assert interval.low < value < interval.high, name
        error = resampled.standard_error(resampled.huber, name)
        assert abs(huber.law.parameters[name] - value) < 3 * error, name


def test_five_ruined_runs_move_least_squares_but_not_huber():
    x, y = published_ladder(2, 0.002)
    y[:5] *= 1.6
    fit = fit_law(x, y)
    huber = fit_huber(fit.points, fit.law)
    assert abs(huber.law.parameters["alpha"] - 0.3478) < 0.02
    assert abs(huber.law.parameters["E"] - 1.8172) < 0.05
    assert np.abs(fit.residuals).std() > 0.01
