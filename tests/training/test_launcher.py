"""How signals reach the ranks of a launcher, and what describes a host's part of a job."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hpcm_scale.errors import INTERRUPTED, ConfigError
from hpcm_scale.training.launcher import launch_host, launcher_command

ROOT = Path(__file__).parents[2]
# As the deepspeed launcher: starts its ranks late, and ends with the code of the first to fail.
LAUNCHER = """
import subprocess, sys, time
time.sleep(1)
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[1]]) for _ in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""
# As a rank: takes a while before it can save, then a while to save.
RANK = """
import signal, sys, time
time.sleep(1)
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
print("ready", flush=True)
while not told:
    time.sleep(0.05)
time.sleep(SAVING)
sys.exit(75)
"""
PARENT = """
import sys
from hpcm_scale.training.launcher import run_launcher
print("started", flush=True)
sys.exit(run_launcher([sys.executable, "-c", *sys.argv[1:]]))
"""


def start(saving: float = 0.5, inside: tuple[str, ...] = ()) -> subprocess.Popen:
    rank = RANK.replace("SAVING", str(saving))
    return subprocess.Popen(
        [*inside, sys.executable, "-c", PARENT, LAUNCHER, rank],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_makes_the_ranks_save_and_stop(number):
    job = start()
    assert [job.stdout.readline() for _ in range(3)] == ["started\n", "ready\n", "ready\n"]
    job.send_signal(number)
    assert job.wait(timeout=60) == INTERRUPTED


def test_a_signal_before_the_ranks_are_there_is_not_lost():
    job = start()
    assert job.stdout.readline() == "started\n"
    time.sleep(0.3)  # the handlers are in place; the launcher has started nothing yet
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == INTERRUPTED


def test_a_second_signal_ends_the_job_as_it_is():
    job = start(saving=600)
    for _ in range(3):
        job.stdout.readline()
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 128 + signal.SIGTERM
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a process namespace")
def test_the_first_process_of_a_container_passes_signals_on():
    job = start(inside=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))
    for _ in range(3):
        job.stdout.readline()
    (first,) = psutil.Process(job.pid).children()
    first.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == INTERRUPTED


def test_the_launcher_is_told_all_hosts_and_its_own_place():
    command = launcher_command({"a": 2, "b": 2}, 1, "a", 29500)
    world = next(word for word in command if word.startswith("--world_info="))
    decoded = json.loads(base64.urlsafe_b64decode(world.partition("=")[2]))
    assert decoded == {"a": [0, 1], "b": [0, 1]}
    assert {"--node_rank=1", "--master_addr=a", "--master_port=29500"} <= set(command)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"HOSTS": ""}, "HOSTS: names no host"),
        ({"SLOTS": "eight"}, "SLOTS: 'eight' is not a number from 1"),
        ({"HOST_RANK": "2"}, "HOST_RANK: '2' is not a number from 0 to 1"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: '99999' is not a number"),
    ],
)
def test_a_job_that_is_not_described_is_refused(monkeypatch, changes, said):
    described = {"HOSTS": "a b", "SLOTS": "2", "HOST_RANK": "0", "MASTER_PORT": ""}
    for name, value in (described | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        launch_host(["launch/train.py"])
