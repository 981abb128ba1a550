"""Losses of every-rate models along λ, from a law the runs were drawn from."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.errors import RunError
from hpcm_scale.runs.records import read_run
from hpcm_scale.scaling.power_law import NotFittable
from hpcm_scale.scaling.rate_law import fit_rate_law

RATES = [0.0018, 0.0067, 0.025, 0.0932]
MIDDLE = (RATES[0] * RATES[-1]) ** 0.5
SIZES = [50_000, 120_000, 300_000, 800_000, 2_000_000, 5_000_000]
EXPONENT, SLOPE = 0.3, 0.02


def loss(n: float, lmbda: float) -> float:
    """E and A bend along λ as those of codecs do; the exponent grows with it."""
    relative = np.log(lmbda / MIDDLE)
    growth = np.exp(0.48 * relative + 0.02 * relative**2)
    return growth * (0.7 + 0.5 * (n / 4e5) ** -(EXPONENT + SLOPE * relative))


def drawn(sizes, noise: float, seed: int) -> np.ndarray:
    """(rates, runs): a run's losses share its seed's luck."""
    rng = np.random.default_rng(seed)
    own = 1 + noise * rng.standard_normal(len(sizes))
    exact = np.array([[loss(n, lmbda) for n in sizes] for lmbda in RATES])
    return exact * own * (1 + noise / 5 * rng.standard_normal(exact.shape))


def test_without_noise_the_law_comes_back():
    found = fit_rate_law(np.array(SIZES), np.array(RATES), drawn(SIZES, 0, 0))
    assert found.law.exponent == pytest.approx(EXPONENT, rel=1e-3)
    assert found.law.slope == pytest.approx(SLOPE, rel=1e-2)
    assert found.law(1e8, RATES[2]) == pytest.approx(loss(1e8, RATES[2]), rel=1e-3)
    assert found.law(3e5, 0.013) == pytest.approx(loss(3e5, 0.013), rel=0.01)  # between rates
    assert all(part.error < 1e-3 for part in found.hold_outs)


def test_intervals_hold_the_truth_at_about_their_level():
    covered = np.zeros(3, int)
    for seed in range(12):
        found = fit_rate_law(np.array(SIZES), np.array(RATES), drawn(SIZES, 0.004, seed))
        wanted = (("exponent", EXPONENT), ("slope", SLOPE))
        inside = [found.interval(name).low < v < found.interval(name).high for name, v in wanted]
        _, there = found.predict(1e7, RATES[1])
        covered += [*inside, there.low < loss(1e7, RATES[1]) < there.high]
    assert covered.min() >= 9


def test_equal_exponents_are_not_told_apart_and_others_are():
    flat = drawn(SIZES, 0.002, 3)
    for i, lmbda in enumerate(RATES):
        flat[i] *= [loss(n, MIDDLE) / loss(n, lmbda) for n in SIZES]
    equal, other = (
        fit_rate_law(np.array(SIZES), np.array(RATES), losses).p_equal
        for losses in (flat, drawn(SIZES, 0.002, 3))
    )
    assert equal > 0.05 > other


def test_rolling_hold_outs_predict_the_next_size_at_every_rate():
    found = fit_rate_law(np.array(SIZES), np.array(RATES), drawn(SIZES, 0.002, 1))
    rolling = [part for part in found.hold_outs if part.kind == "smaller"]
    assert [(part.fitted, part.low) for part in rolling] == [(3, 8e5), (4, 2e6), (5, 5e6)]
    assert rolling[-1].error < 0.02


@pytest.mark.parametrize(
    ("sizes", "change", "words"),
    [(2, 1.0, "2 sizes"), (6, -1.0, "does not fall with size at λ 0.0067|edge of the search")],
)
def test_what_carries_no_law_is_refused(sizes, change, words):
    losses = drawn(SIZES[:sizes], 0, 0)
    losses[1] = losses[1] ** change
    with pytest.raises(NotFittable, match=words):
        fit_rate_law(np.array(SIZES[:sizes]), np.array(RATES), losses)


def test_the_verb_fits_each_rate_and_all_of_them(write_run, tmp_path):
    for seed, n in enumerate(SIZES):
        folder = write_run(n, seed=seed, at_rate=loss, model={"rates": RATES}, noise=0.002)
    run = read_run(folder)
    assert run.at_rates["loss"] / run.at_rates["bpp"] == pytest.approx(1 / 0.6)
    done = CliRunner().invoke(
        app, ["fit", str(folder.parent), "-o", str(tmp_path / "out"), "--bootstraps", "100"],
        env={"COLUMNS": "200"},
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "λ 0.0018 to 0.0932 mse: 6 runs" in said
    assert "loss(N, λ) = E(λ) + A(λ) N^-alpha(λ) at 4 λ of 0.0018 to 0.0932: alpha 0.3" in said
    assert "loss at λ 0.0067 = E + A N^-alpha" in said.replace("│", " ").replace("  ", " ")
    (family,) = json.loads((tmp_path / "out" / "law.json").read_text())["families"]
    low, high = family["along_rates"]["exponent"]["interval"].values()
    assert low < EXPONENT < high
    exponents = [law["variable_projection"]["parameters"]["alpha"] for law in family["at_rates"]]
    wanted = [EXPONENT + SLOPE * np.log(lmbda / MIDDLE) for lmbda in RATES]
    assert exponents == pytest.approx(wanted, abs=0.05)
    assert set(family["hold_outs"]) >= {"loss(N)", "loss(N) at λ 0.0067", "loss(N, λ)"}
    assert (tmp_path / "out" / "loss-along-lambda.png").stat().st_size > 10_000


def test_a_record_without_a_rates_figures_is_named(write_run):
    folder = write_run(50_000, at_rate=loss, model={"rates": RATES})
    text = (folder / "metrics.jsonl").read_text().replace('"psnr_0.0067"', '"other"')
    (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(RunError, match=r"metrics.jsonl:\d+: psnr_0.0067: is missing"):
        read_run(folder)
