"""Running a training job: in this process, or as ranks under the deepspeed launcher.

Exit codes: 2 for what the user can put right, 75 for a run that was told to stop and is saved, 76
for a job that lost a rank.
"""

import base64
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import NoReturn

import psutil

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import INTERRUPTED, JOB_LOST, ConfigError, HpcmError, one_line

RANK = "hpcm_scale.cli.rank"
"""The module that every rank runs."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What tells a run to save and stop."""
INSIST_SECONDS = 1.0
"""A second signal that comes later than this after the first ends the job unsaved."""


def run_here(run: RunConfig, resume: str) -> tuple[int, str]:
    """Train `run` in this process, as a rank of the job that the environment describes.

    Returns:
        the exit code, and what to say of it on stderr.
    """
    told_to_stop = threading.Event()  # from here on, or a rank would just die
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: told_to_stop.set())
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Imported here: deepspeed takes seconds to load.
    from hpcm_scale.training.engine import init_distributed, leave_job
    from hpcm_scale.training.loop import Interrupted
    from hpcm_scale.training.prepare import prepare
    from hpcm_scale.training.watchdog import NoWatchdog, Watchdog, exit_code, from_peers

    try:
        rank, world = init_distributed(run.guard.timeout)
        with Watchdog(rank, world, run.guard.timeout) if world > 1 else NoWatchdog() as watchdog:
            prepared = prepare(run, resume, rank, world, told_to_stop)
            if not prepared.finished:
                with prepared.monitor or nullcontext():
                    prepared.trainer.run_to_end(prepared.monitor, watchdog)
        leave_job()
    except Interrupted as stopped:
        leave_job()
        return INTERRUPTED, f"{stopped}; --resume auto continues it" if this_rank() == 0 else ""
    except (HpcmError, OSError) as error:  # a full disk is no bug either
        spoken = this_rank() == 0 or not getattr(error, "on_every_rank", False)
        where = f"rank {this_rank()}: " if this_rank() else ""
        return 2, f"{where}{one_line(error)}" if spoken else ""
    except Exception as error:  # noqa: BLE001 - a bug: all of it is shown
        if from_peers(error):
            reason = str(error).splitlines()[0].split(". ")[0]
            return JOB_LOST, f"rank {this_rank()}: the job is lost: {reason}"
        traceback.print_exc()
        return exit_code(error), f"rank {this_rank()}: {type(error).__name__}: {one_line(error)}"
    return 0, ""


def launch(accelerators: int, arguments: Sequence[str]) -> int:
    """Train on this host as `accelerators` ranks under the deepspeed launcher.

    SIGTERM, SIGINT and SIGUSR1 are passed on to the ranks, which save and stop; a second one ends
    them as they are.

    Args:
        arguments: of the rank's program (hpcm_scale/cli/rank.py).

    Returns:
        the exit code of the job.
    """
    slots = {"localhost": list(range(accelerators))}
    world = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    command += ["--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    command += ["--log_level=error", "--module", RANK, *arguments]
    # A session of its own: Ctrl-C must not reach the launcher, which kills its ranks.
    job = subprocess.Popen(command, start_new_session=True)
    told = 0.0

    def pass_on(*_: object) -> None:
        nonlocal told
        if told and time.monotonic() - told > INSIST_SECONDS:
            job.terminate()
        elif not told:
            told = time.monotonic()
            tell_ranks(job.pid)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    while True:
        with suppress(KeyboardInterrupt):
            code = job.wait()
            return code if code >= 0 else 128 - code


def tell_ranks(launcher: int) -> None:
    """Tell the ranks that a launcher started to save and stop."""
    with suppress(psutil.Error):
        for child in psutil.Process(launcher).children():
            child.send_signal(signal.SIGUSR1)


def free_port() -> int:
    """A TCP port of this host that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def leave(code: int, text: str) -> NoReturn:
    """End this process without the interpreter's own end.

    Threads of torch and gloo that still run C++ code when the interpreter unwinds them abort the
    process. By now everything is written and closed.
    """
    if text:
        sys.stderr.write(f"train: {text}\n")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


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
