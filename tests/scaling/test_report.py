"""law.json, the figures and report.html of a ladder."""

import json
import re

import pytest
from PIL import Image

from hpcm_scale.runs.records import read_runs
from hpcm_scale.scaling import html_report, report_text
from hpcm_scale.scaling.fit_results import Settings
from hpcm_scale.scaling.report import law_json, write_report
from hpcm_scale.scaling.study import study


@pytest.fixture
def fitted(write_run, tmp_path):
    for n in (100_000, 200_000, 400_000, 800_000, 1_600_000, 4_000_000):
        for seed in (0, 1):
            runs = write_run(n, seed=seed, images=120_000).parent
    result = study(read_runs([runs]), Settings(draws=200))
    return result, write_report(result, tmp_path / "report"), tmp_path / "report"


def test_a_ladder_gives_every_law_figure_and_a_page(fitted):
    result, written, folder = fitted
    assert sorted(written) == sorted(folder.iterdir())
    record = json.loads((folder / "law.json").read_text())["families"][0]
    family = result.families[0]
    for law, kept in [
        (family.size_laws["loss"], record["size_laws"]["loss"]),
        (family.size_laws["bpp"], record["size_laws"]["bpp"]),
        (family.frontier, record["frontier"]),
        (family.surface, record["surface"]),
    ]:
        assert kept["variable_projection"]["parameters"] == law.fit.law.parameters
        assert kept["huber"]["law"] == law.huber.law.parameters
        assert kept["bootstrap_of_runs"]["drawn"] == 200
    held_out = record["size_laws"]["loss"]["held_out"]
    assert held_out["size"] == 4e6
    assert held_out["interval"]["low"] < held_out["measured"] < held_out["interval"]["high"]
    assert abs(held_out["relative_error"]) < 0.02
    for name in ("loss-against-size", "loss-against-compute", "loss-against-images", "isoflop",
                 "residuals", "extrapolation", "bpp-against-size", "mse-against-size"):  # fmt: skip
        with Image.open(folder / f"{name}.png") as image:
            assert image.width >= 900
        assert "<svg" in (folder / f"{name}.svg").read_text()

    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page), "the page asks for another file"
    assert page.count("data:image/png;base64,") == 8
    for said in family.size_laws["loss"].cautions:
        assert said in page
    for words in ("Reporting checklist", "held out", "What was run", "dof"):
        assert words in page
    # The truth of the generator, at 120 000 images: E + B D^-beta.
    interval = record["size_laws"]["loss"]["variable_projection"]["profile_intervals"]["E"]
    assert interval["low"] < 1.2 + 40 * 120_000**-0.4 < interval["high"]


def test_names_from_records_are_text_on_the_page(write_run):
    for n in (60_000, 150_000, 400_000):
        folder = write_run(n)
        record = json.loads((folder / "run.json").read_text())
        record["name"] = "<script>alert(1)</script>"
        (folder / "run.json").write_text(json.dumps(record))
    result = study(read_runs([folder.parent]), Settings(draws=100))
    assert "<script" not in html_report.render(result, [[]])


def test_flat_runs_give_refusals_without_a_number(write_run):
    for i, n in enumerate((100_000, 200_000, 400_000, 800_000, 1_600_000)):
        runs = write_run(n, loss=2.0 + 0.01 * (i % 2)).parent
    family = law_json(study(read_runs([runs]), Settings(draws=100)))["families"][0]
    for law in [*family["size_laws"].values(), family["frontier"], family["surface"]]:
        assert law["refused"]
        assert "variable_projection" not in law
    assert family["compute_optimal"] == []


def test_laws_of_four_lambdas_foretell_a_bd_rate(write_run):
    lambdas = (0.005, 0.013, 0.03, 0.07)
    sizes = (100_000, 200_000, 400_000, 800_000, 1_600_000)
    for lmbda in lambdas:
        # Rate and distortion both fall by the same factor at every λ: the curve moves as a whole.
        for n in sizes:
            runs = write_run(
                n,
                lmbda=lmbda,
                noise=0.0005,
                truth=(1.2 * lmbda**0.4, 60.0 * lmbda**0.4, 0.35, 0, 1),
            ).parent
    result = study(read_runs([runs]), Settings(draws=200, target_size=1e8))
    (curve,) = result.curves
    assert curve.lambdas == sorted(lambdas)
    assert curve.anchor_size == 1_600_000
    # On the way the loss falls by `gain`, and with loss ∝ λ^0.4 the curve is bpp ∝ MSE^(-2/3):
    # the same MSE then needs gain^(1 + 2/3) of the bits.
    gain = (1.2 + 60 * 1e8**-0.35) / (1.2 + 60 * 1.6e6**-0.35)
    assert curve.bd_rate == pytest.approx(100 * (gain ** (5 / 3) - 1), abs=2)
    assert curve.interval.low < curve.bd_rate < curve.interval.high
    assert f"BD-rate {curve.bd_rate:+.1f} %" in report_text.across_lambdas([curve])[0]


def test_n_counts_the_part_asked_for(write_run):
    for n in (60_000, 150_000, 400_000, 900_000):
        runs = write_run(n).parent
    result = study(read_runs([runs]), Settings(size="hyper", draws=100))
    x = result.families[0].size_laws["loss"].design.x[0]
    assert x.tolist() == [7500, 18750, 50_000, 112_500]
