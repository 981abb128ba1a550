"""Trains one run: `deepspeed launch/train.py --config configs/runs/X.yaml [--set key=value ...]`.

Also `python launch/train.py ...` for one process without the launcher. Exit codes: 2 for what the
user can put right, 75 for a run that was told to stop and is saved, 76 for a job that lost a rank.
"""

import argparse
import os
import sys

from hpcm_scale.config import RunConfig, load_run
from hpcm_scale.errors import INTERRUPTED, JOB_LOST, HpcmError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file: configs/runs/*.yaml")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="over the file")
    parser.add_argument(
        "--resume",
        default="never",
        metavar="auto|CHECKPOINT",
        help="auto continues the run from its newest good checkpoint, or begins it; the folder of "
        "another run's checkpoint begins this run from there",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check configuration, data, disk and memory, and say what the run will do",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    arguments = parser.parse_args()
    rank = int(os.environ.get("RANK", "0"))
    try:
        run = load_run(arguments.config, arguments.set)
        if arguments.dry_run:
            if rank == 0:
                dry_run(run, arguments.resume)
            return
        from hpcm_scale.training.loop import Interrupted, train  # deepspeed takes seconds to load

        try:
            train(run, arguments.resume)
            leave()
        except Interrupted as stopped:
            leave()
            if rank == 0:
                sys.stderr.write(f"train: {stopped}; --resume auto continues it\n")
            sys.exit(INTERRUPTED)
        except RuntimeError as error:
            if not from_peers(error):
                raise
            reason = str(error).splitlines()[0].split(". ")[0]
            sys.stderr.write(f"train: rank {rank}: the job is lost: {reason}\n")
            sys.exit(JOB_LOST)
    except (HpcmError, OSError) as error:  # a full disk is no bug either
        if rank == 0:
            sys.stderr.write(f"train: {' '.join(str(error).split())}\n")
        sys.exit(2)


def leave() -> None:
    """Close this rank's connections: threads that meet a peer which has ended may abort."""
    import torch

    torch.distributed.destroy_process_group()


def dry_run(run: RunConfig, resume: str) -> None:
    """Print the plan of the run; raises HpcmError if it cannot start."""
    from rich.console import Console

    from hpcm_scale.planning.launch_plan import launch_plan

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    Console().print(launch_plan(run, world_size, resume=resume == "auto"))


def from_peers(error: RuntimeError) -> bool:
    """Whether a collective operation failed because of another rank."""
    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "Broken pipe")
    return any(sign in text for sign in signs)


if __name__ == "__main__":
    main()
