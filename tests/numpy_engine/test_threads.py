"""Threads of the NumPy engine: every part once, whatever the number of threads or what fails."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from hpcm_scale.numpy_engine import threads
from hpcm_scale.numpy_engine.exact_product import NarrowProduct
from hpcm_scale.numpy_engine.windows import strips

PARTS = list(strips(1000, 1 << 14, 1))


@pytest.fixture(autouse=True)
def _own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_THREADS", threads._Threads())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_part_is_done_once(count: int) -> None:
    threads.set_thread_count(count)
    done = np.zeros(1000, int)

    def work(part: slice) -> None:
        done[part] += 1

    threads.parallel_for(work, iter(PARTS))
    assert len(PARTS) > 5
    assert (done == 1).all()


def test_several_threads_work_at_once() -> None:
    threads.set_thread_count(3)
    met = threading.Barrier(3, timeout=20)
    threads.parallel_for(lambda _: met.wait(), PARTS[:3])  # BrokenBarrierError otherwise


def test_many_callers_share_the_threads() -> None:
    """More at once than there are threads, each with work within its work, and numbers changing."""
    threads.set_thread_count(2)

    def call(_: int) -> int:
        done: list[slice] = []
        threads.parallel_for(lambda _: threads.parallel_for(done.append, PARTS[:4]), PARTS[:5])
        threads.set_thread_count(3)
        return len(done)

    with ThreadPoolExecutor(6) as callers:
        assert list(callers.map(call, range(30))) == [20] * 30


@pytest.mark.parametrize("count", [1, 3])
def test_what_fails_is_raised_and_the_rest_left(count: int) -> None:
    threads.set_thread_count(count)

    def work(part: slice) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        threads.parallel_for(work, PARTS)
    done: list[slice] = []
    threads.parallel_for(done.append, PARTS)  # as before
    assert sorted(done, key=lambda part: part.start) == PARTS


def test_nothing_runs_after_a_failure() -> None:
    threads.set_thread_count(3)
    begun, done = threading.Barrier(3, timeout=20), []

    def work(part: slice) -> None:
        begun.wait()
        if part is PARTS[0]:
            raise ValueError("broken")
        time.sleep(0.2)
        done.append(part)

    with pytest.raises(ValueError, match="broken"):
        threads.parallel_for(work, PARTS)
    assert len(done) == 2


def test_without_another_thread_the_caller_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    threads.set_thread_count(3)
    monkeypatch.setattr(threading.Thread, "start", none_left)
    done: list[slice] = []
    threads.parallel_for(done.append, PARTS)
    assert done == PARTS


def test_a_forked_process_has_threads_of_its_own() -> None:
    threads.set_thread_count(3)
    threads.parallel_for(lambda _: None, PARTS)
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            threads._THREADS.reset_after_fork()  # what is registered is the module's own
            done: list[slice] = []
            threads.parallel_for(done.append, PARTS)
            os._exit(0 if len(done) == len(PARTS) else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_has_one_thread_as_long_as_an_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with threadpool_limits(2, user_api="blas"):
        assert _blas_threads() == {2}
        first, second = threads.single_threaded_blas(), threads.single_threaded_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)  # not in the order of a stack, as threads of a user do
        assert _blas_threads() == {1}
        second.__exit__(None, None, None)
        assert _blas_threads() == {2}


def test_the_environment_s_number_of_threads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7,2")
    assert threads.thread_count() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads.thread_count() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("largest", [1000, 5000, 32639, 32640, 127 << 14])
def test_sums_are_exact_by_as_many_digits_as_they_need(largest: int) -> None:
    rng = np.random.default_rng(largest)
    product = NarrowProduct(
        rng.normal(size=(6, 100)).astype(np.float32), np.zeros(6, np.float32), "layer"
    )
    assert 1000 < (1 << 24) / product._reach < 5000  # up to there one product does
    rows = rng.integers(-min(largest, 32639), min(largest, 32639) + 1, (9, 100))
    rows[2, 3], rows[5, 3], rows[7, 30] = largest, -largest, largest
    sums = rows @ product._integers.astype(np.int64)
    found = product._sums(rows.astype(np.float32), product.operand())
    assert np.array_equal(found, sums.astype(np.float32))
