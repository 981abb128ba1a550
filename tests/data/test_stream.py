"""The stream on real shards: one sequence for every layout, exact resume, bad samples and files."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_scale.config import DataConfig
from hpcm_scale.data.images import decode_whole
from hpcm_scale.data.shards import ShardReader, read_manifest
from hpcm_scale.data.stream import TrainStream, read_images
from hpcm_scale.errors import DataError

CROP, STREAMS, BATCH = 24, 12, 12


def config(root: Path, workers: int = 0, **rest: Any) -> DataConfig:
    settings = {"crop": CROP, "streams": STREAMS, "shuffle_buffer": 8, **rest}
    return DataConfig(train=str(root), workers=workers, **settings)


def global_batches(
    root: Path, ranks: int, workers: int, count: int, state: dict[str, int] | None = None
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], dict[str, int]]:
    """(samples, images) of each global batch, put together from every rank's, and the state after.

    All ranks live in this process, each with its own workers.
    """
    parts = []
    for rank in range(ranks):
        stream = TrainStream(
            config(root, workers), seed=7, global_batch=BATCH, rank=rank, world_size=ranks
        )
        if state is not None:
            stream.load_state_dict(state)
        parts.append(list(islice(stream, count)))
    batches = []
    for of_ranks in zip(*parts, strict=True):
        samples = torch.empty(BATCH, dtype=torch.int64)
        images = torch.empty((BATCH, 3, CROP, CROP), dtype=torch.uint8)
        for rank, batch in enumerate(of_ranks):
            samples[rank::ranks], images[rank::ranks] = batch["sample"], batch["crop"]
        batches.append((samples, images))
    return batches, stream.state_dict()


def assert_equal_batches(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for (samples, images), (their_samples, their_images) in zip(found, expected, strict=True):
        assert torch.equal(samples, their_samples)
        assert torch.equal(images, their_images)


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Nine global batches, over three epochs."""
    return global_batches(dataset, ranks=1, workers=0, count=9)[0]


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 12])
def test_ranks_do_not_change_a_bit_of_the_global_batches(dataset, uninterrupted, ranks: int):
    assert_equal_batches(global_batches(dataset, ranks, 0, 9)[0], uninterrupted)


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 2), (2, 6), (12, 1)])
def test_real_workers_do_not_change_the_global_batches(
    dataset, uninterrupted, ranks: int, workers: int
):
    assert_equal_batches(global_batches(dataset, ranks, workers, 9)[0], uninterrupted)


def test_every_image_is_seen_once_an_epoch(dataset, uninterrupted):
    split = read_manifest(str(dataset)).split("train", "")
    samples = torch.cat([samples for samples, _ in uninterrupted])
    images = torch.cat([images for _, images in uninterrupted])
    epochs = len(samples) // split.samples
    assert epochs >= 2
    for epoch in range(epochs):
        of_epoch = samples[epoch * split.samples : (epoch + 1) * split.samples]
        assert sorted(of_epoch.tolist()) == list(range(split.samples))
    whole = {image.sample: image.image for image in read_images(str(dataset), "train")}
    for sample, crop in zip(samples[:20].tolist(), images[:20], strict=True):
        windows = whole[sample].unfold(1, CROP, 1).unfold(2, CROP, 1)  # (3, rows, cols, CROP, CROP)
        places = windows.permute(1, 2, 0, 3, 4)
        found = (places == crop).flatten(2).all(2) | (places == crop.flip(2)).flatten(2).all(2)
        assert found.sum() == 1


@given(st.integers(0, 9), st.sampled_from([1, 2, 4, 12]), st.sampled_from([1, 3, 6]))
@settings(deadline=None, max_examples=12)
def test_resuming_at_any_step_continues_the_sequence(
    dataset, uninterrupted, stop: int, before: int, after: int
):
    head, state = global_batches(dataset, before, 0, stop)
    state = json.loads(json.dumps(state))  # as a checkpoint keeps it
    tail, _ = global_batches(dataset, after, 0, 9 - stop, state)
    assert_equal_batches(head + tail, uninterrupted)


