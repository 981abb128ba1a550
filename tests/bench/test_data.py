"""The benchmarks run and measure what they name; no time is asserted."""

from pathlib import Path

import pytest
import torch

from hpcm_scale.bench.data import (
    bench_data,
    bench_resume,
    crop_while_decoding,
    decode_then_crop,
)


def test_every_loader_is_measured(dataset: Path):
    table = bench_data(str(dataset), side=24, images=16, repeats=1, workers=[0])
    speeds = [float(cell.split()[0]) for cell in table.columns[1].cells]
    assert len(speeds) == 5
    assert all(speed > 0 for speed in speeds)


@pytest.mark.slow
def test_resuming_is_measured_on_a_million_samples(dataset: Path):
    before = sorted(dataset.rglob("*"))
    table = bench_resume(str(dataset), side=24)
    assert next(iter(table.columns[1].cells)) == "1000000"
    assert sorted(dataset.rglob("*")) == before


def test_both_decoders_do_the_same_work_up_to_the_place(make_picture, encode):
    """On an image as large as the crop there is one place: equal up to mirroring."""
    content = encode(make_picture(0, 32, 32), "PNG")
    one, other = (torch.from_numpy(f(content, 32)) for f in (decode_then_crop, crop_while_decoding))
    assert torch.equal(one, other) or torch.equal(one, other.flip(2))
