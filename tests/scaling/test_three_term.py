"""The law of size, steps and batch: truths it has to give back, and data it has to refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.scaling.power_law import NotFittable
from hpcm_scale.scaling.three_term import NAMES, fit_three_terms

TRUTH = (1.5, 80.0, 0.35, 60.0, 0.45, 2.0, 0.5)


def runs(noise: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    grid = np.meshgrid([1e5, 3e5, 1e6, 3e6], [1e3, 4e3, 1.6e4, 6.4e4], [4, 16, 64, 256])
    n, steps, batch = (values.ravel() for values in grid)
    e, a, alpha, b, beta, c, gamma = TRUTH
    loss = e + a * n**-alpha + b * steps**-beta + c * batch**-gamma
    return n, steps, batch, loss * (1 + noise * rng.standard_normal(len(n)))


def test_noiseless_runs_give_back_their_law():
    law = fit_three_terms(*runs(0), draws=2)
    assert law.parameters == pytest.approx(TRUTH, rel=1e-3)
    assert law.error < 1e-6


def test_the_best_batch_is_where_no_other_is_better():
    law = fit_three_terms(*runs(0), draws=2)
    for data in (1e5, 1e7):
        best, _ = law.best_batch(data)
        batches = best * np.geomspace(0.1, 10, 2001)
        losses = law(np.full(2001, 1e6), data / batches, batches)
        assert batches[losses.argmin()] == pytest.approx(best, rel=0.005)
    exponent, _ = law.batch_exponent()
    assert exponent == pytest.approx(0.45 / 0.95, rel=1e-3)
    grown = law.best_batch(1e8)[0] / law.best_batch(1e7)[0]
    assert grown == pytest.approx(10**exponent, rel=1e-6)


def test_intervals_hold_the_truth():
    held = 0
    for seed in range(8):
        law = fit_three_terms(*runs(0.003, seed), draws=60, seed=seed)
        for name in ("alpha", "beta", "gamma"):
            low, high = law.interval(name).ends
            held += low <= TRUTH[NAMES.index(name)] <= high
    assert held >= 18  # of 24; 95 % would be 23


def test_the_verb_finds_the_best_batch(tmp_path: Path):
    n, steps, batch, loss = runs(0.002)
    rows = [f"{a},{b * k},{k},{y}" for a, b, k, y in zip(n, steps, batch, loss, strict=True)]
    (tmp_path / "runs.csv").write_text("\n".join(["params,crops,batch_size,val_loss", *rows]))
    options = ["-o", str(tmp_path / "out"), "--bootstraps", "100"]
    result = CliRunner().invoke(app, ["fit", str(tmp_path / "runs.csv"), *options])
    assert result.exit_code == 0, result.output
    assert "the best batch grows as D^0.4" in result.output
    law = json.loads((tmp_path / "out" / "law.json").read_text())
    found = law["families"][0]["size_steps_batch"]
    assert found["parameters"]["gamma"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, s, k, y: (n, s, np.full_like(k, 16), y), "1 batches"),
        (lambda n, s, k, y: (n, 1e3 * k, k, y), "go together"),
        (lambda n, s, k, y: (n, s, k, y + 0.01 * k), "does not fall with the batches"),
        (lambda *all_of: tuple(values[:5] for values in all_of), "each term takes three|5 runs"),
    ],
)
def test_runs_that_cannot_tell_are_refused(change, said):
    with pytest.raises(NotFittable, match=said):
        fit_three_terms(*change(*runs(0)), draws=2)
