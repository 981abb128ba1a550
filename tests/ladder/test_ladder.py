"""Ladders: what they consist of and cost, and their runs as real processes."""

import json
import math
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.config import load_ladder
from hpcm_scale.data.pack import pack
from hpcm_scale.data.recipe import read_recipe
from hpcm_scale.errors import INTERRUPTED, ConfigError
from hpcm_scale.ladder.launcher import Launcher
from hpcm_scale.ladder.plan import Cost, makespan
from hpcm_scale.ladder.runs import copy_records, ladder_runs, parameters_of, status, thinned
from hpcm_scale.ladder.table import difference
from hpcm_scale.runs.records import families, read_runs
from hpcm_scale.training.lr_schedule import learning_rate

CONFIGS = Path(__file__).parents[2] / "configs" / "ladders"

LADDER = """
name: tiny
out: runs/tiny
sizes: [{width: 0.025, seeds: [1, 2]}, {width: 0.05}]
crops: [20, 40]
rate: {by: width, reference: 0.05, lr: 1.0e-3, exponent: -0.5, source: a guess}
run:
  data: {train: shards, streams: 4, workers: 0, shuffle_buffer: 4}
  batch: 1
  log_every: 1
  validate_every: 20
  deepspeed: zero0
  checkpoint_activations: false
  checkpoint: {every: 5}
"""


@pytest.fixture
def write(tmp_path):
    """write(text) -> the path of a ladder."""

    def write(text: str = LADDER) -> Path:
        path = tmp_path / "ladder.yaml"
        path.write_text(text)
        return path

    return write


def test_ablations_reuse_the_runs_they_share(write):
    ablations = (
        "ablations: {width: 0.025, seeds: [2, 3], changes: {psi: {model.overrides.fusion: psi}}}\n"
    )
    runs = {run.name: run for run in ladder_runs(load_ladder(write(LADDER + ablations)))}
    assert sorted(runs) == [
        *("w0.025-i20-s1", "w0.025-i20-s2", "w0.025-i40-s1", "w0.025-i40-s2", "w0.025-i40-s3"),
        *("w0.025-psi-i40-s2", "w0.025-psi-i40-s3", "w0.05-i20-s1", "w0.05-i40-s1"),
    ]
    assert runs["w0.025-psi-i40-s3"].model.fusion == "psi"
    assert runs["w0.025-i40-s3"].model.fusion == "attention"
    assert runs["w0.025-i40-s3"].config.seed == 3


def test_equal_flops_give_crops_inversely(write):
    text = LADDER.replace("crops: [20, 40]", "flops: [1.0e+11]")
    small, _, large = ladder_runs(load_ladder(write(text)))
    from hpcm_scale.models.complexity import count_flops

    for run in (small, large):
        per_step = count_flops(run.model).train
        assert run.steps == math.ceil(1e11 / per_step)
    assert small.steps > 2 * large.steps


def test_a_branch_shares_the_trunks_learning_rates(
    write,
):
    text = LADDER.replace("crops: [20, 40]", "crops: [23, 61, 100]")
    runs = {run.name: run for run in ladder_runs(load_ladder(write(text)))}
    trunk = runs["w0.05-i100-s1"]
    kept = trunk.config.checkpoint
    for images in (23, 61):
        run = runs[f"w0.05-i{images}-s1"]
        assert run.trunk == trunk.name
        assert run.branch_step > 0.5 * run.steps
        assert run.branch_step % kept.every == 0
        assert run.branch_step % kept.keep_every == 0
        for step in range(run.branch_step):
            rates = [learning_rate(r.config.optimizer, step, r.steps) for r in (run, trunk)]
            assert rates[0] == rates[1]


def test_other_schedules_share_nothing(write):
    text = LADDER.replace("  batch: 1", "  batch: 1\n  optimizer: {schedule: cosine}")
    assert all(run.trunk is None for run in ladder_runs(load_ladder(write(text))))


