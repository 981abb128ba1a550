"""`hpcm-scale fit` as a user meets it."""

import json

from typer.testing import CliRunner

from hpcm_scale.cli import app

runner = CliRunner()


def fit(*arguments):
    return runner.invoke(app, ["fit", *map(str, arguments)], env={"COLUMNS": "200"})


def test_three_tiny_runs_print_a_law_and_say_how_little_it_is_worth(write_run, tmp_path):
    for n in (60_000, 150_000, 400_000):
        runs = write_run(n, images=4000).parent
    result = fit(runs, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "no degree of freedom" in result.output
    assert "only 3 sizes" in result.output
    law = json.loads((tmp_path / "report" / "law.json").read_text())
    fitted = law["families"][0]["size_laws"]["loss"]["variable_projection"]
    assert fitted["noise_is_assumed"]
    assert fitted["degrees_of_freedom"] == 0
    # Three unknowns through three points: the law must reproduce them.
    p, points = fitted["parameters"], law["families"][0]["size_laws"]["loss"]
    for n, y in zip(points["x"][0], points["y"], strict=True):
        assert abs(p["E"] + p["A"] * n ** -p["alpha"] - y) < 1e-6 * y
    png = (tmp_path / "report" / "loss-against-size.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_two_sizes_give_a_refusal_and_no_number(write_run, tmp_path):
    for n in (60_000, 400_000):
        runs = write_run(n).parent
    result = fit(runs, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "loss(N) refused: 2 sizes" in result.output
    law = json.loads((tmp_path / "report" / "law.json").read_text())
    assert "variable_projection" not in law["families"][0]["size_laws"]["loss"]


def test_n_counts_the_part_asked_for(write_run, tmp_path):
    for n in (60_000, 150_000, 400_000, 900_000):
        runs = write_run(n).parent
    assert fit(runs, "-o", tmp_path / "r", "--size", "hyper").exit_code == 0
    law = json.loads((tmp_path / "r" / "law.json").read_text())
    assert law["families"][0]["size_laws"]["loss"]["x"][0] == [7500, 18750, 50_000, 112_500]
