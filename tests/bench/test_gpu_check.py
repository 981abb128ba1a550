"""The check of a machine with a GPU, run on this one, and what plans make of its record."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcm_scale.bench.gpu_check import GpuCheck, Plan, plan_here, relative
from hpcm_scale.bench.gpu_report import page
from hpcm_scale.bench.small_runs import SmallRuns
from hpcm_scale.cli import app
from hpcm_scale.config import load_run
from hpcm_scale.errors import ConfigError, RunError
from hpcm_scale.models.zoo import model_config
from hpcm_scale.planning.cluster_plan import Cluster, plan_cluster
from hpcm_scale.planning.launches import count_launches
from hpcm_scale.planning.measured import Check, Measured, StepTime, newest_record
from hpcm_scale.training.engine import deepspeed_config

ROOT = Path(__file__).parents[2]

SMALL = model_config("base", width=0.025)
STEP = StepTime(SMALL.name, 256, 8, "bf16", True, 0.02, 4e12, 700, 0.25, 8e9, 9e9)
RECORD = Measured(
    device="NVIDIA H100 <SXM>",
    accelerator="cuda",
    devices=8,
    memory=80e9,
    peak=800e12,
    launch_seconds=2e-6,
    crops_per_second=100.0,
    workers=64,
    link=3e11,
    versions={"torch": "2.13.0"},
    steps=[STEP, replace(STEP, micro_batch=32, peak_share=0.5)],
    checks=[Check("parity", True, "fine"), Check("memory", False, "+30 %")],
)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.distributed
def test_the_shell_command_checks_a_machine_without_a_gpu(tmp_path):
    done = subprocess.run(
        ["bash", "launch/gpu_check.sh", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"HPCM_NO_SETUP": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = Measured.load(tmp_path / "record.json")
    assert [check.name for check in record.checks] == [
        *("doctor", "parity", "exact files", "ZeRO stages", "kill and resume"),
        *("steps", "memory", "data"),
    ]
    assert all(check.passed for check in record.checks)
    plan = plan_here()
    assert [step.micro_batch for step in record.steps] == list(plan.micro_batches)
    one, two = record.steps
    assert two.flops == 2 * one.flops
    # More than one pass dispatches, for the optimizer's part; nothing else is added by the engine.
    passes = count_launches(model_config(plan.model, plan.width), 256, False)
    assert one.launches > passes / 2
    assert record.accelerator == "cpu"
    assert "exact files" in (tmp_path / "report.html").read_text()


def test_a_failed_check_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    plan = Plan(False, "base", 0.025, (1,), (), (), 1, (), 1, 0)
    check = GpuCheck(plan, tmp_path, lambda _: None)
    for name in ("doctor", "parity", "exact_files", "stages_agree", "kill_and_resume", "memory"):
        monkeypatch.setattr(check, name, lambda: "fine")
    monkeypatch.setattr(check, "data_rate", lambda: "fine")

    def no_room() -> str:
        raise RunError("no room")

    monkeypatch.setattr(check, "step_times", no_room)
    monkeypatch.setattr("hpcm_scale.bench.gpu_check.peak_rate", lambda *_: 1e12)
    record = check.run()
    failed = [(check.name, check.said) for check in record.checks if not check.passed]
    assert failed == [("steps", "no room")]
    assert len(record.checks) == 8
    assert Measured.load(tmp_path / "record.json") == record


@pytest.mark.parametrize(("ranks", "batch"), [(1, 4), (3, 6), (8, 8)])
def test_a_run_takes_every_gpu(ranks, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(SmallRuns, "dataset", lambda self: self.folder)
    words = SmallRuns(tmp_path)._command("run", "deepspeed=zero2", ranks=ranks)
    assert (words[-2:] == ["-n", str(ranks)]) == (ranks > 1)
    run = load_run(tmp_path / "run.yaml", ["deepspeed=zero2"])
    assert run.batch == run.data.streams == batch
    assert deepspeed_config(run, ranks)["train_micro_batch_size_per_gpu"] == batch // ranks


def test_series_of_two_lengths_never_agree():
    assert relative([1.0, 2.0], [1.0]) == relative([], []) == float("inf")
    assert relative([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)


def test_a_record_survives_its_file_and_others_are_refused(tmp_path):
    RECORD.save(tmp_path / "h100.json")
    assert Measured.load(tmp_path / "h100.json") == RECORD
    (tmp_path / "old.json").write_text(json.dumps({"format": 0}))
    for name in ("old.json", "none.json"):
        with pytest.raises(ConfigError, match=name):
            Measured.load(tmp_path / name)
    assert "&lt;SXM&gt;" in page(RECORD)


def test_the_newest_record_of_a_gpu_is_taken(tmp_path):
    assert newest_record(tmp_path) is None
    for age, (name, kind) in enumerate((("a", "cuda"), ("b", "cuda"), ("c", "cpu"))):
        replace(RECORD, accelerator=kind).save(tmp_path / f"{name}.json")
        os.utime(tmp_path / f"{name}.json", (age, age))
    assert newest_record(tmp_path) == tmp_path / "b.json"


def test_plans_take_what_was_measured():
    base, assumed = SMALL, Cluster(accelerators=32)  # a crop each: quick to plan
    cluster = assumed.measured(RECORD, base.name)
    assert (cluster.peak, cluster.efficiency, cluster.memory) == (800e12, 0.5, 80e9)
    plan = plan_cluster(base, cluster, batch=32)
    before = plan_cluster(base, assumed, batch=32)
    one, other = (
        next(o for o in p.options if o.deepspeed == "zero1" and not o.checkpointing)
        for p in (plan, before)
    )
    assert one.compute == pytest.approx(other.compute * 989e12 * 0.4 / (800e12 * 0.5))
    assert one.launch == pytest.approx(other.launch * 2 / 6)
    assert one.communication == pytest.approx(other.communication * 450 / 300)
    assert (one.data, other.data) == (pytest.approx(32 / 6400), 0)
    # The efficiency of a network that nobody measured is still assumed, and said to be.
    unknown = assumed.measured(RECORD, "elic")
    assert unknown.efficiency == assumed.efficiency
    assert "efficiency assumed" in unknown.source


def test_plan_says_which_figures_it_used_and_what_binds(tmp_path):
    RECORD.save(tmp_path / "h100.json")
    run = CliRunner().invoke
    words = ["plan", "--model", "base", "--width", "0.025"]
    with_record = run(app, [*words, "--record", str(tmp_path / "h100.json")])
    without = run(app, [*words, "--record", "none"])
    said = [" ".join(done.output.split()) for done in (with_record, without)]
    assert "measured on NVIDIA H100 <SXM>" in said[0]
    assert "(assumed)" in said[1]
    bounds = ("arithmetic", "launches", "memory", "data", "network", "offload")
    assert all(any(f"bound by {bound}" in text for bound in bounds) for text in said)
    slow = replace(RECORD, crops_per_second=1.0, workers=8)
    slow.save(tmp_path / "slow.json")
    done = run(app, [*words, "--record", str(tmp_path / "slow.json")])
    assert "bound by data" in " ".join(done.output.split())
    replace(RECORD, accelerator="cpu").save(tmp_path / "cpu.json")
    assert run(app, [*words, "--record", str(tmp_path / "cpu.json")]).exit_code != 0
