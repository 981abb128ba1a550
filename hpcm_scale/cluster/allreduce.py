"""Every rank of a job adds up a vector whose sum is known; rank 0 prints how fast that went.

bash launch/multinode.sh hostfile hpcm_scale/cluster/allreduce.py
"""

import json
import os
import statistics
import sys
import time

import torch

from hpcm_scale.training.engine import accelerator, init_distributed, leave_job
from hpcm_scale.training.job import leave

BYTES = 32 * 2**20
REPEATS = 5
TIMEOUT = 60.0
"""Seconds a rank waits for the others."""


def main() -> None:
    rank, world = init_distributed(TIMEOUT)
    device = torch.device(accelerator().device_name(int(os.environ["LOCAL_RANK"])))
    seconds = []
    right = True
    for _ in range(1 + REPEATS):
        values = torch.full((BYTES // 4,), rank + 1.0, device=device)
        torch.distributed.barrier()
        begun = time.monotonic()
        torch.distributed.all_reduce(values)
        accelerator().synchronize()
        seconds.append(time.monotonic() - begun)
        right = right and bool((values == world * (world + 1) / 2).all())
    wrong = torch.tensor([float(not right)], device=device)
    torch.distributed.all_reduce(wrong)
    if rank == 0:
        # Of the links: in a ring each rank sends and receives this share of the vector.
        share = 2 * (world - 1) / world
        rate = share * BYTES / statistics.median(seconds[1:])  # the first one connects the ranks
        figures = {"ranks": world, "wrong": int(wrong.item()), "bytes_per_second": rate}
        sys.stdout.write(f"all-reduce: {json.dumps(figures)}\n")
    leave_job()
    leave(0, "")


if __name__ == "__main__":
    main()
