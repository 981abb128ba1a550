"""Which rank is named when a job is lost, and what becomes of the others."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from hpcm_scale.errors import JOB_LOST
from hpcm_scale.training import watchdog
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.training.watchdog import Beat, Heartbeats

RANK = """
import os, signal, sys, time
import torch
from hpcm_scale.training import watchdog
watchdog.INTERVAL, watchdog.HEARTBEAT_TIMEOUT = 0.2, 3
rank, fault = int(os.environ["RANK"]), sys.argv[1]
if fault == "stays away" and rank == 1:
    time.sleep(60)
dog = watchdog.Watchdog(rank, 3, stall_timeout=4 if fault.startswith("st") else 60)
torch.distributed.init_process_group("gloo")
for step in range(3):
    dog.at(f"step {step}")
    if rank == 1 and step == 2:
        if fault == "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "stalls":
            time.sleep(60)
    try:
        torch.distributed.barrier()
    except RuntimeError:  # another rank has given up already
        time.sleep(60)
print("ready", flush=True)
if fault == "the store's host is silent":
    time.sleep(60)
dog.close()
os._exit(0)
"""


def start(fault: str, world: int = 3) -> list[subprocess.Popen]:
    job = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, fault],
            env=os.environ | job | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def end(ranks: list[subprocess.Popen]) -> None:
    for process in ranks:
        process.kill()
        process.communicate()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("is stopped", r"rank 1 on \S+ has given no sign of life"),
        ("stalls", r"rank 1 on \S+ has been at step 2 for over 4 s"),
        ("stays away", "rank 1 has not started within 4 s"),
    ],
)
def test_the_rank_that_holds_the_others_up_is_named(fault, said):
    ranks = start(fault)
    try:
        for rank in (0, 2):
            _, text = ranks[rank].communicate(timeout=90)
            assert ranks[rank].returncode == JOB_LOST, text
            assert re.search(f"train: rank {rank}: the job is lost: {said}", text), text
    finally:
        end(ranks)


@pytest.mark.distributed
def test_a_job_without_a_fault_ends_well_on_every_rank():
    ranks = start("none")
    try:
        for rank in ranks:
            _, text = rank.communicate(timeout=90)
            assert (rank.returncode, text) == (0, "")
    finally:
        end(ranks)


@pytest.mark.parametrize("given", [{}, {"ASYNC_ERROR_HANDLING": "1"}])
def test_nccl_ends_no_rank_before_the_verdict_unless_told_to(given):
    """In the environment that torch's NCCL reads when the ranks connect."""
    code = (
        "import json, os\n"
        "from hpcm_scale.training.watchdog import Watchdog\n"
        "dog = Watchdog(0, 1, stall_timeout=600)\n"
        "names = [name for name in os.environ if name.startswith('TORCH_NCCL_')]\n"
        "print(json.dumps({name[11:]: os.environ[name] for name in names}), flush=True)\n"
        "dog.close()\n"
        "os._exit(0)\n"
    )
    job = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    job |= {"MASTER_PORT": str(free_port())} | {f"TORCH_NCCL_{k}": v for k, v in given.items()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | job, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert int(found["HEARTBEAT_TIMEOUT_SEC"]) > 600
    assert found["ASYNC_ERROR_HANDLING"] == given.get("ASYNC_ERROR_HANDLING", "0")
    assert "BLOCKING_WAIT" not in found


@pytest.mark.distributed
def test_a_rank_ends_when_the_host_of_the_store_falls_silent():
    """As a cut cable leaves it: nothing closes the connection."""
    ranks = start("the store's host is silent", world=2)
    try:
        for rank in ranks:
            assert rank.stdout.readline() == "ready\n"
        ranks[0].send_signal(signal.SIGSTOP)
        _, text = ranks[1].communicate(timeout=120)
        assert ranks[1].returncode == JOB_LOST
        assert "rank 0, which keeps the job's store, is silent" in text
    finally:
        end(ranks)


class Clock:
    """Time that a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watchdog, "time", made)
    return made


def beat(beats: int, calls: int, where: str = "step 1") -> Beat:
    return Beat(beats, calls, "node", where)


def test_a_rank_yet_to_start_is_waited_for_as_a_stalled_one(clock):
    seen = Heartbeats(stall_timeout=600)
    for clock.now in range(0, 590, 2):
        assert seen.judge({0: beat(clock.now, 0), 1: None}) is None
    clock.now = 601
    assert seen.judge({0: beat(900, 0), 1: None}) == "rank 1 has not started within 600 s"


def test_work_that_goes_on_anywhere_is_no_stall(clock):
    seen = Heartbeats(stall_timeout=10)
    for clock.now in range(0, 100, 2):
        moving = beat(clock.now, clock.now)
        assert seen.judge({0: moving, 1: beat(clock.now, 5, "validation")}) is None
    for clock.now in range(100, 112, 2):
        said = seen.judge({0: beat(clock.now, 98), 1: beat(clock.now, 5, "validation")})
    assert said == "rank 1 on node has been at validation for over 10 s"


def test_a_rank_that_has_ended_is_not_missed(clock):
    seen = Heartbeats(stall_timeout=1000)
    assert seen.judge({0: beat(1, 1), 1: beat(1, 1)}) is None
    for clock.now in range(2, 200, 2):
        assert seen.judge({0: beat(clock.now, clock.now)}) is None
