"""Threads of the NumPy engine: each takes the next part of a layer's work when it is done with one.

BLAS's own threads wait for each other by spinning, which on cores that other programs use takes
many times as long as one thread does. Here BLAS has one thread in each of the engine's.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor


class _Threads:
    """How many threads work, and those that do beside the callers'."""

    def __init__(self) -> None:
        self.count: int | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._limit: AbstractContextManager[object] | None = None
        self._users = 0
        self._lock = Lock()

    def pool(self) -> "ThreadPoolExecutor":
        from concurrent.futures import ThreadPoolExecutor

        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max(1, thread_count() - 1), "numpy-engine")
            return self._pool

    def set(self, count: int) -> None:
        with self._lock:
            self.count, self._pool = count, None

    def limit_blas(self) -> None:
        """One thread for BLAS, until as many calls of `free_blas`."""
        from threadpoolctl import threadpool_limits  # here: it takes as long as a small picture

        with self._lock:
            if not self._users:
                self._limit = threadpool_limits(1, user_api="blas")
                self._limit.__enter__()
            self._users += 1

    def free_blas(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._limit is not None:
                self._limit.__exit__(None, None, None)

    def reset_after_fork(self) -> None:
        """The threads are the parent's, and so is who holds the lock."""
        self._pool, self._lock = None, Lock()


_THREADS = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_THREADS.reset_after_fork)


def thread_count() -> int:
    """Threads that work: as set, else OMP_NUM_THREADS, else one for each processor it may use."""
    if _THREADS.count is not None:
        return _THREADS.count
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdecimal() and int(told) > 0:
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_thread_count(count: int) -> None:
    """Let so many threads work in this process."""
    _THREADS.set(count)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """A context in which BLAS has one thread, and NumPy gives no floating-point warnings."""
    limited = not _was_told_one()
    if limited:
        _THREADS.limit_blas()
    try:
        # On ARM, OpenBLAS leaves flags of faults behind that no number of its results has.
        with np.errstate(all="ignore"):
            yield
    finally:
        if limited:
            _THREADS.free_blas()


def _was_told_one() -> bool:
    """Whether the environment gives this NumPy's BLAS one thread, as `cli/program.py` has it do."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        return False
    with suppress(AttributeError, KeyError):
        return "openblas" in np.__config__.CONFIG["Build Dependencies"]["blas"]["name"]
    return False


def parallel_for(work: Callable[[slice], None], parts: Iterable[slice]) -> None:
    """Do `work` on every part, in any order and several at a time.

    Raises:
        what `work` raises first; nothing runs any more then, and some parts may not be done.
    """
    left = deque(parts)

    def next_ones() -> None:
        with np.errstate(all="ignore"):  # of a thread
            while left:
                try:
                    part = left.popleft()
                except IndexError:  # another was quicker
                    return
                try:
                    work(part)
                except BaseException:
                    left.clear()  # for the others too
                    raise

    begun: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # no thread to be had: the caller does all
            for _ in range(min(thread_count(), len(left)) - 1):
                begun.append(_THREADS.pool().submit(next_ones))
        next_ones()
    finally:
        # One that has not begun is not waited for.
        waited = [helper for helper in begun if not helper.cancel()]
        errors = [helper.exception() for helper in waited]
    for error in errors:
        if error is not None:
            raise error
