"""What the reader takes from a run folder, and what it says when it cannot."""

import json
import shutil

import pytest

from hpcm_scale.errors import RunError
from hpcm_scale.runs.records import (
    differing_conditions,
    families,
    read_run,
    read_runs,
    without_copies,
)


def test_a_torn_last_line_is_left_out_and_reported(write_run):
    folder = write_run(100_000)
    metrics = folder / "metrics.jsonl"
    whole = read_run(folder)
    text = metrics.read_text()
    metrics.write_text(text[: len(text) - 40])
    torn = read_run(folder)
    assert len(torn.curve["loss"]) == len(whole.curve["loss"]) - 1
    assert "torn" in torn.notes[0]
    assert str(metrics) in torn.notes[0]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(write_run):
    folder = write_run(100_000)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().split("\n")
    lines[6] = lines[6][:30]
    metrics.write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 7 is not a row"):
        read_run(folder)


@pytest.mark.parametrize(
    "field", ["name", "config.seed", "config.loss.lmbda", "parameters.hyper", "flops_per_image"]
)
def test_a_missing_field_of_run_json_is_named(write_run, field):
    folder = write_run(100_000)
    record = json.loads((folder / "run.json").read_text())
    *parents, last = field.split(".")
    inner = record
    for key in parents:
        inner = inner[key]
    del inner[last]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=rf"run\.json: {field}.*is missing"):
        read_run(folder)


def test_a_missing_field_of_a_row_is_named_with_its_line(write_run):
    folder = write_run(100_000, rows=4)
    metrics = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    del rows[3]["flops"]
    metrics.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl:4: flops: is missing"):
        read_run(folder)


def test_rows_written_again_replace_the_first_ones(write_run):
    folder = write_run(100_000, rows=10)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    again = [json.loads(line) for line in lines[-6:]]
    for row in again:
        row["loss"] = 7.0
    metrics.write_text("\n".join(lines + [json.dumps(row) for row in again]) + "\n")
    run = read_run(folder)
    steps = run.curve["step"]
    assert (steps[1:] > steps[:-1]).all()
    assert len(steps) == 10
    assert (run.curve["loss"][-3:] == 7.0).all()
    assert "after a resume" in run.notes[0]


def test_diverged_and_unvalidated_runs_are_left_out(write_run):
    write_run(100_000)
    diverged = write_run(200_000)
    text = (diverged / "metrics.jsonl").read_text().splitlines()
    last = json.loads(text[-1]) | {"loss": float("nan")}
    (diverged / "metrics.jsonl").write_text("\n".join([*text[:-1], json.dumps(last)]) + "\n")
    fresh = write_run(400_000)
    (fresh / "metrics.jsonl").write_text("")
    records = read_runs([fresh.parent])
    assert [r.parameters["total"] for r in records.runs] == [100_000]
    assert any(diverged.name in s and "diverged" in s for s in records.skipped)
    assert any(fresh.name in s and "no validation row" in s for s in records.skipped)


def test_runs_of_several_lambdas_are_never_pooled(write_run):
    for n in (100_000, 200_000):
        write_run(n)
        write_run(n, lmbda=0.05)
        write_run(n, model={"fusion": "none"}, folder=f"ablation{n}")
    groups = families(read_runs([write_run(300_000).parent]).runs)
    assert sorted(map(len, groups.values())) == [2, 2, 3]
    for runs in groups.values():
        assert len({(r.lmbda, r.family) for r in runs}) == 1


def test_a_folder_without_runs_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match=r"holds no run\.json"):
        read_runs([tmp_path])
    with pytest.raises(RunError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])


def test_conditions_that_differ_are_named(write_run):
    same = {"batch": 8, "data": {"val": "kodak", "crop": 256}}
    for size, config in ((1000, same), (2000, same), (4000, {"batch": 16, "data": same["data"]})):
        write_run(size, config=config)
    write_run(8000)  # of a version that recorded none of these
    runs = read_runs([write_run(16000, config=same).parent]).runs
    assert differing_conditions(runs) == ["batch (2 values)"]


def test_a_copied_folder_is_left_out(write_run):
    first = write_run(1000)
    write_run(2000)
    shutil.copytree(first, first.with_name("zcopy"))
    kept = without_copies(read_runs([first.parent]))
    assert sorted(run.parameters["total"] for run in kept.runs) == [1000, 2000]
    assert "zcopy: is a copy of" in kept.skipped[0]
