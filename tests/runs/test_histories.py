"""Tables with a row a step: each run counts once, by a stated row."""

import json
from pathlib import Path

import pytest

from hpcm_scale.errors import RunError
from hpcm_scale.runs.run_table import Columns, read_tables

SIZES = {"tiny": 1e6, "small": 4e6, "wide": 2e7}


def loss(size: float, step: int) -> float:
    return 1.5 + 30 * size**-0.2 + 5 / step


def history(every: int = 10, until: int = 100) -> list[dict]:
    """As trackers export: parameters in the first row alone, a loss every other row, runs mixed."""
    rows = []
    for step in range(every, until + 1, every):
        for run, size in SIZES.items():
            row = {
                "run_name": run,
                "_step": step,
                "tokens": 1000 * step,
                "params": "",
                "val/loss": loss(size, step) if step % (2 * every) == 0 else float("nan"),
            }
            rows.append(row | ({"params": size} if step == every else {}))
    return rows


def written(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(("step", "taken"), [(None, 100), (70, 60)])
def test_each_run_counts_by_its_last_row_with_a_loss(tmp_path, suffix, step, taken):
    path = written(tmp_path / f"runs{suffix}", history())
    (table,), notes = read_tables([path], Columns(), step=step)
    assert sorted(table.names) == sorted(SIZES)
    for name, n, d, value in zip(table.names, table.n, table.d, table.loss, strict=True):
        assert (n, d) == (SIZES[name], 1000 * taken)
        assert value == pytest.approx(loss(SIZES[name], taken))
    upto = "" if step is None else " up to step 70"
    assert f"a history, 30 rows of 3 runs: of each counts the last row with 'val/loss'{upto}" in (
        "\n".join(notes)
    )


def test_a_file_of_one_runs_steps_is_one_run(tmp_path):
    paths = []
    for name, size in SIZES.items():
        rows = [{"Step": s, "n_params": size, "loss": loss(size, s)} for s in (1, 2, 5)]
        paths.append(written(tmp_path / f"{name}.csv", rows))
    (table,), _ = read_tables(paths, Columns())
    assert table.names == [str(path) for path in paths]
    assert table.loss.tolist() == pytest.approx([loss(size, 5) for size in SIZES.values()])


def test_finished_runs_are_left_as_they_are(tmp_path):
    rows = [{"run": f"r{i}", "step": 100, "n": 10.0**i, "loss": 3 - i / 9} for i in range(4)]
    (table,), notes = read_tables([written(tmp_path / "a.csv", rows)], Columns())
    assert len(table) == 4
    assert not any("history" in note for note in notes)
    with pytest.raises(RunError, match=r"--step: .* has no rows of several steps"):
        read_tables([tmp_path / "a.csv"], Columns(), step=50)


def test_a_run_without_a_loss_so_early_is_told(tmp_path):
    rows = [row for row in history() if row["run_name"] != "wide" or row["_step"] > 50]
    path = written(tmp_path / "runs.csv", rows)
    (table,), notes = read_tables([path], Columns(), step=45)
    assert sorted(table.names) == ["small", "tiny"]
    assert any(note.endswith("up to step 45; 1 have none") for note in notes)
    with pytest.raises(RunError, match="is a history without 'val/loss' up to step 15"):
        read_tables([path], Columns(), step=15)
