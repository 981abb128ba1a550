"""The hosts that a run can continue on when some do not answer."""

from collections.abc import Sequence
from pathlib import Path

from hpcm_scale.cluster.hosts import Host, answering, read_hostfile
from hpcm_scale.config import RunConfig
from hpcm_scale.errors import ConfigError


def shareable_hosts(hosts: Sequence[Host], run: RunConfig) -> list[Host]:
    """The longest beginning of `hosts` whose ranks can share batch and streams evenly."""
    for number in range(len(hosts), 0, -1):
        ranks = sum(host.slots for host in hosts[:number])
        parts = ranks * (run.micro_batch or 1)
        readers = ranks * max(run.data.workers, 1)
        if run.batch % parts == 0 and run.data.streams % readers == 0:
            return list(hosts[:number])
    return []


def available_hosts(hostfile: Path, run: RunConfig) -> tuple[list[Host], list[str]]:
    """Those that answer ssh, as many as can share the run out.

    Returns:
        the hosts, and a line for each that is left out.

    Raises:
        ConfigError: if not even the first host alone could share it.
    """
    listed = read_hostfile(hostfile)
    if not shareable_hosts(listed, run):
        raise ConfigError(
            f"{hostfile}: the ranks of {listed[0]} cannot share "
            f"batch {run.batch} (micro_batch {run.micro_batch or 1}) and data.streams "
            f"{run.data.streams} evenly; change its slots or these"
        )
    there = answering(listed)
    chosen = shareable_hosts(there, run)
    left_out = []
    for host in listed:
        if host not in chosen:
            reason = "its ranks cannot share the batch" if host in there else "no answer over ssh"
            left_out.append(f"without {host.name}: {reason}")
    return chosen, left_out
