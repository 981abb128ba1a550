"""Tables of runs as other programs write them."""

import json
from pathlib import Path

import numpy as np
import pytest

from hpcm_scale.errors import RunError
from hpcm_scale.runs.cells import number_of
from hpcm_scale.runs.run_table import Columns, read_tables

ROWS = [
    {"Name": "a", "State": "finished", "params": 1e6, "tokens": 1e9, "val_loss": 3.5},
    {"Name": "b", "State": "finished", "params": 4e6, "tokens": 1e9, "val_loss": 3.1},
    {"Name": "c", "State": "crashed", "params": 9e6, "tokens": 1e9, "val_loss": 9.9},
    {"Name": "d", "State": "finished", "params": 9e6, "tokens": 1e9, "val_loss": None},
    {"Name": "b again", "State": "finished", "params": 4e6, "tokens": 1e9, "val_loss": 3.1},
]


def written(path: Path, rows=ROWS) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps({"runs": rows}))
    else:
        separator = "\t" if path.suffix == ".tsv" else ";"
        lines = [separator.join(rows[0])]
        lines += [separator.join("" if v is None else str(v) for v in r.values()) for r in rows]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_runs(tmp_path: Path, suffix):
    (table,), notes = read_tables([written(tmp_path / f"runs{suffix}")], Columns())
    assert table.names == ["a", "b"]
    assert table.n is not None
    assert table.d is not None
    assert table.n.tolist() == [1e6, 4e6]
    assert table.d.tolist() == [1e9, 1e9]
    assert table.loss.tolist() == [3.5, 3.1]
    text = "\n".join(notes)
    assert "N is 'params', D is 'tokens', loss is 'val_loss'" in text
    assert "1 of 5: State 'crashed'" in text
    assert "1 of 5: 'val_loss' is no number above 0" in text
    assert "1 copy of other runs" in text


def test_families_and_what_differs_in_them(tmp_path: Path):
    rows = [
        {
            "cfg": {"batch_size": 32 * (i % 2 + 1)},
            "model": name,
            "size": f"{i + 1}M",
            "L": 3 - i / 9,
        }
        for name in ("x", "y")
        for i in range(4)
    ]
    columns = Columns(group="model")
    first, second = read_tables([written(tmp_path / "runs.jsonl", rows)], columns)[0]
    assert (first.label, second.label) == ("x", "y")
    assert first.d is None
    assert first.n is not None
    assert first.n.tolist() == [1e6, 2e6, 3e6, 4e6]
    assert first.differing == ["cfg.batch_size (2 values)"]


def test_the_highest_losses_are_left_out_on_demand(tmp_path: Path):
    rows = [{"n": 10 + i, "loss": 2 + i} for i in range(9)]
    path = written(tmp_path / "runs.json", rows)
    (table,), notes = read_tables([path], Columns(), drop_highest=2)
    assert sorted(table.loss) == list(range(2, 9))
    assert "the 2 runs of highest loss, 9 and above" in notes[-1]
    with pytest.raises(RunError, match="leaves none"):
        read_tables([path], Columns(), drop_highest=9)


@pytest.mark.parametrize(
    ("text", "number"),
    [("7B", 7e9), ("1,300", 1300), ("2.5e3", 2500), ("350m", 35e7), ("x", None), ("", None),
     ("1.2.3", None), (None, None), (True, None), (3, 3.0)],
)  # fmt: skip
def test_numbers_as_people_write_them(text, number):
    assert number_of(text) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"params;val\n1;2\n", "no column looks like a loss"),
        ("a.csv", b"width,loss\n1,2\n", "name one by --n or --c"),
        ("a.csv", b"\xff\xfe\x00", "is not a table"),
        ("a.json", b"[1, 2]", "not a list of objects"),
        ("a.json", b"[" * 100_000, "is not a table"),
        ("a.jsonl", b'{"n": 1', "is not a table"),
        ("a.parquet", b"PAR1", "is not a table"),
    ],
)
def test_files_that_are_no_tables_are_one_line(tmp_path: Path, name, content, words):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RunError, match=words) as caught:
        read_tables([path], Columns())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_column_that_is_not_there_is_named(tmp_path: Path):
    path = written(tmp_path / "a.csv")
    with pytest.raises(RunError, match="--n: no column 'width'; it has Name, State"):
        read_tables([path], Columns(n="width"))


def test_infinite_and_negative_values_are_left_out(tmp_path: Path):
    rows = [{"n": 1, "loss": float("inf")}, {"n": -1, "loss": 2}, {"n": 5, "loss": 2.5}]
    (table,), _ = read_tables([written(tmp_path / "a.json", rows)], Columns())
    assert np.array_equal(table.loss, [2.5])


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("params,train/loss,val/loss", "val/loss"),
        ("params,loss,val_loss", "val_loss"),
        ("params,train_loss,loss", "loss"),
        ("params,eval.loss,train.loss", "eval.loss"),
    ],
)
def test_a_validation_loss_is_taken_before_a_training_loss(tmp_path: Path, names, taken):
    (tmp_path / "runs.csv").write_text(f"{names}\n1e6,2.5,3.5\n2e6,2.4,3.4\n")
    _, notes = read_tables([tmp_path / "runs.csv"], Columns())
    assert f"loss is '{taken}'" in notes[0]


def test_a_table_of_training_losses_alone_has_to_name_them(tmp_path: Path):
    (tmp_path / "runs.csv").write_text("params,train/loss\n1e6,2.5\n")
    with pytest.raises(RunError, match="no column looks like a loss"):
        read_tables([tmp_path / "runs.csv"], Columns())
