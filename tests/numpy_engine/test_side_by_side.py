"""Threads of the NumPy engine: every part once, whatever the number of threads or what fails."""

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from hpcm_scale.numpy_engine import side_by_side
from hpcm_scale.numpy_engine.exact_product import NarrowProduct
from hpcm_scale.numpy_engine.windows import strips

PARTS = list(strips(1000, 1 << 14, 1))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = side_by_side.thread_count()
    yield
    side_by_side.set_thread_count(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_part_is_done_once(threads: int) -> None:
    side_by_side.set_thread_count(threads)
    done = np.zeros(1000, int)

    def work(part: slice) -> None:
        done[part] += 1

    side_by_side.each(work, iter(PARTS))
    assert len(PARTS) > 5
    assert (done == 1).all()


def test_several_threads_work_at_once() -> None:
    side_by_side.set_thread_count(3)
    met = threading.Barrier(3, timeout=20)
    side_by_side.each(lambda _: met.wait(), PARTS[:3])  # BrokenBarrierError otherwise


@pytest.mark.parametrize("threads", [1, 3])
def test_what_fails_is_raised_and_the_rest_left(threads: int) -> None:
    side_by_side.set_thread_count(threads)

    def work(part: slice) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side.each(work, PARTS)
    done = []
    side_by_side.each(done.append, PARTS)  # as before
    assert sorted(done, key=lambda part: part.start) == PARTS


def test_a_forked_process_has_threads_of_its_own() -> None:
    side_by_side.set_thread_count(3)
    side_by_side.each(lambda _: None, PARTS)
    child = os.fork()
    if not child:
        done: list[slice] = []
        side_by_side.each(done.append, PARTS)
        os._exit(0 if len(done) == len(PARTS) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_blas_has_one_thread_while_the_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    before = counts()
    with side_by_side.blas_alone():
        assert set(counts()) == {1}
    assert counts() == before


def test_the_environment_s_number_of_threads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_THREADS", side_by_side._Threads())
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert side_by_side.thread_count() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert side_by_side.thread_count() >= 1


@pytest.mark.parametrize("largest", [32639, 32640, 127 << 14])
def test_channels_beyond_two_digits_are_exact(largest: int) -> None:
    rng = np.random.default_rng(largest)
    product = NarrowProduct(
        rng.normal(size=(6, 40)).astype(np.float32), np.zeros(6, np.float32), "layer"
    )
    rows = rng.integers(-32639, 32640, (9, 40))
    rows[2, 3], rows[5, 3], rows[7, 30] = largest, -largest, largest
    sums = rows @ product._integers.astype(np.int64)
    found = product._sums(rows.astype(np.float32), product.operand())
    assert np.array_equal(found, sums.astype(np.float32))
