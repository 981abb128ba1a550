"""What the rows of a run leave in metrics.jsonl and in trackers, and what they print."""

import errno
import itertools
import json
import logging
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import MissingPackage, RunError
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.training import trackers
from hpcm_scale.training.monitor import Monitor
from hpcm_scale.training.trackers import check_trackers

ROOT = Path(__file__).parents[2]
FIGURES = {"loss": 2.5, "bpp": 0.75, "psnr": 30.25}
SPEED = {"crops_per_second": 8.0}


def config(out: Path, *names: str) -> RunConfig:
    values = {"name": "a run", "out": out, "steps": 9, "data": {"train": "x"}, "trackers": names}
    run = RunConfig.model_validate(values)
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def session(run: RunConfig, first: int, steps: range) -> None:
    """A row a step, a validation after the last."""
    with Monitor(run, 9, first, MetricsLog(run.folder).rewind(first)) as monitor:
        for step in steps:
            monitor.row("train", step, FIGURES | SPEED | {"loss": float(step)})
        monitor.row("val", steps[-1], FIGURES)


def events(run: RunConfig) -> EventAccumulator:
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    return found


def test_tensorboard_and_the_log_hold_the_same_rows(tmp_path):
    run = config(tmp_path, "tensorboard")
    session(run, 0, range(1, 4))
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"], r["loss"]) for r in rows] == [
        ("train", 1, 1.0), ("train", 2, 2.0), ("train", 3, 3.0), ("val", 3, 2.5),
    ]  # fmt: skip
    assert all(b["seconds"] >= a["seconds"] for a, b in itertools.pairwise(rows))
    drawn = events(run)
    assert [(e.step, e.value) for e in drawn.Scalars("loss/train")] == [(1, 1), (2, 2), (3, 3)]
    assert [(e.step, e.value) for e in drawn.Scalars("psnr/val")] == [(3, 30.25)]


def test_a_resumed_run_has_each_step_once(tmp_path):
    run = config(tmp_path, "tensorboard")
    session(run, 0, range(1, 6))
    before = MetricsLog(run.folder)
    before.update()
    session(run, 2, range(3, 7))
    log = MetricsLog(run.folder)
    log.update()
    train = [row for row in log.rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == [1, 2, 3, 4, 5, 6]
    assert train[2]["seconds"] >= before.rows[1]["seconds"]  # the clock goes on
    assert [e.step for e in events(run).Scalars("loss/train")] == [1, 2, 3, 4, 5, 6]


def test_pictures_and_events_are_drawn(tmp_path, capsys):
    run = config(tmp_path, "tensorboard")
    with Monitor(run, 9, 0, 0.0) as monitor:
        monitor.pictures(4, torch.rand(3, 32, 48), torch.rand(3, 32, 48) * 2, torch.rand(2, 3))
        monitor.event("skip", 5)
        monitor.event("spike", 6, loss=7.5)
    drawn = events(run)
    assert {"validation/original", "validation/bits"} <= set(drawn.Tags()["images"])
    assert [e.step for e in drawn.Scalars("events/spike")] == [6]
    said = capsys.readouterr().out
    assert "5/9  step skipped: its loss or gradient is not finite" in said
    assert "6/9  loss spike (7.5)" in said


def test_jsonl_alone_leaves_no_event_file(tmp_path):
    run = config(tmp_path, "jsonl")
    session(run, 0, range(1, 3))
    assert (run.folder / "metrics.jsonl").exists()
    assert not (run.folder / "tensorboard").exists()


class Broken:
    """A tracker whose every call fails."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        self.error, self.calls = error, 0

    def scalars(self, *_: object) -> None:
        self.calls += 1
        raise self.error()

    image = close = scalars


def test_a_tracker_that_fails_is_left_out(tmp_path, monkeypatch, caplog):
    broken = Broken(lambda: ValueError("no such\nserver"))
    monkeypatch.setattr(trackers, "WeightsAndBiases", lambda run: broken)
    run = config(tmp_path, "wandb", "tensorboard")
    root = logging.getLogger().handlers[:]
    session(run, 0, range(1, 4))
    logging.getLogger().handlers[:] = root  # the monitor shows warnings itself
    assert broken.calls == 1
    assert len(events(run).Scalars("loss/train")) == 3


def test_a_tracker_that_cannot_be_opened_is_named_in_one_line(tmp_path, monkeypatch):
    def refuse(run: RunConfig) -> None:
        raise ValueError("no API key\nconfigured")

    monkeypatch.setattr(trackers, "WeightsAndBiases", refuse)
    with pytest.raises(RunError) as caught:
        Monitor(config(tmp_path, "wandb"), 9, 0, 0.0)
    assert str(caught.value).startswith(
        "trackers: wandb cannot be opened (ValueError: no API key configured)"
    )


def test_a_full_disk_ends_the_run_with_its_own_error(tmp_path, monkeypatch):
    full = Broken(lambda: OSError(errno.ENOSPC, "No space left on device", "events"))
    monkeypatch.setattr(trackers, "TensorBoard", lambda run, step: full)
    with pytest.raises(OSError, match="events"):  # not the error of closing it
        session(config(tmp_path, "tensorboard"), 0, range(1, 4))
    assert full.calls == 2


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_missing_tracker_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    with pytest.raises(MissingPackage) as caught:
        check_trackers(config(tmp_path, "jsonl", name))
    extra = "train" if name == "tensorboard" else "trackers"
    assert str(caught.value).startswith(f"trackers: {name}: ")
    assert f"pip install 'hpcm-scale[{extra}]'" in str(caught.value)


@pytest.mark.slow
def test_mlflow_keeps_all_sessions_as_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = config(tmp_path, "mlflow")
    session(run, 0, range(1, 4))
    session(run, 3, range(4, 6))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(tmp_path.name)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "a run"
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss/train")
    assert [(entry.step, entry.value) for entry in history] == [(s, s) for s in range(1, 6)]
    assert found.data.params["steps"] == "9"


@pytest.mark.slow
def test_wandb_leaves_its_files_for_later(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = config(tmp_path, "wandb")
    session(run, 0, range(1, 4))
    (made,) = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    assert made.stat().st_size > 100


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="needs trackio")
def test_trackio_keeps_a_database_beside_the_runs(tmp_path):
    """In a process of its own: trackio reads TRACKIO_DIR when it is imported."""
    code = (
        "from tests.training.test_monitor import *\n"
        f"session(config(Path({str(tmp_path)!r}), 'trackio'), 0, range(1, 4))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRACKIO_DIR"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=ROOT)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        steps = [step for (step,) in opened.execute("select step from metrics order by step")]
    assert steps == [1, 2, 3, 3]


def test_a_loss_that_is_no_number_is_still_a_row(tmp_path):
    run = config(tmp_path, "tensorboard")
    with Monitor(run, 9, 0, 0.0) as monitor:
        monitor.row("train", 1, FIGURES | SPEED | {"loss": math.nan})
    log = MetricsLog(run.folder)
    log.update()
    assert math.isnan(log.rows[0]["loss"])