def test_learning_rates_follow_rule_cap_and_size(write):
    text = LADDER.replace("{width: 0.05}", "{width: 0.1}, {width: 0.2, lr: 0.007}")
    runs = ladder_runs(load_ladder(write(text.replace("source:", "max_lr: 1.2e-3, source:"))))
    rates = {run.config.model.width: run.config.optimizer.lr for run in runs}
    assert rates == {0.025: 1.2e-3, 0.1: 7.07e-4, 0.2: 7e-3}
    by_parameters = text.replace("by: width, reference: 0.05", "by: parameters, reference: 46825")
    rates = {r.config.model.width: r.config.optimizer.lr
             for r in ladder_runs(load_ladder(write(by_parameters)))}  # fmt: skip
    assert rates[0.025] == 1e-3  # 46 825 parameters, as `hpcm-scale info base --width 0.025` counts
    assert rates[0.1] == float(f"{1e-3 * (704951 / 46825) ** -0.5:.3g}")


def test_with_mup_one_rate_serves_every_width(write):
    text = LADDER.replace(" exponent: -0.5,", "").replace("{width: 0.05}", "{width: 0.1}")
    text = text.replace("  batch: 1", "  batch: 1\n  optimizer: {parametrization: mup}")
    optimizers = [run.config.optimizer for run in ladder_runs(load_ladder(write(text)))]
    assert {(o.lr, o.base_width) for o in optimizers} == {(1e-3, 0.05)}
    text = text.replace("name: tiny", "name: tiny\nablations: {width: 0.1, seeds: [1], changes: "
                        "{plain: {optimizer.parametrization: standard}}}")  # fmt: skip
    last = ladder_runs(load_ladder(write(text)))[-1].config.optimizer
    assert (last.parametrization, last.base_width) == ("standard", None)


def test_predicted_time_counts_the_runs_own_steps(write):
    runs = {run.name: run for run in ladder_runs(load_ladder(write()))}
    cost = Cost(step=2.0, validation=30.0, start=500.0, memory=1.0)
    # 40 steps, validated after 20 and 40; the branch has 5 of its 20 steps and one validation.
    assert cost.seconds(runs["w0.05-i40-s1"]) == 500 + 40 * 2 + 2 * 30
    assert runs["w0.05-i20-s1"].branch_step == 15
    assert cost.seconds(runs["w0.05-i20-s1"]) == 500 + 5 * 2 + 30


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20), st.integers(1, 5))
def test_a_schedule_lies_between_its_bounds(times, jobs):
    whole = makespan(times, jobs)
    assert max(sum(times) / jobs, *times) <= whole + 1e-9
    assert whole <= sum(times) / jobs + max(times) + 1e-9
    assert makespan(times, 1) == pytest.approx(sum(times))


