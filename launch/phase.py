"""Runs a command and says what it took: `python launch/phase.py NAME COMMAND...`.

Seconds, and the most memory its processes had together: resident, and of that what is no file's
(pages of mapped files go back when others need them). Ends with the command's exit code.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil

EVERY = 1.0
"""Seconds between two looks."""


def main() -> int:
    name, *command = sys.argv[1:]
    start = time.monotonic()
    process = subprocess.Popen(command)
    resident = anonymous = 0
    while process.poll() is None:
        sizes = [_sizes(p) for p in _family(process.pid)]
        resident = max(resident, sum(total for total, _ in sizes))
        anonymous = max(anonymous, sum(own for _, own in sizes))
        time.sleep(EVERY)
    sys.stdout.write(
        f"{name}: {time.monotonic() - start:.0f} s, {resident / 2**30:.2f} GiB resident, "
        f"{anonymous / 2**30:.2f} GiB without files\n"
    )
    sys.stdout.flush()
    return process.returncode


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _sizes(process: psutil.Process) -> tuple[int, int]:
    """Bytes of a process in memory, and those that are no file's; shared ones in equal parts."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0, 0
    if not lines:  # it is ending
        return 0, 0
    sizes = {line.split()[0]: line.split()[1] for line in lines[1:]}
    return int(sizes["Pss:"]) * 1024, int(sizes["Pss_Anon:"]) * 1024


if __name__ == "__main__":
    sys.exit(main())
