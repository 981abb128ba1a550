"""Real faults: a killed rank, signals, damaged checkpoints, a full disk, bad losses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hpcm_scale.errors import INTERRUPTED
from hpcm_scale.training.checkpoint import at, checkpoints, damage
from tests.distributed.jobs import ROOT, command, environment, launch, rows

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LENGTH = ["steps=8", "checkpoint.every=2", "checkpoint.keep=9", "validate_every=4"]
# No decay: the rate of a step must not depend on the length that a session is given.
CHANGES = [*LENGTH, "optimizer.ema=0.9", "optimizer.decay_fraction=0"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, dataset) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    done = launch(out, dataset, 2, *CHANGES)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def begin(out: Path, dataset: Path, ranks: int, *changes: str, resume: str) -> subprocess.Popen:
    """Start a job and leave it to itself."""
    return subprocess.Popen(
        command(out, dataset, ranks, *changes, resume=resume),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks_of(job: subprocess.Popen) -> list[psutil.Process]:
    """The training processes of a job, rank 0 first."""
    found = {}
    for process in psutil.Process(job.pid).children(recursive=True):
        for word in process.cmdline():
            if word.startswith("--local_rank="):
                found[int(word.removeprefix("--local_rank="))] = process
    return [found[rank] for rank in sorted(found)]


def wait_for_step(out: Path, step: int) -> None:
    """Until the run has recorded `step`."""
    for _ in range(3000):
        if (out / "small" / "metrics.jsonl").exists() and any(
            row["step"] >= step for row in rows(out, "train")
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(out, "train")]


def test_a_run_survives_kills_signals_and_damage(uninterrupted, dataset, tmp_path):
    out, run = tmp_path, tmp_path / "small"

    # kill -9 of one rank takes the job down
    job = begin(out, dataset, 2, *CHANGES, resume="auto")
    wait_for_step(out, 3)
    ranks_of(job)[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    text, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert time.monotonic() - killed < 60
    assert "the job is lost" in text

    # resumed on as many ranks; told to stop, it saves, and says how it ended
    job = begin(out, dataset, 2, *CHANGES, resume="auto")
    wait_for_step(out, 5)
    ranks_of(job)[0].send_signal(signal.SIGUSR1)
    text, _ = job.communicate(timeout=300)
    assert job.returncode == INTERRUPTED, text
    stopped = losses(out)[-1][0]
    assert checkpoints(run)[-1].step == stopped
    # bit for bit what the uninterrupted run has
    assert losses(out) == losses(uninterrupted)[:stopped]

    # a damaged newest checkpoint: the one before it takes its place; on one rank now
    newest, before = checkpoints(run)[-1], checkpoints(run)[-2]
    states = max(newest.folder.glob("*optim_states.pt"))
    flipped = bytearray(states.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    states.write_bytes(flipped)
    assert "checksum" in damage(newest)
    done = launch(out, dataset, 1, *CHANGES, "steps=7", resume="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert newest.folder.name in done.stderr
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert Path(sessions[-1]["from"]) == before.folder
    assert damage(at(newest.folder)) is None  # written again

    # and on two again
    done = launch(out, dataset, 2, *CHANGES, resume="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    steps, values = zip(*losses(out), strict=True)
    assert steps == tuple(range(1, 9))
    expected = [loss for _, loss in losses(uninterrupted)]
    assert values == pytest.approx(expected, rel=1e-5)
    # validation is by the averaged weights, which have been spread anew with the rest
    last, expected = (rows(folder, "val")[-1] for folder in (out, uninterrupted))
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_second_writer_and_a_changed_run_are_refused(dataset, tmp_path):
    long = ["steps=4000"]
    job = begin(tmp_path, dataset, 1, *long, resume="never")
    wait_for_step(tmp_path, 1)
    second = launch(tmp_path, dataset, 1, *long, resume="auto")
    assert second.returncode == 2
    assert "another run is writing there" in second.stderr
    psutil.Process(job.pid).send_signal(signal.SIGTERM)
    text, _ = job.communicate(timeout=300)
    assert job.returncode == INTERRUPTED, text
    changed = launch(tmp_path, dataset, 1, *long, "optimizer.lr=0.5", resume="auto")
    assert changed.returncode == 2
    assert "optimizer.lr: was 0.001" in changed.stderr


def test_too_many_bad_steps_end_the_run(dataset, tmp_path):
    faults = ["optimizer.lr=1.0e+30", "guard.max_skipped=3", "checkpoint.every=1"]
    done = launch(tmp_path, dataset, 1, "steps=20", *faults)
    assert done.returncode == 2
    assert "3 steps in a row" in done.stderr
    skipped = [row["step"] for row in rows(tmp_path, "skip")]
    assert len(skipped) == 3
    assert checkpoints(tmp_path / "small")[-1].step < skipped[-1]
    assert damage(checkpoints(tmp_path / "small")[-1]) is None


def test_a_full_disk_leaves_the_last_checkpoint(dataset, tmp_path):
    job = begin(tmp_path, dataset, 1, "steps=4000", "checkpoint.every=1", resume="never")
    wait_for_step(tmp_path, 1)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=300)
    good = checkpoints(tmp_path / "small")[-1]
    blocked = good.folder.with_name(f"step-{good.step + 1:08d}")
    # Everything written to /dev/full fails as on a full disk.
    script = (
        "import sys, torch; from hpcm_scale.training import async_checkpoint_writer as writer;"
        "write = writer.CheckpointWriter._write;"
        "writer.CheckpointWriter._write = lambda self, path, job:"
        " (path.symlink_to('/dev/full'), write(self, path, job));"
        "sys.path.insert(0, 'launch'); import train; train.main()"
    )
    arguments = command(tmp_path, dataset, 1, "steps=4000", "checkpoint.every=1", resume="auto")[2:]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "cannot be written (rank 0: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not blocked.exists()
    assert damage(good) is None