@pytest.mark.distributed
def test_the_state_excludes_what_workers_prefetched(dataset, uninterrupted):
    stream = TrainStream(config(dataset, workers=3), seed=7, global_batch=BATCH)
    batches = iter(stream)
    next(batches)
    next(batches)
    time.sleep(0.5)  # workers run ahead
    state = stream.state_dict()
    assert (state["step"], state["samples"]) == (2, 2 * BATCH)
    assert_equal_batches(global_batches(dataset, 1, 2, 7, state)[0], uninterrupted[2:])
    assert next(batches)["step"] == 2


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.distributed)])
def test_the_trainers_random_numbers_are_left_alone(dataset, workers: int):
    """A resumed run opens the stream once more than one that never stopped."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(islice(TrainStream(config(dataset, workers), seed=7, global_batch=BATCH), 2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_resumed_run_may_change_its_batch_size(dataset, uninterrupted):
    _, state = global_batches(dataset, 1, 0, 2)
    stream = TrainStream(config(dataset), seed=7, global_batch=4)
    stream.load_state_dict(state)
    samples = torch.cat([batch["sample"] for batch in islice(stream, 6)])
    assert torch.equal(samples, torch.cat([s for s, _ in uninterrupted[2:4]]))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 8}, "seed"),
        ({"streams": 6}, "streams"),
        ({"shuffle_buffer": 9}, "shuffle_buffer"),
        ({"dataset": 1}, "dataset"),
    ],
)
def test_a_state_of_another_order_is_refused(dataset, change: dict[str, int], name: str):
    stream = TrainStream(config(dataset), seed=7, global_batch=BATCH)
    with pytest.raises(DataError, match=f"{name} was {change[name]} and is now"):
        stream.load_state_dict(stream.state_dict() | change)
    with pytest.raises(DataError, match="'step' is missing"):
        stream.load_state_dict({})


@pytest.mark.parametrize(
    ("ranks", "workers", "batch", "message"),
    [
        (5, 1, 10, "one of 1, 2, 3, 4, 6, 12$"),
        (2, 4, 12, "one of 1, 2, 3, 4, 6, 12$"),
        (2, 1, 7, "global batch of 7 cannot be shared by 2 ranks"),
        (1, 1, 0, "global batch of 0"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(dataset, ranks, workers, batch, message):
    with pytest.raises(DataError, match=message):
        TrainStream(config(dataset, workers), seed=0, global_batch=batch, world_size=ranks)


def test_a_crop_larger_than_an_image_is_refused(dataset):
    with pytest.raises(DataError, match=r"data\.crop is 64 but the smallest image side is 3\d"):
        TrainStream(config(dataset, crop=64), seed=0, global_batch=2)


# A process of its own for each rank, as a launcher starts them: prints what it gets, line by line.
RANK = """
import hashlib, json, sys, time
from hpcm_scale.config import DataConfig
from hpcm_scale.data.stream import TrainStream
root, rank, ranks, workers, steps, state_path, pause = sys.argv[1:]
data = DataConfig(train=root, crop=24, streams=12, shuffle_buffer=8, workers=int(workers))
stream = TrainStream(data, seed=7, global_batch=12, rank=int(rank), world_size=int(ranks))
try:
    stream.load_state_dict(json.load(open(state_path)))
except FileNotFoundError:
    pass
for batch in stream:
    rows = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch["crop"]]
    print(json.dumps([batch["step"], batch["sample"].tolist(), rows, stream.state_dict()]),
          flush=True)
    if batch["step"] + 1 == int(steps):
        break
    time.sleep(float(pause))
