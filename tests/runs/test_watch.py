"""Watching runs: rows read while they are written, what the table and the chart say."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.errors import RunError
from hpcm_scale.runs.terminal_chart import MARK, Series, chart, ticks
from hpcm_scale.runs.watch import WatchedRun, duration, table, terminal_chart, watched

NOTHING = (np.array([]), np.array([]))


def make(folder: Path, name: str, rows: list[dict], **config) -> Path:
    run = folder / name
    run.mkdir(parents=True)
    config = {"batch": 4, "steps": 100} | config
    record = {"name": name, "config": config, "flops_per_image": {"train": 10.0}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def train(step: int, loss: float, **more) -> dict:
    row = {"kind": "train", "step": step, "seconds": 2.0 * step, "images": 4 * step, "loss": loss}
    return row | {"bpp": 0.5, "psnr": 30.25, "images_per_second": 2.0} | more


def val(step: int, loss: float) -> dict:
    return train(step, loss) | {"kind": "val"}


def text_of(shown, width: int = 120) -> str:
    console = Console(width=width, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(shown)
    return console.export_text()


def test_rows_are_read_as_they_are_written(tmp_path):
    run = make(tmp_path, "a", [train(10, 5.0)])
    metrics = run / "metrics.jsonl"
    seen = WatchedRun(run)
    line = json.dumps(train(20, 4.0)) + "\n"
    for cut in (3, len(line) - 1, len(line)):  # ever more of the line reaches the disk
        whole = json.dumps(train(10, 5.0)) + "\n" + line[:cut]
        with open(metrics, "r+") as file:
            file.write(whole)
        seen.update()
        assert [row["step"] for row in seen.rows("train")] == [10, 20][: 1 + (cut == len(line))]
    with open(metrics, "a") as file:
        file.write('{"kind": "spike", "step": 21, "loss": 50}\n')
    seen.update()
    assert seen.done == 21
    assert seen.curve("train", "step", "loss")[1].tolist() == [5.0, 4.0]


def test_a_resumed_run_that_drops_rows_is_read_anew(tmp_path):
    run = make(tmp_path, "a", [train(step, 5.0) for step in (10, 20, 30)])
    seen = WatchedRun(run)
    # Longer than before, so that only the file's being another one tells.
    rows = [train(10, 5.0), *(train(step, 3.0) for step in (15, 20, 25, 30, 35))]
    new = run / "new"
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(run / "metrics.jsonl")
    seen.update()
    assert seen.curve("train", "step", "loss")[1].tolist() == [5.0] + 5 * [3.0]


def test_the_table_says_where_each_run_stands(tmp_path):
    make(tmp_path, "ended", [train(100, 1.0), val(100, 0.875)])
    make(tmp_path, "going", [train(s, 3.5, skipped=2, spikes=1) for s in (10, 20)])
    make(tmp_path, "silent", [train(10, 3.0)])
    make(tmp_path, "gone", [train(10, math.nan)])
    make(tmp_path, "young", [])
    make(tmp_path, "by-images", [train(5, 2.0)], steps=None, images=81)
    make(tmp_path, "by-flops", [train(5, 2.0)], steps=None, flops=1210)
    now = (tmp_path / "going" / "metrics.jsonl").stat().st_mtime + 30
    os.utime(tmp_path / "silent" / "metrics.jsonl", (now - 3600, now - 3600))
    lines = text_of(table(watched([tmp_path]), now)).splitlines()
    said = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert said["ended"][1:5] == ["100/100", "1", "0.500", "30.25"]
    assert "0.875" in said["ended"]
    assert said["ended"][-1] == "finished"
    # 80 steps of 4 images at 2 a second; then skipped, spikes, age
    assert " ".join(said["going"][7:]) == "2 min 2 1 30 s ago"
    assert "stale 1 h 00" in " ".join(said["silent"])
    assert "diverged" in said["gone"]
    assert " ".join(said["young"][-2:]) == "none yet"
    assert said["by-images"][1] == "5/21"
    assert said["by-flops"][1] == "5/31"


def test_a_run_of_slow_steps_is_not_stale_between_them(tmp_path):
    rows = [train(s, 3.0) | {"seconds": 600.0 * s} for s in range(1, 4)]
    run = WatchedRun(make(tmp_path, "a", rows))
    written = (run.folder / "metrics.jsonl").stat().st_mtime
    assert not run.stale(written + 2900)
    assert run.stale(written + 3100)


@given(st.floats(-50, 50), st.floats(0.1, 60), st.integers(30, 100), st.integers(6, 30))
def test_a_chart_puts_marks_where_they_belong(low, span, width, height):
    x, y = np.array([0.0, 10.0, 20.0]), np.array([low, low + span, low])
    drawn = chart([Series("a", "#ffffff", NOTHING, (x, y))], width, height, False, "steps")
    lines = drawn.plain.splitlines()
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    rows = lines[: height - 2]
    assert rows[0].count(MARK) == 1  # the highest in the middle
    assert rows[-1].count(MARK) == 2  # the lowest at both ends
    left, right = rows[-1].index(MARK), rows[-1].rindex(MARK)
    assert abs(rows[0].index(MARK) - (left + right) / 2) <= 1


def test_a_falling_line_falls():
    x = np.linspace(0, 1, 500)
    drawn = chart([Series("a", "#ffffff", (x, 100 * np.exp(-4 * x)), NOTHING)], 60, 20, True, "s")
    lines = [line.split("│")[-1].split("┤")[-1] for line in drawn.plain.splitlines()[:18]]
    starts = [len(line) - len(line.lstrip()) for line in lines]
    assert starts == sorted(starts)  # straight down the diagonal, by the logarithm
    steps = np.diff(starts)
    assert steps.max() - steps.min() <= 1 + steps.mean()
    assert "10 ┤" in drawn.plain


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 12))
def test_ticks_lie_within_and_are_enough(low, span, count):
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    found = ticks(low, high, count, False)
    slack = 1e-6 * span
    assert all(low - slack <= value <= high + slack for value in found)
    assert count - 1 <= len(found) <= 3 * count + 1


def test_one_row_one_value_or_none_can_be_drawn(tmp_path):
    make(tmp_path, "one", [train(10, 3.0)])
    make(tmp_path, "same", [train(step, 3.0) for step in (10, 20)])
    make(tmp_path, "none", [])
    assert "loss" in terminal_chart(watched([tmp_path]), "step", "loss", 80, 12).plain
    with pytest.raises(RunError, match=r"no run has rows of 'msssim'.*rows hold bpp, crops"):
        terminal_chart(watched([tmp_path]), "step", "msssim", 80, 12)


def test_charts_are_written_as_pictures(tmp_path):
    make(tmp_path / "runs", "a", [train(10, 300.0), train(20, 4.0), val(20, 3.5)])
    for name in ("plot.png", "plot.svg"):
        arguments = ["watch", str(tmp_path / "runs"), "-o", str(tmp_path / name), "--x", "seconds"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "20/100" in result.output
    assert Image.open(tmp_path / "plot.png").size == (1200, 750)
    words = " ".join(ElementTree.parse(tmp_path / "plot.svg").getroot().itertext())
    assert "minutes" in words
    for arguments, message in (
        (["-o", "plot.pdf"], "neither .png nor .svg"),
        (["--x", "epochs"], "--x: 'epochs' is not one of"),
    ):
        result = CliRunner().invoke(app, ["watch", str(tmp_path / "runs"), *arguments])
        assert message in str(result.exception)


def test_runs_that_have_written_nothing_yet_are_no_fault(tmp_path):
    make(tmp_path, "young", [])
    result = CliRunner().invoke(app, ["watch", str(tmp_path), "-o", str(tmp_path / "plot.png")])
    assert result.exit_code == 0
    assert "no rows written yet" in result.output
    assert not (tmp_path / "plot.png").exists()


def test_damaged_records_are_named(tmp_path):
    run = make(tmp_path, "a", [train(10, 3.0)])
    with open(run / "metrics.jsonl", "a") as file:
        file.write("{half\n" + json.dumps(train(20, 2.0)) + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 2 is not a row"):
        WatchedRun(run)
    (run / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"run\.json: name: is missing"):
        WatchedRun(run)


def test_watching_waits_for_no_torch(tmp_path):
    make(tmp_path, "a", [train(10, 3.0)])
    program = (
        "import sys\nfrom hpcm_scale.cli import app\n"
        "app(['watch', sys.argv[1]], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (3900, "1 h 05"), (100_000, "1 d 03 h")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
