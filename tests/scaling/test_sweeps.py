"""Sweeps of learning rates among this program's runs, and families of them side by side."""

import pytest

from hpcm_scale.runs.records import read_runs
from hpcm_scale.scaling.fit_results import FittedLaw, Settings
from hpcm_scale.scaling.outliers import EDGE_WEIGHT, down_weighted
from hpcm_scale.scaling.study import study
from hpcm_scale.scaling.sweeps import tuned_runs

SETTINGS = Settings(draws=100)
SIZES = (60_000, 150_000, 400_000, 1_000_000, 2_500_000, 6_000_000, 15_000_000)


def swept(write_run, edge: int) -> list:
    """Three rates at each size, the middle one best, but the highest at the size `edge`."""
    for n in SIZES:
        for factor, lr in ((1.03, 1e-3), (1.0, 2e-3), (1.05, 4e-3)):
            if n == edge and lr == 4e-3:
                factor = 0.99
            exact = 1.2 + 60 * n**-0.35
            folder = write_run(
                n, folder=f"n{n}-r{lr:g}", noise=0, loss=exact * factor,
                config={"optimizer": {"lr": lr}},
            )  # fmt: skip
    return [folder.parent]


def test_the_best_rate_counts_and_an_edge_weighs_a_quarter(write_run):
    edge = SIZES[-1]
    records = read_runs(swept(write_run, edge))
    kept, edges, said = tuned_runs(records.runs)
    best = {f"n{n}-r{4e-3 if n == edge else 2e-3:g}" for n in SIZES}
    assert {records.runs[i].name for i in kept} == best
    assert edges == {f"n{edge}-r0.004"}
    (family,) = study(records, SETTINGS).families
    assert (said[0], said[2]) == (family.cautions[0], family.cautions[2])
    assert "7 of 21" in said[0]
    assert f"n{edge}-r0.004 (0.004)" in said[2]
    # Loss 1.03, 1, 1.05 at factors 1/2, 1, 2: lowest at 2^(-1/8) of the middle.
    assert f"{2e-3 * 2**-0.125:.2g} (n60000-r0.002)" in said[1]
    assert said[1].endswith("they differ by a factor of 1.00")
    law = family.size_laws["loss"]
    assert isinstance(law, FittedLaw)
    found = down_weighted(law, edges)
    assert found is not None
    at_edge = law.design.names.index(f"n{edge}-r0.004")
    assert found.weights[at_edge] <= EDGE_WEIGHT
    truth = 1.2 + 60 * SIZES[-2] ** -0.35
    errors = [abs(of(SIZES[-2]) / truth - 1) for of in (found.law, law.fit.law)]
    assert errors[0] < errors[1]
    assert any("1 of 7 points are of runs at the edge" in caution for caution in law.cautions)


def test_a_rate_that_goes_with_the_size_is_no_sweep(write_run):
    for n in SIZES:
        folder = write_run(n, config={"optimizer": {"lr": 1e-3 * (n / 6e4) ** -0.5}})
    kept, edges, said = tuned_runs(read_runs([folder.parent]).runs)
    assert (len(kept), len(edges), said) == (len(SIZES), 0, [])


def test_families_of_own_runs_are_compared(write_run):
    truths = {"hpcm": (1.2, 30, 0.25, 0, 1), "elic": (1.2, 700, 0.5, 0, 1)}
    for seed, (architecture, truth) in enumerate(truths.items()):
        for n in SIZES:
            folder = write_run(
                n, folder=f"{architecture}-{n}", truth=truth, seed=seed, noise=0.001,
                model={"architecture": architecture},
            )  # fmt: skip
    found = study(read_runs([folder.parent]), SETTINGS)
    of_size = found.comparisons[0]
    assert of_size.law == "L(N)"
    assert of_size.p < 1e-3
    ((_, _, at, interval, _),) = of_size.crossings
    meet = (700 / 30) ** (1 / 0.25)  # 30 N^-0.25 = 700 N^-0.5
    assert at == pytest.approx(meet, rel=0.2)
    assert interval.low < meet < interval.high
