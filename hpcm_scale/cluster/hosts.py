"""The hosts of a hostfile, and commands on them over ssh."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hpcm_scale.errors import ConfigError

OPTIONS = ("-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""Options of every ssh here: it never asks a question. SSH_OPTIONS (launch/env.sh) come after."""


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    slots: int
    """Ranks it runs."""

    def __str__(self) -> str:
        return f"{self.name} slots={self.slots}"


def read_hostfile(path: Path | str) -> list[Host]:
    """The hosts of a hostfile as the deepspeed launcher reads it.

    Raises:
        ConfigError: if it cannot be read, or a line is not `name slots=number`.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = re.match(r"(\S+)\s+slots=([1-9]\d*)", line)
        # A name that begins with a dash would be an option of ssh's.
        if not found or line.startswith("-"):
            raise ConfigError(f"{path}:{number}: {line!r} is not a host such as `node-0 slots=8`")
        if found[1] in hosts:
            raise ConfigError(f"{path}:{number}: {found[1]} is there twice; give it all its slots")
        hosts[found[1]] = Host(found[1], int(found[2]))
    if not hosts:
        raise ConfigError(f"{path}: names no host; write one a line, such as `node-0 slots=8`")
    return list(hosts.values())


def ssh(host: str, command: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a shell command on a host; exit code 255 if it cannot be reached in time."""
    options = (*OPTIONS, *shlex.split(os.environ.get("SSH_OPTIONS", "")))
    arguments = ["ssh", *options, host, command]
    try:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 255, "", f"no answer in {seconds:.0f} s")


def answering(hosts: Sequence[Host]) -> list[Host]:
    """Those that run a command over ssh."""
    with ThreadPoolExecutor(32) as pool:
        codes = pool.map(lambda host: ssh(host.name, "true", 30).returncode, hosts)
    return [host for host, code in zip(hosts, codes, strict=True) if code == 0]
