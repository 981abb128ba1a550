"""Runs that are told to stop, and hosts that lack what a start needs."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from hpcm_scale.errors import INTERRUPTED
from hpcm_scale.training.checkpoint import at, damage, newest
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.training.resume import RunLock
from tests.distributed.jobs import ROOT, command, environment, rows, verb

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LONG = ("steps=4000", "validate_every=4000")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a namespace")


def begin(words: list[str], **extra: str) -> subprocess.Popen:
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment() | extra,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(out: Path, job: subprocess.Popen) -> None:
    metrics = out / "small" / "metrics.jsonl"
    for _ in range(3000):
        assert job.poll() is None, job.communicate()[0]
        if metrics.exists() and rows(out, "train"):
            return
        time.sleep(0.1)
    raise AssertionError("no step was taken")


def check_stopped(out: Path, job: subprocess.Popen, family: list[psutil.Process]) -> None:
    text, _ = job.communicate(timeout=300)
    assert job.returncode == INTERRUPTED, text
    assert "it is saved; --resume auto continues it" in text
    assert damage(at(newest(out / "small"))) is None
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    lock = RunLock(out / "small")
    lock.acquire()  # nobody holds the folder
    lock.release()


def here(number: int) -> dict[str, str]:
    """Variables of a job on this host alone, as launch/no_ssh.sh takes them."""
    port = {"MASTER_PORT": str(number)}
    return {"HOSTS": "localhost", "HOST_RANK": "0", "SLOTS": "2"} | port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_train_verb_passes_signals_on_and_waits(dataset, tmp_path, number):
    job = begin(verb(tmp_path, dataset, 2, *LONG))
    wait_for_step(tmp_path, job)
    family = psutil.Process(job.pid).children(recursive=True)
    assert len(family) >= 3
    job.send_signal(number)
    check_stopped(tmp_path, job, family)


def test_a_host_without_ssh_passes_signals_on_and_waits(dataset, tmp_path):
    script = command(tmp_path, dataset, 1, *LONG)[1:]
    job = begin(["bash", "launch/no_ssh.sh", *script], **here(free_port()))
    wait_for_step(tmp_path, job)
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    check_stopped(tmp_path, job, family)


@as_root
def test_the_first_process_of_a_container_saves_and_stops(dataset, tmp_path):
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    job = begin([*inside, *verb(tmp_path, dataset, 2, *LONG)])
    wait_for_step(tmp_path, job)
    (first,) = psutil.Process(job.pid).children()
    family = first.children(recursive=True)
    first.send_signal(signal.SIGTERM)
    check_stopped(tmp_path, job, family)


def test_a_port_in_use_is_named_in_one_line(dataset, tmp_path):
    script = command(tmp_path, dataset, 1)[1:]
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        job = begin(["bash", "launch/no_ssh.sh", *script], **here(port))
        text, _ = job.communicate(timeout=120)
    assert job.returncode == 2, text
    assert f"MASTER_PORT: {port} is in use on {socket.gethostname()}" in text
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1, text


def test_two_ranks_start_where_there_is_no_compiler(dataset, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "env", "git", "uname"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    extensions = tmp_path / "extensions"
    given = {"PATH": str(programs), "TORCH_EXTENSIONS_DIR": str(extensions)}
    shared = set(Path("/dev/shm").glob("deepspeed_*"))
    job = begin(verb(tmp_path, dataset, 2, "steps=1"), **given)
    text, _ = job.communicate(timeout=300)
    assert job.returncode == 0, text
    assert not extensions.exists()  # nothing was compiled, nor looked for
    assert set(Path("/dev/shm").glob("deepspeed_*")) == shared
    # what cannot do without says so before anything is started
    offload = verb(tmp_path, dataset, 2, "deepspeed=zero3-offload-nvme", "name=other")
    for words in (offload, [*offload, "--dry-run"]):
        job = begin(words, **given)
        text, _ = job.communicate(timeout=300)
        assert job.returncode == 2, text
        assert "deepspeed: zero3-offload-nvme offloads" in text
        assert "has no C++ compiler" in text
        assert "Traceback" not in text
    assert not (tmp_path / "other").exists()


@as_root
def test_a_full_shared_memory_names_path_and_remedy(dataset, tmp_path):
    small = "mount -t tmpfs -o size=256k none /dev/shm && exec"
    words = verb(tmp_path, dataset, 1, "data.workers=2")
    job = begin(["unshare", "--mount", "sh", "-c", f'{small} "$@"', "sh", *words])
    text, _ = job.communicate(timeout=120)
    assert job.returncode == 2, text
    (line,) = [line for line in text.splitlines() if line.startswith("train: ")]
    assert line.startswith("train: /dev/shm: has no room")
    assert "docker run --shm-size" in line
    assert "Traceback" not in text


def test_a_dry_run_plans_for_the_ranks_it_is_told(dataset, tmp_path):
    words = [*verb(tmp_path, dataset, 2), "--dry-run"]
    text, _ = begin(words, COLUMNS="120").communicate(timeout=120)
    assert "2 ranks × 2 crops × 1 accumulated" in text
    refused = begin([*verb(tmp_path, dataset, 3), "--dry-run"])
    text, _ = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert "batch: 4 cannot be shared by 3 ranks" in text
