"""A host that stops answering without closing a connection, as a cut cable leaves it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from hpcm_scale.errors import JOB_LOST

RANK = """
import time
import torch.distributed as dist
from hpcm_scale.training.watchdog import Watchdog
dist.init_process_group("gloo")
watchdog = Watchdog(dist.get_rank(), 2, stall_timeout=600, heartbeat_timeout=6)
dist.barrier()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.distributed
def test_a_rank_ends_when_the_host_of_the_store_falls_silent():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=given | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout.readline() == "ready\n"
        ranks[0].send_signal(signal.SIGSTOP)
        _, text = ranks[1].communicate(timeout=120)
        assert ranks[1].returncode == JOB_LOST
        assert "rank 0, which keeps the job's store, is silent" in text
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
