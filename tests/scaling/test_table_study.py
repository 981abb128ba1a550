"""Laws fitted to tables of runs, against laws the runs were drawn from and a published fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.runs.run_table import Columns, RunTable, read_tables
from hpcm_scale.scaling.fit_results import Settings
from hpcm_scale.scaling.outliers import down_weighted
from hpcm_scale.scaling.plots import laws_side_by_side
from hpcm_scale.scaling.table_study import table_study, tuned_table
from tests.scaling.test_published import PUBLISHED, shared_runs

SETTINGS = Settings(draws=200)


def drawn(label: str, floor: float, factor: float, exponent: float, noise=0.002, seed=0, **more):
    rng = np.random.default_rng(seed)
    n = np.geomspace(1e6, 1e9, 12)
    loss = (floor + factor * n**-exponent) * np.exp(noise * rng.standard_normal(12))
    fields = {"d": None, "c": None, "differing": []} | more
    return RunTable(label, "tokens", [f"{label}{i}" for i in range(12)], n, loss=loss, **fields)


def test_only_sizes_and_losses_give_a_law_of_size():
    study = table_study([drawn("a", 1.5, 30, 0.2)], [], SETTINGS, None)
    (family,) = study.families
    (law,) = family.laws
    assert law.name == "L(N)"
    low, high = law.fit.interval("alpha").ends
    assert low < 0.2 < high
    parts = family.hold_outs["L(N)"]
    rolling = [part for part in parts if part.kind == "smaller"]
    assert [part.fitted for part in rolling] == sorted(part.fitted for part in rolling)
    assert all(part.error < 0.05 for part in rolling)
    left_out = [part for part in parts if part.kind == "others"]
    assert sum(part.runs for part in left_out) == 12  # each once
    assert all(part.fitted + part.runs == 12 for part in left_out)
    assert all(abs(part.exponent - 0.2) < 0.05 for part in left_out)


def test_equal_exponents_are_told_from_different_ones():
    tables = [drawn("a", 1.5, 30, 0.2, seed=1), drawn("b", 1.2, 40, 0.2, seed=2)]
    (equal,) = table_study(tables, [], SETTINGS, None).comparisons
    assert equal.p > 0.05
    assert equal.common_exponent == pytest.approx(0.2, abs=0.02)
    tables[1] = drawn("b", 1.5, 500, 0.4, seed=2)
    (different,) = table_study(tables, [], SETTINGS, None).comparisons
    assert different.p < 1e-3
    ((_, _, at, interval, share),) = different.crossings
    # 30 N^-0.2 = 500 N^-0.4 at N = (500 / 30)^5
    assert interval.low < (500 / 30) ** 5 < interval.high
    assert at == pytest.approx((500 / 30) ** 5, rel=0.3)
    assert share > 0.9


def test_a_part_that_bends_the_law_shows_in_its_hold_out():
    """Left out, the smallest runs are predicted badly, and the exponent moves."""
    table = drawn("a", 1.5, 30, 0.2)
    table.loss[:2] *= 1.3
    (family,) = table_study([table], [], SETTINGS, None).families
    left_out = [p for p in family.hold_outs["L(N)"] if p.kind == "others"]
    assert left_out[0].bias < -0.1
    assert all(abs(part.bias) < abs(left_out[0].bias) / 2 for part in left_out[1:])
    assert left_out[0].exponent == pytest.approx(0.2, abs=0.05)
    assert abs(left_out[-1].exponent - 0.2) > 0.05


def test_the_best_of_each_sweep_of_rates_counts():
    rng = np.random.default_rng(0)
    n = np.geomspace(1e6, 1e9, 8).repeat(4)
    lr = np.tile([1e-4, 3e-4, 1e-3, 3e-3], 8)
    best = 1.5 + 30 * n**-0.2
    loss = best * (1 + 0.1 * np.log10(lr / 3e-4) ** 2) * (1 + 1e-4 * rng.standard_normal(32))
    loss[-1] *= 0.5  # the largest size is best at its highest rate
    names = [f"run{i}" for i in range(32)]
    table = RunTable("a", "tokens", names, n, d=None, c=None, loss=loss, differing=[], lr=lr)
    kept, edges, said = tuned_table(table)
    assert table.kept(kept).names == [*(f"run{4 * i + 1}" for i in range(7)), "run31"]
    assert edges == {"run31"}
    assert "the best rate's count: 8 of 32" in said[0]
    assert "edge of its sweep at run31 (0.003)" in said[2]
    (family,) = table_study([table.kept(np.arange(28))], [], SETTINGS, None).families
    low, high = family.fitted[0].fit.interval("alpha").ends
    assert low < 0.2 < high
    assert "the best rate's count: 7 of 28" in family.cautions[0]
    # Seeds of one rate are no sweep.
    seeds = RunTable("a", "t", names, n, None, None, loss, [], lr=np.full(32, 1e-3))
    kept, edges, said = tuned_table(seeds)
    assert len(kept) == 32
    assert not edges
    assert said == []


def test_runs_that_stand_out_and_conditions_are_told():
    table = drawn("a", 1.5, 30, 0.2, differing=["batch (2 values)"])
    table.loss[7] *= 1.1
    (family,) = table_study([table], [], SETTINGS, None).families
    assert any("a7 (+" in caution for caution in family.laws[0].cautions)
    assert "batch (2 values)" in family.cautions[0]
    assert "no law is of one of these" in family.cautions[0]


@pytest.mark.skipif(not shared_runs().exists(), reason=f"{shared_runs()} is not there")
def test_published_runs_give_the_published_law():
    tables, notes = read_tables([shared_runs()], Columns(), drop_highest=5)
    assert len(tables[0]) == 240
    assert "N is 'Model Size', C is 'Training FLOP', loss is 'loss'" in notes[0]
    study = table_study(tables, notes, SETTINGS, 6)
    law = study.families[0].fitted[0]
    assert law.name == "L(N, D)"
    for name, (value, error) in PUBLISHED.items():
        assert abs(law.huber.law.parameters[name] - value) < error, name
        low, high = law.bootstrap.interval(law.bootstrap.huber, name, 0.95).ends
        assert low < value < high, name


def test_the_verb_writes_a_law_and_a_figure(tmp_path: Path):
    table = drawn("a", 1.5, 30, 0.2)
    path = tmp_path / "runs.csv"
    rows = [f"{n},{loss}" for n, loss in zip(table.n, table.loss, strict=True)]
    path.write_text("\n".join(["parameters,final loss", *rows]))
    options = ["--loss", "final loss", "--bootstraps", "100"]
    result = CliRunner().invoke(app, ["fit", str(path), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    law = json.loads((tmp_path / "out" / "law.json").read_text())["families"][0]["laws"][0]
    assert law["law"] == "loss(N)"
    assert law["variable_projection"]["parameters"]["alpha"] == pytest.approx(0.2, abs=0.03)
    assert (tmp_path / "out" / "loss-against-size.png").stat().st_size > 10_000


def test_names_of_columns_are_for_tables(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    for paths in ([tmp_path / "runs"], [tmp_path / "a.csv", tmp_path / "runs"]):
        result = CliRunner().invoke(app, ["fit", *map(str, paths), "--loss", "x"])
        assert result.exit_code != 0
        assert "tables" in str(result.exception)


def test_a_ruined_run_is_weighted_down_to_the_truth():
    table = drawn("a", 1.5, 30, 0.2)
    table.loss[9] *= 1.1
    (family,) = table_study([table], [], SETTINGS, None).families
    (law,) = family.fitted
    found = down_weighted(law)
    assert found is not None
    assert np.flatnonzero(found.weights < 1).tolist() == [9]
    truth = 1.5 + 30 * table.n**-0.2
    errors = [np.abs(of(table.n) / truth - 1).max() for of in (found.law, law.fit.law)]
    assert errors[0] < 0.01
    assert errors[0] < errors[1] / 2


def test_the_figure_shades_where_families_cross():
    tables = [drawn("a", 1.5, 30, 0.2, seed=1), drawn("b", 1.5, 500, 0.4, seed=2)]
    study = table_study(tables, [], SETTINGS, None)
    laws = [(family.table.label, family.fitted[0]) for family in study.families]
    ((_, _, at, interval, _),) = study.comparisons[0].crossings
    figure = laws_side_by_side(laws, "L(N)", SETTINGS, [(at, interval)])
    (axes,) = figure.axes
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert line.get_xdata()[0] == at
    assert axes.get_xlim()[0] < (500 / 30) ** 5 < axes.get_xlim()[1]
