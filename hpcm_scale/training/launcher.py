"""The ranks of this host under the deepspeed launcher, told to save and stop by signals.

The launcher kills its ranks on SIGTERM and Ctrl-C; here they are told by SIGUSR1, and waited for.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from hpcm_scale.errors import ConfigError
from hpcm_scale.training.job import STOP_SIGNALS
from hpcm_scale.training.rendezvous import free_port

RANK = ("--module", "hpcm_scale.cli.rank")
"""What every rank runs."""
INSIST_SECONDS = 1.0
"""A second signal that comes later than this after the first ends the job unsaved."""
EVERY = 0.3
"""Seconds between two looks at the launcher."""


def launch(accelerators: int, arguments: Sequence[str]) -> int:
    """Train on this host alone, as `accelerators` ranks that meet at a free port.

    Args:
        arguments: of the rank's program (hpcm_scale/cli/rank.py).

    Returns:
        the exit code of the job.
    """
    command = launcher_command({"localhost": accelerators}, 0, "127.0.0.1", free_port())
    return run_launcher([*command, *RANK, *arguments])


def launch_host(program: Sequence[str]) -> int:
    """Run this host's ranks of a job on many hosts, which the environment describes.

    HOSTS names all of them, HOST_RANK is this one's place among them, SLOTS the ranks of each;
    MASTER_ADDR (the first host) and MASTER_PORT (29500) are where the ranks meet.

    Args:
        program: a script and its arguments.

    Raises:
        ConfigError: if a variable is missing or is not such a number.
    """
    hosts = os.environ.get("HOSTS", "").split()
    if not hosts:
        raise ConfigError("HOSTS: names no host; give all of the job's, in the same order on each")
    slots, node = _number("SLOTS", 1, 4096), _number("HOST_RANK", 0, len(hosts) - 1)
    port = _number("MASTER_PORT", 1, 65535, "29500")
    address = os.environ.get("MASTER_ADDR") or hosts[0]
    command = launcher_command(dict.fromkeys(hosts, slots), node, address, port)
    return run_launcher([*command, *program])


def _number(name: str, low: int, high: int, default: str = "") -> int:
    text = os.environ.get(name) or default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"{name}: {text!r} is not a number from {low} to {high}")
    return int(text)


def launcher_command(slots: dict[str, int], node: int, address: str, port: int) -> list[str]:
    """The deepspeed launcher of one host; what each rank runs comes after.

    Args:
        slots: ranks by host.
        node: this host's place among them.
        address, port: where the ranks meet.
    """
    ranks = {host: list(range(count)) for host, count in slots.items()}
    world = base64.urlsafe_b64encode(json.dumps(ranks).encode()).decode()
    return [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"),
        *(f"--node_rank={node}", f"--master_addr={address}", f"--master_port={port}"),
        "--log_level=critical",  # a rank says itself why it ends
    ]


def run_launcher(command: Sequence[str]) -> int:
    """Run a launcher to its end, passing signals on to its ranks.

    The first SIGTERM, SIGINT or SIGUSR1 has them save and stop; another one, a second later or
    more, ends them as they are. Works as the first process of a container, too, where signals
    without a handler do nothing.

    Returns:
        its exit code; 128 and the signal's number if one ended it.
    """
    signals: list[float] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: signals.append(time.monotonic()))
    with _held_back():
        # A session of its own: Ctrl-C must not reach the launcher, which kills its ranks.
        job = subprocess.Popen(command, start_new_session=True)
    told: set[int] = set()
    while True:
        try:
            code = job.wait(EVERY)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            if signals and signals[-1] - signals[0] > INSIST_SECONDS:
                job.terminate()
            elif signals:
                tell_ranks(job.pid, told)


@contextmanager
def _held_back() -> Iterator[None]:
    """Processes started inside begin with SIGUSR1 blocked, until a rank can take it (job.py)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def tell_ranks(launcher: int, told: set[int]) -> None:
    """Tell the ranks of a launcher to save and stop, those of them that have not been `told`."""
    with suppress(psutil.Error):
        for child in psutil.Process(launcher).children():
            if child.pid not in told:
                child.send_signal(signal.SIGUSR1)
                told.add(child.pid)


def check_accelerators(accelerators: int) -> None:
    """
    Raises:
        ConfigError: if this host has fewer devices.
    """
    import torch

    if torch.cuda.is_available() and accelerators > torch.cuda.device_count():
        raise ConfigError(
            f"--accelerators: {accelerators} is above the {torch.cuda.device_count()} of this host"
        )
