"""Parts of a layer's work side by side, in threads.

BLAS's own threads wait for each other by spinning: on cores that other programs use, a picture took
them up to sixteen times as long as one thread. Here a thread takes the next part when it is done
with one, and BLAS has one thread in each.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


class _Threads:
    """How many threads work, and those that do beside the caller's."""

    def __init__(self) -> None:
        self.count: int | None = None
        self._pool: ThreadPoolExecutor | None = None
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

    def forget(self) -> None:
        """In a forked process: the threads are the parent's, and so is who holds the lock."""
        self._pool, self._lock = None, Lock()


_THREADS = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_THREADS.forget)


def thread_count() -> int:
    """Threads that work: as set, else OMP_NUM_THREADS, else one a core."""
    if _THREADS.count is not None:
        return _THREADS.count
    if (told := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(told) > 0:
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_thread_count(count: int) -> None:
    """Let so many threads work in this process."""
    _THREADS.set(count)


@contextmanager
def blas_alone() -> Iterator[None]:
    """A context in which BLAS has one thread, and NumPy gives no floating-point warnings."""
    # On ARM, OpenBLAS leaves flags of faults behind that no number of its results has.
    with np.errstate(all="ignore"), _limited():
        yield


def _limited() -> AbstractContextManager[object]:
    if os.environ.get("OPENBLAS_NUM_THREADS") == "1":  # since before NumPy was loaded, perhaps
        return nullcontext()
    from threadpoolctl import threadpool_limits  # here: it takes as long as a small picture

    return threadpool_limits(1, user_api="blas")


def each(work: Callable[[slice], None], parts: Iterable[slice]) -> None:
    """Do `work` on every part, in any order and several at a time."""
    left = deque(parts)
    helpers = min(thread_count(), len(left)) - 1

    def next_ones() -> None:
        with np.errstate(all="ignore"):  # of a thread
            while left:
                try:
                    part = left.popleft()
                except IndexError:  # another was quicker
                    return
                work(part)

    begun = [_THREADS.pool().submit(next_ones) for _ in range(helpers)]
    try:
        next_ones()
    finally:
        left.clear()
        for helper in begun:
            if not helper.cancel():  # one that has not begun is not waited for
                helper.result()