"""


def start_ranks(root: Path, ranks: int, workers: int, steps: int, state: Path, pause: float = 0):
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(root), *map(str, (rank, ranks, workers, steps)),
             str(state), str(pause)],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def merge_ranks(lines_of_ranks: list[list[str]]) -> list[list[tuple[int, str]]]:
    """Per step the (sample, digest) rows of the global batch; steps that all ranks delivered."""
    steps = []
    for lines in zip(*lines_of_ranks, strict=False):
        rows: list[Any] = [None] * BATCH
        for rank, line in enumerate(lines):
            _, samples, digests, _ = json.loads(line)
            rows[rank :: len(lines)] = zip(samples, digests, strict=True)
        steps.append(rows)
    return steps


@pytest.mark.distributed
def test_killed_ranks_resume_on_another_layout(dataset, uninterrupted, tmp_path):
    expected = [
        [
            (int(sample), hashlib.sha256(image.numpy().tobytes()).hexdigest())
            for sample, image in zip(samples, images, strict=True)
        ]
        for samples, images in uninterrupted
    ]
    state = tmp_path / "state.json"
    first = start_ranks(dataset, ranks=2, workers=2, steps=10**6, state=state, pause=0.05)
    heads = [[process.stdout.readline() for _ in range(4)] for process in first]
    for process in first:
        os.killpg(process.pid, signal.SIGKILL)  # workers, prefetched batches and all
        process.communicate()
    states = [json.loads(head[-1])[3] for head in heads]
    assert states[0] == states[1]
    state.write_text(json.dumps(states[0]))
    second = start_ranks(dataset, ranks=3, workers=0, steps=9, state=state)
    tails = [process.communicate()[0].splitlines() for process in second]
    assert all(process.returncode == 0 for process in second)
    assert merge_ranks(heads) + merge_ranks(tails) == expected


def damage(root: Path, count: int) -> set[int]:
    """Overwrite the first `count` train images of the second shard; their sample ids."""
    split = read_manifest(str(root)).split("train", "")
    shard = split.shards[1]
    with (root / shard.path).open("r+b") as stream:
        for row in range(count):
            stream.seek(int(shard.offsets[row]))
            stream.write(b"\0" * int(shard.sizes[row]))
    return set(range(int(split.first[1]), int(split.first[1]) + count))


@pytest.mark.distributed
def test_bad_samples_get_the_same_neighbour_on_every_layout(copy, uninterrupted, caplog):
    (bad,) = damage(copy, 1)
    alone, _ = global_batches(copy, 1, 0, 9)
    assert_equal_batches(global_batches(copy, 2, 3, 9)[0], alone)
    for (samples, images), (before, images_before) in zip(alone, uninterrupted, strict=True):
        was_bad = before == bad
        assert torch.equal(samples, torch.where(was_bad, bad + 1, before))
        assert torch.equal(images[~was_bad], images_before[~was_bad])
    split = read_manifest(str(copy)).split("train", "")
    name = split.shards[1].names[0].removesuffix(".png")
    assert split.shards[1].path in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.distributed)])
def test_too_many_bad_samples_stop_the_run(copy, monkeypatch, workers: int):
    damage(copy, 1)
    stream = TrainStream(config(copy, workers, max_bad_rate=0), seed=7, global_batch=BATCH)
    with pytest.raises(DataError, match=r"1 of \d+ samples could not be decoded, above data\.max"):
        list(islice(stream, 9))
    assert stream.bad == 1
    monkeypatch.setattr("hpcm_scale.data.stream.RATE_WINDOW", 10)
    rare = TrainStream(config(copy, workers, max_bad_rate=0.9), seed=7, global_batch=BATCH)
    list(islice(rare, 9))
    assert rare.bad >= 2


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_shard_with_nothing_to_decode_stops_the_run(copy, workers: int):
    split = read_manifest(str(copy)).split("train", "")
    damage(copy, split.shards[1].samples)
    stream = TrainStream(config(copy, workers, max_bad_rate=1), seed=7, global_batch=BATCH)
    with pytest.raises(DataError, match=r"^\S+: no sample of this shard can be decoded$"):
        list(islice(stream, 9))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_shard_that_shrinks_or_vanishes_stops_the_run(copy, workers: int):
    shards = read_manifest(str(copy)).split("train", "").shards
    stream = TrainStream(config(copy, workers), seed=7, global_batch=BATCH)
    for shard in shards:
        os.truncate(copy / shard.path, 100)
    with pytest.raises(DataError, match=r"\d+\.tar: is truncated inside '.*png'$"):
        next(iter(stream))
    for shard in shards:
        (copy / shard.path).unlink()
    with pytest.raises(DataError, match=r"\d+\.tar: cannot be read"):
        next(iter(stream))


def test_missing_and_short_shards_are_named_before_the_run(copy):
    shard = read_manifest(str(copy)).split("train", "").shards[1]
    os.truncate(copy / shard.path, shard.bytes - 512)
    with pytest.raises(DataError, match=rf"{shard.path}: has .* bytes, manifest.json says"):
        TrainStream(config(copy), seed=0, global_batch=2)
    (copy / shard.path).unlink()
    with pytest.raises(DataError, match=rf"{shard.path}: the shard is missing"):
        TrainStream(config(copy), seed=0, global_batch=2)


def test_a_folder_without_a_manifest_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such manifest; make one with `hpcm-scale pack`"):
        TrainStream(config(tmp_path), seed=0, global_batch=2)


@pytest.mark.parametrize("ranks", [1, 2, 5, 60])
def test_validation_images_are_shared_evenly_counted_once(dataset, ranks: int):
    split = read_manifest(str(dataset)).split("val", "")
    assert split.samples > 2
    parts = [list(read_images(config(dataset), "val", rank, ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1  # so no rank is left alone in a collective
    counted = sorted(
        (image.sample, image.key, image.image.float().mean().item())
        for part in parts
        for image in part
        if image.counted
    )
    whole = []
    for shard in split.shards:
        content = (dataset / shard.path).read_bytes()
        for name, start, size in zip(shard.names, shard.offsets, shard.sizes, strict=True):
            pixels = decode_whole(content[int(start) : int(start + size)])
            mean = torch.from_numpy(pixels).float().mean().item()
            whole.append((len(whole), name.removesuffix(".png"), mean))
    assert counted == whole


def test_a_plain_folder_is_read_by_name(tmp_path, make_folder):
    photos = make_folder(tmp_path / "photos", 3)
    (photos / "notes.txt").write_text("not an image")
    images = list(read_images(config(tmp_path, val=str(photos))))
    assert [image.key for image in images] == ["photo000", "photo001", "photo002"]
    assert images[1].image.shape == (3, 33, 40)
    (photos / "photo001.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"photo001\.png: cannot be decoded"):
        list(read_images(str(photos)))


def test_validation_data_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(DataError, match="neither a packed dataset nor a folder with images"):
        list(read_images(str(tmp_path)))


@pytest.fixture
def spawned_workers() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.distributed
def test_workers_may_be_spawned_instead_of_forked(dataset, uninterrupted, spawned_workers):
    assert_equal_batches(global_batches(dataset, 1, 2, 9)[0], uninterrupted)


def test_resuming_late_in_an_epoch_reads_only_what_it_delivers(dataset, monkeypatch):
    read = []
    original = ShardReader.read
    monkeypatch.setattr(
        ShardReader, "read", lambda self, sample: read.append(sample) or original(self, sample)
    )
    stream = TrainStream(config(dataset), seed=7, global_batch=2)
    steps = 9 * stream.split.samples // 20
    stream.load_state_dict(stream.state_dict() | {"step": steps, "samples": 2 * steps})
    assert read == next(iter(stream))["sample"].tolist()
