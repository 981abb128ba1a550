"""The program of every rank: `python -m hpcm_scale.cli.rank --config RUN`.

launch/train.py is the same for hosts with a checkout.
"""

import argparse
import os
from collections.abc import Sequence

from hpcm_scale.config import RunConfig, load_run
from hpcm_scale.errors import HpcmError, missing_package, one_line
from hpcm_scale.training.job import leave, run_here, speaks_for_host, this_rank


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of one rank."""
    parser = argparse.ArgumentParser(prog="train", description="Train one run.")
    parser.add_argument("--config", required=True, help="a YAML file: configs/runs/*.yaml")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="over the file")
    parser.add_argument(
        "--resume",
        default="never",
        metavar="auto|CHECKPOINT",
        help="auto starts the run, or resumes it from its newest good checkpoint; the folder of "
        "another run's checkpoint starts this run from there",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check configuration, data, disk and memory, and say what the run will do",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    given = parser.parse_args(arguments)
    try:
        run = load_run(given.config, given.set)
        if given.dry_run:
            if this_rank() == 0:
                dry_run(run, given.resume, int(os.environ.get("WORLD_SIZE", "1")))
            return
    except HpcmError as error:
        where = f"rank {this_rank()}: " if this_rank() else ""
        leave(2, f"{where}{one_line(error)}" if speaks_for_host() else "")
    try:
        code, text = run_here(run, given.resume)
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        code, text = 2, one_line(missing)
    leave(code, text)


def dry_run(run: RunConfig, resume: str, ranks: int) -> None:
    """Print the plan of the run.

    Raises:
        HpcmError: if it cannot start.
    """
    from rich.console import Console

    from hpcm_scale.planning.launch_plan import launch_plan

    Console().print(launch_plan(run, ranks, resume=resume == "auto"))


if __name__ == "__main__":
    main()
