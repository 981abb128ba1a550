"""The order, over generated datasets and process layouts, without any process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_scale.data.augment import random_crop
from hpcm_scale.data.order import Order, owned_positions, require_divisor
from hpcm_scale.errors import DataError


@st.composite
def orders(draw: st.DrawFn) -> Order:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
    return Order(
        sizes,
        streams=draw(st.sampled_from([1, 2, 6, 8, 12, 24])),
        seed=draw(st.integers(0, 2**32)),
        shuffle_buffer=draw(st.sampled_from([1, 3, 16, 1000])),
    )


@st.composite
def layouts(draw: st.DrawFn, streams: int) -> tuple[int, int]:
    """(ranks over all nodes, workers of each) whose product divides the streams."""
    readers = draw(st.sampled_from([n for n in range(1, streams + 1) if streams % n == 0]))
    ranks = draw(st.sampled_from([n for n in range(1, readers + 1) if readers % n == 0]))
    return ranks, readers // ranks


def epoch_samples(order: Order, epoch: int) -> np.ndarray:
    start = epoch * order.total
    epochs, samples = order.at(np.arange(start, start + order.total))
    assert (epochs == epoch).all()
    return samples


def read_batch(order: Order, start: int, batch: int, ranks: int, workers: int) -> np.ndarray:
    """One global batch as the readers of a layout see it: (batch, 2) epochs and samples."""
    rows = {}
    for rank in range(ranks):
        mine = 0
        for worker in range(workers):
            reader = rank + ranks * worker
            positions = owned_positions(start, start + batch, reader, ranks * workers)
            rows |= dict(zip(positions, zip(*order.at(positions), strict=True), strict=True))
            mine += len(positions)
        assert mine == batch // ranks  # no rank waits for another's samples
    return np.array([rows[position] for position in range(start, start + batch)])


@given(orders(), st.integers(0, 5))
def test_an_epoch_is_every_sample_exactly_once(order: Order, epoch: int):
    assert sorted(epoch_samples(order, epoch)) == list(range(order.total))


@given(st.data(), orders(), st.integers(1, 4), st.integers(0, 7))
def test_global_batches_do_not_depend_on_ranks_or_workers(
    data: st.DataObject, order: Order, per_rank: int, step: int
):
    ranks, workers = data.draw(layouts(order.streams))
    batch = per_rank * ranks
    alone = read_batch(order, step * batch, batch, 1, 1)
    assert (read_batch(order, step * batch, batch, ranks, workers) == alone).all()


@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 40), st.integers(0, 99))
def test_a_crop_lies_inside_the_image(side: int, right: int, below: int, sample: int):
    crop = random_crop(side + right, side + below, side, False, 0, 0, sample)
    assert 0 <= crop.left <= right
    assert 0 <= crop.top <= below
    assert not crop.mirrored


@given(st.data(), orders(), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_a_new_layout_at_any_step_loses_and_repeats_nothing(
    data: st.DataObject, order: Order, epochs: int
):
    """Batches of ever new layouts, from wherever the one before stopped, over several epochs."""
    seen, consumed = [], 0
    while consumed < epochs * order.total:
        ranks, workers = data.draw(layouts(order.streams))
        batch = ranks * data.draw(st.integers(1, 8))
        seen.append(read_batch(order, consumed, batch, ranks, workers))
        consumed += batch
    rows = np.concatenate(seen)[: epochs * order.total]
    for epoch in range(epochs):
        of_epoch = rows[epoch * order.total : (epoch + 1) * order.total]
        assert (of_epoch[:, 0] == epoch).all()
        assert sorted(of_epoch[:, 1]) == list(range(order.total))


@given(orders(), st.integers(0, 5))
def test_a_stream_reads_its_shards_one_after_another(order: Order, epoch: int):
    plain = Order(order.sizes, order.streams, order.seed, shuffle_buffer=1)
    samples = epoch_samples(plain, epoch)
    shard_of = np.repeat(np.arange(len(order.sizes)), order.sizes)
    visits = 0
    for stream in range(order.streams):
        mine = samples[stream :: order.streams]  # (its length,)
        follows = np.diff(mine) == 1
        new_shard = shard_of[mine[1:]] != shard_of[mine[:-1]]
        # Inside a shard always the next sample; but the sequence begins inside a shard, and the
        # whole epoch being one stream it comes back to that shard's start at the end.
        wraps = np.diff(mine) < 0
        assert (follows | new_shard | wraps).all()
        visits += len(mine) and 1 + int((~follows).sum())
    # Each shard is opened once, and once more for each cut: between streams, and where it begins.
    assert visits <= (order.sizes > 0).sum() + order.streams + 1


@given(orders(), st.integers(0, 5))
def test_shuffling_moves_no_sample_further_than_the_buffer(order: Order, epoch: int):
    plain = Order(order.sizes, order.streams, order.seed, shuffle_buffer=1)
    lines = np.arange(order.total)
    place = np.empty_like(lines)
    place[plain.sequence(epoch, lines)] = lines
    moved = place[order.sequence(epoch, lines)] - lines
    assert np.abs(moved).max() < order.shuffle_buffer


@given(st.data(), orders())
@settings(deadline=None)
def test_readers_share_whole_streams(data: st.DataObject, order: Order):
    """What makes sequential reading possible: in no epoch do two readers read one stream."""
    ranks, workers = data.draw(layouts(order.streams))
    readers = ranks * workers
    positions = np.arange(3 * order.total)
    epochs, places = np.divmod(positions, order.total)
    owner = positions % readers
    for epoch in range(3):
        chosen = epochs == epoch
        pairs = set(zip(places[chosen] % order.streams, owner[chosen], strict=True))
        assert len(pairs) == len({stream for stream, _ in pairs})


def test_epochs_and_seeds_give_different_orders():
    first = epoch_samples(Order([100, 50, 70], 8, 0, 64), 0)
    assert (first != epoch_samples(Order([100, 50, 70], 8, 0, 64), 1)).any()
    assert (first != epoch_samples(Order([100, 50, 70], 8, 1, 64), 0)).any()


def test_a_small_set_in_one_shard_is_shuffled_uniformly():
    """Each of 6 samples stands at each place equally often: the chi-square bound is at p = 1e-6."""
    order = Order([6], streams=64, seed=3, shuffle_buffer=1024)
    counts = np.zeros((6, 6))
    for epoch in range(1200):
        counts[np.arange(6), epoch_samples(order, epoch)] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 75.0  # 25 degrees of freedom


def test_crops_are_uniform_over_all_places_and_mirrors():
    places = np.zeros((3, 2, 2))
    for sample in range(2400):
        crop = random_crop(10, 9, 8, True, seed=1, epoch=0, sample=sample)
        places[crop.left, crop.top, int(crop.mirrored)] += 1
    assert ((places - 200) ** 2 / 200).sum() < 50.0  # 11 degrees of freedom, p = 1e-6


def test_layouts_that_divide_the_streams_are_named():
    with pytest.raises(DataError, match=r"12 streams .* 5 ranks × 2 .* 1, 2, 3, 4, 6, 12$"):
        require_divisor(12, 5, 2)


def test_an_empty_split_has_no_order():
    with pytest.raises(DataError, match="empty"):
        Order([0, 0], 4, 0, 1)
