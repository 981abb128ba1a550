"""The hosts a run can continue on.

`python -m hpcm_scale.cluster.available_hosts HOSTFILE --config RUN`

Prints a hostfile of those that answer ssh, as many as can share the run out. Exit codes: 2 for what
the user can put right, 1 if no host is left.
"""

import argparse
import sys
from collections.abc import Sequence

from hpcm_scale.cluster.hosts import Host, answering, read_hostfile
from hpcm_scale.config import RunConfig, load_run
from hpcm_scale.errors import ConfigError, HpcmError


def shareable_hosts(hosts: Sequence[Host], run: RunConfig) -> list[Host]:
    """The longest beginning of `hosts` whose ranks can share batch and streams evenly."""
    for number in range(len(hosts), 0, -1):
        ranks = sum(host.slots for host in hosts[:number])
        parts = ranks * (run.micro_batch or 1)
        readers = ranks * max(run.data.workers, 1)
        if run.batch % parts == 0 and run.data.streams % readers == 0:
            return list(hosts[:number])
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hostfile")
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append")
    arguments, _ = parser.parse_known_args()  # the rest is for launch/train.py
    try:
        run = load_run(arguments.config, arguments.set)
        listed = read_hostfile(arguments.hostfile)
        if not shareable_hosts(listed, run):
            raise ConfigError(
                f"{arguments.hostfile}: the ranks of {listed[0]} cannot share "
                f"batch {run.batch} (micro_batch {run.micro_batch or 1}) and data.streams "
                f"{run.data.streams} evenly; change its slots or these"
            )
    except HpcmError as error:
        sys.stderr.write(f"supervise: {' '.join(str(error).split())}\n")
        sys.exit(2)
    there = answering(listed)
    chosen = shareable_hosts(there, run)
    for host in listed:
        if host not in chosen:
            reason = "its ranks cannot share the batch" if host in there else "no answer over ssh"
            sys.stderr.write(f"supervise: without {host.name}: {reason}\n")
    if not chosen:
        sys.exit(1)
    sys.stdout.write("".join(f"{host}\n" for host in chosen))


if __name__ == "__main__":
    main()
