"""Locks that killed processes leave behind."""

import logging
import os
import time
from pathlib import Path

from hpcm_scale.training.deepspeed_internals import extensions_folder

log = logging.getLogger(__name__)

GRACE = 60.0
"""Seconds after which a lock that no process of this host holds is no other host's either."""
SETTLE = 3.0
"""Seconds that such a lock is looked at before it is removed."""


def drop_stale_locks(grace: float = GRACE) -> list[Path]:
    """Remove the locks on DeepSpeed's compiled operators whose holders are dead.

    torch makes a file of that name while it compiles or loads an operator. If the process is killed
    meanwhile, the file stays, and every later job on the host waits for it without end or word.

    Returns:
        what was removed.
    """
    root = extensions_folder()
    dropped = []
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        while (age := _age(lock)) is not None and not _is_open(lock):
            if age > grace:
                # Its holder closes it a moment before it removes it, and fails if it is gone.
                time.sleep(SETTLE)
                if _age(lock) is None or _is_open(lock):
                    continue
                lock.unlink(missing_ok=True)
                log.warning("%s: removed; the process that made it is gone", lock)
                dropped.append(lock)
            else:
                time.sleep(min(1.0, grace))
    return dropped


def _age(path: Path) -> float | None:
    """Seconds since it was made; None if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_open(path: Path) -> bool:
    """Whether a process of this host has the file open, as the holder of such a lock does."""
    target = str(path.resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == target:
                return True
        except OSError:
            continue
    return False
