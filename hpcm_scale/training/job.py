"""A training job as one of its ranks sees it: from the environment to an exit code.

Exit codes: 2 for what the user can put right, 75 for a run that was told to stop and is saved, 76
for a job that lost a rank.
"""

import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import nullcontext, suppress
from typing import NoReturn

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import INTERRUPTED, JOB_LOST, HpcmError, one_line

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What tells a run to save and stop."""


def run_here(run: RunConfig, resume: str) -> tuple[int, str]:
    """Train `run` in this process, as a rank of the job that the environment describes.

    Returns:
        the exit code, and what to say of it on stderr.
    """
    told_to_stop = threading.Event()  # from here on, or a rank would just die
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: told_to_stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # launcher.py holds them back
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Imported here: deepspeed takes seconds to load.
    from hpcm_scale.training.engine import init_distributed, leave_job
    from hpcm_scale.training.loop import Interrupted
    from hpcm_scale.training.prepare import prepare
    from hpcm_scale.training.rendezvous import describe_job
    from hpcm_scale.training.watchdog import NoWatchdog, Watchdog, exit_code, from_peers

    try:
        rank, world = describe_job()
        with Watchdog(rank, world, run.guard.timeout) if world > 1 else NoWatchdog() as watchdog:
            init_distributed(run.guard.timeout)
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


def this_rank() -> int:
    """This process's number among the ranks of the job."""
    return int(os.environ.get("RANK", "0"))


def speaks_for_host() -> bool:
    """Whether this rank says what all ranks of its host find wrong alike."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def leave(code: int, text: str) -> NoReturn:
    """End this process without the interpreter's own end.

    When that has begun, CPython ends a thread that comes back from a call into torch by unwinding
    it, through C++ frames that may not throw: std::terminate aborts the process ("terminate called
    without an active exception", exit code 250 under the launcher). The watchdog's thread, in the
    job's store every two seconds, met it in one of about 26 runs. By now everything is written.
    """
    if text:
        sys.stderr.write(f"train: {text}\n")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
