"""Losses and gradients that are not finite, in fp32 and bf16, are a step on no rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcm_scale.training.checkpoint import checkpoints
from hpcm_scale.training.zero_checkpoint import master_weights
from tests.distributed.jobs import ROOT, command, deepspeed, environment, rows

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BAD = 2
"""The step whose gradients overflow."""
OVERFLOWING = f"""
import sys
from hpcm_scale.training import loop
step, loss = loop.Trainer.step, loop.training_loss
factor = 1.0
def stepped(self, batch):
    global factor
    factor = 3e38 if batch.step + 1 == {BAD} else 1.0
    return step(self, batch)
loop.Trainer.step = stepped
loop.training_loss = lambda *given: factor * loss(*given)
sys.path.insert(0, "launch")
import train
train.main()
"""
"""Trains; one step's gradients go beyond bf16's numbers, while the loss that is shown stays one."""


def train(out: Path, dataset: Path, *changes: str, resume: str = "never") -> None:
    arguments = command(out, dataset, 1, *changes, resume=resume)[2:]
    done = subprocess.run(
        [sys.executable, "-c", OVERFLOWING, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bad_step_of_one_rank_is_no_step_of_any():
    done = subprocess.run(
        [*deepspeed(2), "tests/distributed/bad_steps.py"],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = json.loads(next(li for li in done.stdout.splitlines() if li.startswith("{")))
    assert len(verdicts) == 4 * 2 + 3 * 3
    assert {name: counts for name, counts in verdicts.items() if counts != [2] * 4} == {}


@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_bf16_leaves_out_an_overflowing_step_and_resumes(stage, dataset, tmp_path):
    changes = [f"deepspeed={stage}", "precision=bf16", "batch=1", "steps=4", "checkpoint.every=1"]
    changes += ["checkpoint.keep=9", "validate_every=9", "trackers=[jsonl]"]
    train(tmp_path / "run", dataset, *changes)
    run = tmp_path / "run" / "small"
    assert [row["step"] for row in rows(tmp_path / "run", "skip")] == [BAD]
    whole = {row["step"]: row["loss"] for row in rows(tmp_path / "run", "train")}
    assert sorted(whole) == [1, 3, 4]

    before, at, after = (dict(master_weights(found.folder)) for found in checkpoints(run)[:3])
    assert all(torch.equal(before[name], at[name]) for name in before)
    assert not all(torch.equal(at[name], after[name]) for name in at)

    train(tmp_path / "after", dataset, *changes, resume=str(checkpoints(run)[BAD - 1].folder))
    resumed = {row["step"]: row["loss"] for row in rows(tmp_path / "after", "train")}
    assert resumed == {step: whole[step] for step in (3, 4)}