@given(st.lists(st.sampled_from(["train", "val", "skip"]), max_size=400), st.integers(1, 100))
def test_thinned_rows_keep_all_but_training_in_order(kinds, limit):
    rows = [{"kind": kind, "step": i} for i, kind in enumerate(kinds)]
    kept = thinned(rows, limit)
    train = [row for row in rows if row["kind"] == "train"]
    assert [r for r in kept if r["kind"] != "train"] == [r for r in rows if r["kind"] != "train"]
    assert kept == sorted(kept, key=lambda row: row["step"])
    mine = [row for row in kept if row["kind"] == "train"]
    assert len(mine) == min(limit, len(train))
    assert mine[-1:] == train[-1:] or limit == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("crops: [20, 40]", "crops: [0]", "crops.0: 0: input should be greater than 0"),
        ("crops: [20, 40]", "flops: [1.0e9]\ncrops: [4]", "crops: give one of crops and flops"),
        ("{width: 0.05}", "{width: 0.025}", "sizes: w0.025 is there twice"),
        ("width: 0.05}", "wdith: 0.05}", "sizes.1.wdith: unknown key"),
        ("  batch: 1", "  batch: two", "run: batch: 'two': input should be a valid integer"),
        ("  batch: 1", "  seed: 2", "run.seed: 2 is decided by the ladder's seeds"),
        ("  batch: 1", "  loss: {lmbda: 1}", "run.loss.lmbda: 1 is decided by the ladder"),
        ("rate: {by: width, reference: 0.05, lr: 1.0e-3, exponent: -0.5, source: a guess}", "",
         "rate: is missing, and size w0.025 has no lr of its own"),
        (", source: a guess", "", "rate.source: is required"),
        (" exponent: -0.5,", "", "rate.exponent: is required, unless run.optimizer.parametriz"),
        ("  batch: 1", "  optimizer: {parametrization: mup}",
         "rate.exponent: -0.5 would come on top of mup"),
        ("name: tiny", "name: tiny\nablations: {width: 0.5, changes: {a: {}}}",
         "ablations.width: w0.5 is not one of the sizes w0.025, w0.05"),
        ("name: tiny", "name: tiny\nablations: {width: 0.05, changes: {a: {steps: 4}}}",
         "ablations.changes.a.steps: ablations may not change it"),
        ("name: tiny", "name: tiny\nablations: {width: 0.05, changes: {a: {optimizer.lr: -1}}}",
         "ablation a: run: optimizer.lr: -1: input should be greater than 0"),
    ],
)  # fmt: skip
def test_a_bad_ladder_is_named_in_one_line(write, old, new, said):
    assert old in LADDER
    path = write(LADDER.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_ladder(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_arm_of_no_known_network_is_refused(write):
    ablations = "ablations: {width: 0.05, changes: {a: {model.overrides.fusion: sum}}}\n"
    with pytest.raises(ConfigError, match=r"fusion: 'sum'"):
        ladder_runs(load_ladder(write(LADDER + ablations)))


def test_a_pattern_that_matches_nothing_is_an_error(write):
    command = ["ladder", "status", str(write()), "--only", "w9*"]
    result = CliRunner().invoke(app, command)
    assert "matches none of w0.025-i40-s1" in str(result.exception)


def test_the_repository_s_ladders_span_what_they_say():
    for path in CONFIGS.glob("*.yaml"):
        runs = ladder_runs(load_ladder(path))
        assert len({run.new_steps * run.config.batch for run in runs}) == 1
    photos = ladder_runs(load_ladder(CONFIGS / "photos.yaml"))
    sizes = {parameters_of(r.model)["total"] for r in photos if r.model.name.startswith("base-w")}
    assert len(sizes) >= 6
    assert max(sizes) > 30 * min(sizes)
    ablations = [run for run in photos if run.config.model.width == 0.075]
    assert len(ablations) == 15


def test_a_slurm_array_has_a_task_for_each_trunk(write):
    command = ["ladder", "run", str(write()), "--slurm", "--jobs", "3", "--ranks", "8"]
    result = CliRunner().invoke(app, [*command, "--set", "run.data.train=my photos"])
    script = result.output
    assert result.exit_code == 0, script
    assert "#SBATCH --array=0-2%3\n" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    # What a task would run, told by bash itself.
    line = next(line for line in script.splitlines() if "hpcm_scale.cli" in line)
    told = script.partition(line)[0] + "printf '%s\\n' " + line.removesuffix(" &")
    said = subprocess.run(
        ["bash", "-c", told],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"},
        text=True,
        capture_output=True,
        check=True,
    ).stdout.splitlines()
    assert "--set=run.data.train=my photos" in said
    assert sorted(said[-2:]) == ["--only=w0.025-i20-s2", "--only=w0.025-i40-s2"]


def test_ablations_are_compared_within_seeds(write, write_run):
    psi = "{psi: {model.overrides.fusion: psi}}"
    ablations = f"ablations: {{width: 0.025, seeds: [1, 2, 3], changes: {psi}}}\n"
    text = (LADDER + ablations).replace("crops: [20, 40]", "crops: [40]")
    runs = [run for run in ladder_runs(load_ladder(write(text))) if run.ablation is not None]
    # Seeds differ by far more than arms do: unpaired, it would be lost in them.
    for run in runs:
        loss = (1 + run.config.seed) * (0.99 + 0.001 * run.config.seed if run.ablation else 1.0)
        folder = write_run(46825, seed=run.config.seed, folder=run.name, loss=loss, noise=0)
        record = json.loads((folder / "run.json").read_text())
        record["config"]["model"] = run.config.model.model_dump()
        record["model"] = run.model.model_dump(mode="json")
        (folder / "run.json").write_text(json.dumps(record))
    assert len(families(read_runs([folder.parent]).runs)) == 2
    command = ["ladder", "compare", str(write(text)), "--records", str(folder.parent)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.strip().startswith("psi"))
    # -0.9, -0.8 and -0.7 %: their mean ± 4.303 · 0.1 / √3.
    assert "-0.80%" in row
    assert "-1.05% … -0.55%" in row


def test_the_interval_of_a_paired_difference_is_students():
    low, mean, high = difference([1.01, 1.02, 1.03], [1.0, 1.0, 1.0], 0.95)
    assert mean == pytest.approx(0.02)
    # The standard error of 1, 2, 3 is 1/√3, t at 2 degrees of freedom 4.3027 (any table of t).
    assert high - mean == pytest.approx(0.01 * 4.3027 / 3**0.5, rel=1e-4)
    assert mean - low == pytest.approx(high - mean)
    assert math.isnan(difference([1.0], [2.0], 0.95)[0])


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Six smooth random pictures in shards, two of them for validation."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(6):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    recipe = folder / "recipe.yaml"
    recipe.write_text("{licence: made here, min_side: 256, val: {names: ['0', '1']}}")
    pack(str(folder), tmp_path / "shards", read_recipe(recipe))
    return tmp_path / "shards"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_ladder_survives_stops_and_a_failing_run(write, dataset, tmp_path):
    text = LADDER.replace("{width: 0.025, seeds: [1, 2]}, {width: 0.05}", "{width: 0.025}")
    ablations = "ablations: {width: 0.025, seeds: [1], changes: {lost: {data.train: /nowhere}}}\n"
    path, out = write(text + ablations), tmp_path / "runs"
    changes = [f"out={out}", f"run.data.train={dataset}", "run.batch=2", "crops=[40, 80]"]
    runs = ladder_runs(load_ladder(path, changes))
    trunk, branch, lost = (
        next(run for run in runs if run.name == name)
        for name in ("w0.025-i80-s1", "w0.025-i40-s1", "w0.025-lost-i80-s1")
    )
    assert [status(run).state for run in runs] == ["waiting"] * 3

    # 1. Two ranks through DeepSpeed's launcher, stopped by a signal once there is a row.
    seen = []

    def interrupt():
        metrics = trunk.config.folder / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.05)
        seen.append(status(trunk).state)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    first = Launcher([trunk, branch], 2, 2, lambda text: None)
    assert first.run() == INTERRUPTED
    assert first.stopped == [trunk.name]
    assert seen == ["running"]
    assert status(trunk).state == "stopped"
    assert status(trunk).rows.done < trunk.steps
    assert status(branch).state == "waiting"

    # 2. The next launch goes on, on one rank; a run that fails does not keep the others from it.
    result = CliRunner().invoke(
        app, ["ladder", "run", str(path), "--jobs", "2", *(f"--set={c}" for c in changes)]
    )
    assert result.exit_code == 1, result.output
    assert f"{trunk.name}  resumed" in result.output
    assert f"failed: {lost.name}: exit code 2: /nowhere" in result.output
    assert [status(run).state for run in (trunk, branch, lost)] == ["done", "done", "failed"]
    rows = [json.loads(row) for row in (trunk.config.folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 41))
    sessions = json.loads((branch.config.folder / "run.json").read_text())["sessions"]
    assert sessions[0]["from"].endswith(f"{trunk.name}/checkpoints/step-00000015")
    rows = [json.loads(row) for row in (branch.config.folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(16, 21))

    # 3. What is done stays as it is, and its records can be fitted elsewhere.
    before = (trunk.config.folder / "metrics.jsonl").stat().st_mtime_ns
    assert Launcher([trunk, branch], 1, 2, lambda text: None).run() == 0
    assert (trunk.config.folder / "metrics.jsonl").stat().st_mtime_ns == before
    written, left = copy_records(runs, tmp_path / "records")
    assert (len(written), left) == (2, [lost.name])
    mine, copied = (read_runs([folder]).runs for folder in (out, tmp_path / "records"))
    assert [r.final for r in mine] == [r.final for r in copied]

    # 4. A ladder that has changed since says so instead of counting what was trained before.
    other = ladder_runs(load_ladder(path, [*changes, "rate.lr=0.002"]))[0]
    assert "optimizer.lr: " in status(other).reason
    again = Launcher([other], 1, 1, lambda text: None)
    assert again.run() == 1
    assert (trunk.config.folder / "metrics.jsonl").stat().st_mtime_ns == before
