"""What counts as a skipped step or a spike, and which rank is named when a job is lost."""

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.config import GuardConfig
from hpcm_scale.errors import JOB_LOST
from hpcm_scale.training.guard import SPIKE_WARMUP, LossWatch


@given(
    st.lists(st.floats(0.9, 1.1), min_size=SPIKE_WARMUP, max_size=2 * SPIKE_WARMUP),
    st.floats(3, 1e6),
)
def test_a_spike_stands_out_and_hides_none_after(losses, height):
    watch = LossWatch(GuardConfig(spike_factor=2))
    assert [watch.take(loss, True) for loss in losses] == [None] * len(losses)
    assert watch.take(height, True) == "spike"
    assert watch.take(1.0, True) is None
    assert watch.take(height, True) == "spike"
    assert watch.spikes == 2


def test_skipped_steps_are_counted_in_all_and_in_a_row():
    watch = LossWatch(GuardConfig())
    assert watch.take(float("nan"), False) == "skip"
    assert watch.take(float("nan"), False) == "skip"
    assert (watch.skipped, watch.in_a_row) == (2, 2)
    watch.take(1.0, True)
    assert (watch.skipped, watch.in_a_row) == (2, 0)
    resumed = LossWatch(GuardConfig())
    resumed.load_state_dict(watch.state_dict())
    assert resumed.state_dict() == watch.state_dict()


RANK = """
import os, signal, sys, time
import torch
from hpcm_scale.training import watchdog
watchdog.INTERVAL = 0.2
rank, fault = int(os.environ["RANK"]), sys.argv[1]
torch.distributed.init_process_group("gloo")
dog = watchdog.Watchdog(rank, 3, stall_timeout=4 if fault == "stalls" else 60, heartbeat_timeout=3)
for step in range(3):
    dog.at(f"step {step}")
    if rank == 1 and step == 2:
        if fault == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "stalls":
            time.sleep(60)
    try:
        torch.distributed.barrier()
    except RuntimeError:  # another rank has given up already
        time.sleep(60)
dog.close()
"""


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "said"), [("stops", "no sign of life"), ("stalls", "at step 2"), ("none", "")]
)
def test_the_rank_that_holds_the_others_up_is_named(fault, said):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, fault],
            env=os.environ | job | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for rank in (0, 2):
            _, text = ranks[rank].communicate(timeout=90)
            assert ranks[rank].returncode == (JOB_LOST if said else 0), text
            assert not said or ("the job is lost: rank 1 on " in text and said in text)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
