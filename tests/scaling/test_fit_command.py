"""`hpcm-scale fit` as a user meets it."""

import json
import subprocess
import sys

from typer.testing import CliRunner

from hpcm_scale.cli import app

runner = CliRunner()


def fit(*arguments):
    return runner.invoke(app, ["fit", *map(str, arguments)], env={"COLUMNS": "200"})


def test_three_tiny_runs_print_a_law_and_its_worth(write_run, tmp_path):
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


def test_fitting_does_not_wait_for_torch():
    program = (
        "import sys; from hpcm_scale import cli; from hpcm_scale.scaling import report, study; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_bad_input_is_one_line_and_exit_code_2(write_run, tmp_path):
    folder = write_run(60_000)
    (folder / "run.json").write_text("{}")
    program = [
        sys.executable,
        "-m",
        "hpcm_scale.cli",
        "fit",
        str(folder),
        "-o",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "run.json: parameters.total: is missing" in done.stderr
    assert not (tmp_path / "r").exists()
