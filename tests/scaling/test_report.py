"""law.json, the figures and report.html of a ladder."""

import json
import re

import pytest
from PIL import Image

from hpcm_scale.scaling.records import read_runs
from hpcm_scale.scaling.report import write_report
from hpcm_scale.scaling.study import Settings, study


@pytest.fixture
def fitted(write_run, tmp_path):
    for n in (100_000, 200_000, 400_000, 800_000, 1_600_000, 4_000_000):
        for seed in (0, 1):
            runs = write_run(n, seed=seed, images=120_000).parent
    result = study(read_runs([runs]), Settings(draws=200))
    return result, write_report(result, tmp_path / "report"), tmp_path / "report"


def test_a_ladder_gives_every_law_at_full_precision_with_all_figures_and_a_page(fitted):
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


def test_names_from_records_are_text_on_the_page(write_run, tmp_path):
    for n in (60_000, 150_000, 400_000):
        folder = write_run(n)
        record = json.loads((folder / "run.json").read_text())
        record["name"] = "<script>alert(1)</script>"
        (folder / "run.json").write_text(json.dumps(record))
    write_report(study(read_runs([folder.parent]), Settings(draws=100)), tmp_path / "r")
    assert "<script" not in (tmp_path / "r" / "report.html").read_text()


def test_flat_runs_give_a_report_of_refusals_without_a_number(write_run, tmp_path):
    for i, n in enumerate((100_000, 200_000, 400_000, 800_000, 1_600_000)):
        runs = write_run(n, loss=2.0 + 0.01 * (i % 2)).parent
    write_report(study(read_runs([runs]), Settings(draws=100)), tmp_path / "r")
    family = json.loads((tmp_path / "r" / "law.json").read_text())["families"][0]
    for law in [*family["size_laws"].values(), family["frontier"], family["surface"]]:
        assert law["refused"]
        assert "variable_projection" not in law
    assert family["compute_optimal"] == []
