"""Configuration files of version 0.1: fields under their old names are read, with a notice."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcm_scale.config import load_ladder, load_run
from hpcm_scale.errors import ConfigError

# The quick start's run and ladder as version 0.1 wrote them.
OLD_RUN = """
name: w0.1
out: quickstart/runs
seed: 1
model: {variant: base, width: 0.1}
data: {train: quickstart/shards, streams: 4, workers: 0, shuffle_buffer: 16}
loss: {lmbda: 0.013}
optimizer: {lr: 3.0e-3, warmup_steps: 10, clip: 0.5, schedule: cosine, final: 0.1}
images: 600
hours: 1.5
batch: 4
guard: {spike: 3.0}
checkpoint: {every: 150}
"""
OLD_LADDER = """
name: quick
out: runs/quick
variant: base
sizes: [{width: 0.025}, {width: 0.05}]
images: [600]
rate: {by: width, at: 0.1, lr: 3.0e-3, power: -0.5, most: 3.0e-3, source: a sweep}
arms:
  width: 0.05
  seeds: [1]
  changes:
    psi: {model.overrides.fusion: psi}
    unclipped: {optimizer.clip: 100.0}
run:
  data: {train: quickstart/shards, streams: 4}
  optimizer: {warmup_steps: 10, clip: 0.5}
  hours: 2
  batch: 4
"""


def write(folder: Path, values: str | dict[str, Any]) -> Path:
    path = folder / "old.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_run_of_version_0_1_is_read_with_notices(tmp_path, caplog):
    run = load_run(write(tmp_path, OLD_RUN))
    optimizer = run.optimizer
    assert (run.crops, run.max_hours, run.guard.spike_factor) == (600, 1.5, 3.0)
    assert (optimizer.grad_clip_norm, optimizer.final_lr_fraction) == (0.5, 0.1)
    names = [("images", "crops"), ("hours", "max_hours"), ("guard.spike", "guard.spike_factor")]
    names += [
        ("optimizer.clip", "optimizer.grad_clip_norm"),
        ("optimizer.final", "optimizer.final_lr_fraction"),
    ]
    path = tmp_path / "old.yaml"
    expected = [f"{path}: {a} is now called {b}; the old name is read until 0.3" for a, b in names]
    assert sorted(notices(caplog)) == sorted(expected)


def test_current_names_give_no_notice(tmp_path, caplog):
    load_run(write(tmp_path, {"name": "a", "data": {"train": "x"}, "crops": 10, "max_hours": 1}))
    assert notices(caplog) == []


def test_a_ladder_of_version_0_1_is_read_with_notices(tmp_path, caplog):
    ladder = load_ladder(write(tmp_path, OLD_LADDER))
    rate, ablations = ladder.rate, ladder.ablations
    assert ladder.crops == (600,)
    assert rate is not None
    assert (rate.reference, rate.exponent, rate.max_lr) == (0.1, -0.5, 0.003)
    assert ablations is not None
    assert ablations.changes["unclipped"] == {"optimizer.grad_clip_norm": 100.0}
    runs = [
        ladder.run_config(
            "a", ladder.sizes[0], lmbda=0.01, seed=1, lr=1e-3, length=600, changes=change
        )
        for change in ({}, ablations.changes["unclipped"])
    ]
    assert [run.optimizer.grad_clip_norm for run in runs] == [0.5, 100.0]
    assert [run.max_hours for run in runs] == [2, 2]
    old = {notice.partition(": ")[2].partition(" is now")[0] for notice in notices(caplog)}
    assert old == {
        "images", "arms", "rate.at", "rate.power", "rate.most", "run.optimizer.clip", "run.hours",
        "optimizer.clip",
    }  # fmt: skip
    assert len(notices(caplog)) == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 5, "crops": 5}, "images: is the old name of crops, also given"),
        (
            {"steps": 5, "optimizer": {"clip": 1, "grad_clip_norm": 1}},
            "optimizer.clip: is the old name of grad_clip_norm, also given",
        ),
    ],
)
def test_a_field_given_by_both_names_is_an_error(tmp_path, values, message):
    path = write(tmp_path, {"name": "a", "data": {"train": "x"}} | values)
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert str(caught.value) == f"{path}: {message}"


def test_an_ablation_with_both_names_of_a_field_is_an_error(tmp_path):
    values = yaml.safe_load(OLD_LADDER)
    values["arms"]["changes"]["psi"] = {"optimizer.clip": 1, "optimizer.grad_clip_norm": 2}
    with pytest.raises(ConfigError, match="psi: gives a field by its old and its new name"):
        load_ladder(write(tmp_path, values))


@pytest.mark.parametrize("changes", [["crops=20"], ["images=20"]])
@pytest.mark.parametrize("name", ["crops", "images"])
def test_set_wins_over_the_file_by_either_name(tmp_path, name: str, changes: list[str]):
    path = write(tmp_path, {"name": "a", "data": {"train": "x"}, name: 10})
    assert load_run(path, changes).crops == 20


def test_what_a_ladder_decides_is_refused_by_its_old_name(tmp_path):
    values = yaml.safe_load(OLD_LADDER)
    values["run"]["images"] = 5
    with pytest.raises(ConfigError, match=r"run\.crops: 5 is decided by the ladder's crops"):
        load_ladder(write(tmp_path, values))
    del values["run"]["images"]
    values["arms"]["changes"]["psi"] = {"images": 5}
    with pytest.raises(ConfigError, match=r"changes\.psi\.crops: ablations may not change it"):
        load_ladder(write(tmp_path, values))


def test_an_old_name_elsewhere_is_an_unknown_key(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.hours: unknown key"):
        load_run(write(tmp_path, {"name": "a", "steps": 1, "data": {"train": "x", "hours": 1}}))
