"""Two runs are equal where every figure but speeds is, and the first difference is named."""

import json

from typer.testing import CliRunner

from hpcm_scale.cli import app


def test_equal_runs_differ_in_speed_alone(write_run):
    one, other = write_run(100_000, folder="one"), write_run(100_000, folder="other")
    text = (other / "metrics.jsonl").read_text().replace('"seconds": 1.0', '"seconds": 2.0')
    (other / "metrics.jsonl").write_text(text)
    done = CliRunner().invoke(app, ["runs", "compare", str(one), str(other)])
    assert done.exit_code == 0
    assert "equal: 40 rows" in done.output


def test_the_first_bit_that_differs_is_named(write_run):
    one, other = write_run(100_000, folder="one"), write_run(100_000, folder="other")
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    rows[7]["loss"] *= 1 + 2**-52
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["runs", "compare", str(one), str(other)])
    assert done.exit_code == 1
    assert f"loss of the val row after step {rows[7]['step']}" in done.output
