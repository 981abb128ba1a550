"""Batches that are fetched while the step before them runs."""

from pathlib import Path

import pytest
import torch

from hpcm_scale.config import DataConfig
from hpcm_scale.data.stream import TrainStream
from hpcm_scale.models.zoo import model_config
from hpcm_scale.training.noise import Noise
from hpcm_scale.training.rate_draws import RateDraws
from hpcm_scale.training.transfer import Batch, DeviceBatches
from tests.distributed.conftest import dataset

__all__ = ["dataset"]

MODEL = model_config("base", width=0.025)


def batches_of(dataset: Path, ahead: bool, last: int = 9, position: dict | None = None):
    data = DataConfig(train=str(dataset), streams=4, workers=0, shuffle_buffer=4)
    stream = TrainStream(data, seed=3, global_batch=4)
    if position:
        stream.load_state_dict(stream.state_dict() | position)
    draws = RateDraws((0.01, 0.02), 3, 4, 0, 1)
    noise = Noise(MODEL, data.crop, 3, 0, 1)
    return DeviceBatches(stream, noise, draws, torch.device("cpu"), 3, last, ahead)


def steps(batches: DeviceBatches, count: int) -> list[Batch]:
    found = []
    for _ in range(count):
        found.append(batches.next())
        batches.prefetch()
    return found


def same(one: Batch, other: Batch) -> bool:
    tensors = [
        [t for part in batch.micro_batches for t in (part.crops, *part.noise, part.places)]
        for batch in (one, other)
    ]
    equal = all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))
    return equal and one._replace(micro_batches=[]) == other._replace(micro_batches=[])


@pytest.mark.parametrize("stopped", [1, 3])
def test_fetching_ahead_changes_no_batch_and_no_position(dataset, stopped):
    plain = steps(batches_of(dataset, ahead=False), 6)
    assert [len(part.crops) for part in plain[0].micro_batches] == [3, 1]
    early = batches_of(dataset, ahead=True)
    first = steps(early, stopped)
    assert early.stream.step == stopped + 1  # one is already fetched, and counts as none
    assert first[-1].position["step"] == stopped
    # What resumes from there sees the batch that was fetched and not stepped on.
    later = steps(batches_of(dataset, ahead=True, position=first[-1].position), 6 - stopped)
    assert all(same(a, b) for a, b in zip([*first, *later], plain, strict=True))


def test_nothing_is_fetched_past_the_last_step(dataset):
    batches = batches_of(dataset, ahead=True, last=2)
    steps(batches, 2)
    assert batches.stream.step == 2
