"""Runs in trackers' folders: TensorBoard's as its own writers leave them, W&B's offline layout."""

import json
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from hpcm_scale.errors import RunError
from hpcm_scale.runs.run_table import Columns, is_table, read_tables
from hpcm_scale.runs.tracker_folders import rows_of

SIZES = (1e6, 3e6, 1e7)


def losses(size: float) -> list[float]:
    return [3.0, 2.0 + 10 * size**-0.2]


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Three runs with their settings by TensorBoard's hparams plugin."""
    for size in SIZES:
        with SummaryWriter(str(tmp_path / f"run-{size:g}")) as writer:
            writer.add_hparams(
                {"params": size, "batch": 32, "optimizer": "adam"},
                {"hparam/best": 1.0},
                run_name=".",
            )
            for step, loss in enumerate(losses(size)):
                writer.add_scalar("val/loss", loss, step)
                writer.add_scalar("tokens", 1e9 * (step + 1), step)
    return tmp_path


def test_tensorboard_gives_settings_and_last_scalars(events: Path):
    assert is_table(events)
    rows = rows_of(events)
    assert [row["params"] for row in rows] == sorted(SIZES, key=lambda n: f"run-{n:g}")
    assert {row["optimizer"] for row in rows} == {"adam"}
    (table,), notes = read_tables([events], Columns(loss="val/loss"))
    assert sorted(table.n) == list(SIZES)
    assert sorted(table.d) == [2e9] * 3
    for n, loss in zip(table.n, table.loss, strict=True):
        assert loss == pytest.approx(losses(n)[-1], rel=1e-6)
    assert "N is 'params'" in notes[0]
    assert set(table.names) == {f"run-{size:g}" for size in SIZES}


def test_settings_beside_the_events_are_read(tmp_path: Path):
    with SummaryWriter(str(tmp_path / "a")) as writer:
        writer.add_scalar("loss", 2.5, 1)
    (tmp_path / "a" / "hparams.yml").write_text("model: {params: 7000000}\nlr: 0.1\n")
    (row,) = rows_of(tmp_path)
    assert row == {"name": "a", "loss": 2.5, "model.params": 7000000, "lr": 0.1}


def test_wandb_offline_runs_are_read(tmp_path: Path):
    for i, size in enumerate(SIZES):
        files = tmp_path / f"offline-run-{i}" / "files"
        files.mkdir(parents=True)
        (files / "config.yaml").write_text(
            "wandb_version: 1\n_wandb: {value: {cli_version: 0.1}}\n"
            f"num_params: {{desc: null, value: {size}}}\nbatch_size: {{value: {32 * (i + 1)}}}\n"
        )
        summary = {"val_loss": losses(size)[-1], "_runtime": 5, "_wandb": {"runtime": 5}}
        (files / "wandb-summary.json").write_text(json.dumps(summary))
    (table,), _ = read_tables([tmp_path], Columns())
    assert sorted(table.n) == list(SIZES)
    assert table.names == ["offline-run-0", "offline-run-1", "offline-run-2"]
    assert table.differing == ["batch_size (3 values)"]


def test_damaged_events_and_settings_are_one_line(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "wandb-summary.json").write_text("[1, 2]")
    with pytest.raises(RunError, match="holds list, not settings by name"):
        rows_of(tmp_path)
    (tmp_path / "a" / "wandb-summary.json").write_text("{")
    with pytest.raises(RunError, match=r"wandb-summary.json: cannot be read \("):
        rows_of(tmp_path)


def test_runs_of_this_program_are_not_taken_for_a_trackers(events: Path):
    (events / "run-1e+06" / "run.json").write_text("{}")
    assert not is_table(events)
