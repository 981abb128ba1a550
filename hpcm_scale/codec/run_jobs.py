"""Many files, one after the other or several at once: progress, results, counted failures."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from hpcm_scale.codec.coding_result import OnProgress, unheard
from hpcm_scale.codec.engines.choose import Name, set_threads, threads_of
from hpcm_scale.codec.file_jobs import PIPE, Job
from hpcm_scale.errors import DataError, HpcmError, printable
from hpcm_scale.heap import keep_heap

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 1.0
"""Seconds before a bar is shown for a single file."""


class Work(Protocol):
    """Work on one file."""

    def __call__(self, job: Job, on_progress: OnProgress = unheard) -> list[str]:
        """Do it; the lines to print.

        Raises:
            HpcmError: if it fails.
        """
        ...


def run_jobs(
    jobs: Sequence[Job],
    make: Callable[[], Work],
    doing: str,
    processes: int,
    threads: int | None,
    engine: Name,
) -> None:
    """Work on files; one that fails does not keep the others from being done.

    Args:
        make: what makes the work, in each process once; picklable if there are several.
        doing: what the bar says.
        processes: how many files at once.
        threads: of the engine in each process; None to share the cores out.
        engine: that the work computes with.

    Raises:
        HpcmError: of the only file; of several, how many failed, after all were tried.
    """
    lines = _Lines(to_stderr=any(job.target == PIPE for job in jobs))
    processes = min(processes, len(jobs))
    failed = 0
    bar = _Bar(doing, len(jobs))
    results = (
        _in_turn(jobs, make(), bar.moved)
        if processes <= 1
        else _at_once(jobs, make, bar.moved, processes, threads, engine)
    )
    try:
        for result in results:
            bar.hide()
            if isinstance(result, HpcmError):
                if len(jobs) == 1:
                    raise result
                lines.fail(result)
                failed += 1
            else:
                lines.show(result)
    finally:
        bar.hide()
        results.close()
    if failed:
        raise DataError(f"{failed} of {len(jobs)} files failed; the others are done")


def _in_turn(
    jobs: Sequence[Job], work: Work, moved: OnProgress
) -> Generator[list[str] | HpcmError]:
    for done, job in enumerate(jobs):

        def within(share: float, done: int = done) -> None:
            moved(done + share)

        try:
            yield work(job, within)
        except HpcmError as error:
            yield error
        moved(done + 1)


def _at_once(
    jobs: Sequence[Job],
    make: Callable[[], Work],
    moved: OnProgress,
    processes: int,
    threads: int | None,
    engine: Name,
) -> Generator[list[str] | HpcmError]:
    # Here: a single picture does not wait for them.
    from concurrent.futures import Future, ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    make()  # what is wrong with all of them is said once, here
    each = threads or max(1, threads_of(engine) // processes)
    # Not forked: torch's threads do not survive it.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (make, engine, each))
    try:
        waiting: dict[Future[list[str]], Job] = {pool.submit(_work_on, job): job for job in jobs}
        for done, future in enumerate(as_completed(waiting)):
            moved(done + 1)
            try:
                yield future.result()
            except BrokenProcessPool:
                yield DataError(
                    f"{waiting[future].source}: a process ended before it was done, of too little "
                    "memory perhaps; try fewer --jobs"
                )
            except HpcmError as error:
                yield error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: list[Work] = []


def _begin(make: Callable[[], Work], engine: Name, threads: int) -> None:
    """Set a process up, before its first file."""
    logging.disable(logging.WARNING)  # notes were given by the first process
    keep_heap()
    set_threads(engine, threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(make())


def _work_on(job: Job) -> list[str]:
    return _worker[0](job)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Bar:
    """A bar on standard error, if that is a terminal."""

    def __init__(self, doing: str, total: int) -> None:
        self._total = total
        self._start = time.monotonic()
        self._doing = doing
        self._progress: Progress | None = None

    def moved(self, done: float) -> None:
        """Show that so many files are done."""
        late = self._total > 1 or time.monotonic() - self._start > PATIENCE
        if self._progress is None and late and sys.stderr.isatty():
            # Here: a small picture does not wait for them.
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.add_task(self._doing, total=self._total)
            self._progress.start()
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done)

    def hide(self) -> None:
        """Take the bar off the terminal, for lines to be printed; the next move shows it again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Lines:
    """Results on standard output, failures on standard error; a closed pipe ends neither."""

    def __init__(self, to_stderr: bool) -> None:
        self._out = _Survivor(sys.stderr if to_stderr else sys.stdout)
        self._errors = _Survivor(sys.stderr)

    def show(self, lines: list[str]) -> None:
        """Print what a file gave."""
        for line in lines:
            self._out.print(printable(line))

    def fail(self, error: HpcmError) -> None:
        """Print what went wrong with a file."""
        self._errors.print(f"hpcm-scale: {printable(str(error))}")


class _Survivor:
    """A stream whose reader may go away: what comes after is said to nobody."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._quiet = False

    def print(self, line: str) -> None:
        """Write a line, unless nobody reads."""
        if self._quiet:
            return
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except BrokenPipeError:
            self._quiet = True
            # The interpreter flushes standard output at its end, and must not fail then.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
