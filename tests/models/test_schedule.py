"""The coding schedules: every latent once, and moves between grids that undo each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.errors import ConfigError
from hpcm_scale.models import grids
from hpcm_scale.models.schedule import schedule_named

NAMES = [f"{a}-{b}-{c}" for a in (2, 4) for b in (3,) for c in (6, 3, 12)]
schedules = st.sampled_from(NAMES).map(schedule_named)


def numbered(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Latents that are all different."""
    count = batch * channels * height * width
    return torch.arange(count, dtype=torch.float64).view(batch, channels, height, width)


@given(
    schedules, st.integers(1, 3), st.sampled_from([16, 48]), st.integers(1, 3), st.integers(1, 3)
)
def test_every_latent_is_coded_exactly_once(schedule, batch, channels, h, w):
    y = numbered(batch, channels, 8 * h, 8 * w)
    coded = torch.cat([part.flatten() for part in grids.StepGrids(schedule).split(y)])
    assert torch.equal(coded.sort().values, y.flatten())


@given(
    schedules, st.integers(1, 3), st.sampled_from([16, 48]), st.integers(1, 3), st.integers(1, 3)
)
def test_join_undoes_split(schedule, batch, channels, h, w):
    y = numbered(batch, channels, 8 * h, 8 * w)
    steps = grids.StepGrids(schedule)
    parts = steps.split(y)
    assert torch.equal(steps.join(parts), y)


@given(schedules, st.integers(1, 2), st.integers(1, 3))
def test_placing_what_was_taken_changes_nothing_else(schedule, batch, side):
    for scale in schedule.scales:
        x = 1 + numbered(batch, 16, 4 * side, 4 * side)
        for table in scale.steps:
            placed = grids.place(grids.take(x, table, scale.groups), table, scale.groups)
            assert torch.equal(placed, x.where(placed != 0, 0))
            assert (placed != 0).sum() == x.numel() * len(table) // scale.groups


@given(schedules, st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))
def test_extract_undoes_insert_and_insert_keeps_the_rest(schedule, batch, parts, side):
    for scale in schedule.scales[1:]:
        small = -1 - numbered(batch, parts * 16, 2 * side, 2 * side)
        large = numbered(batch, parts * 16, 4 * side, 4 * side)
        both = grids.insert(small, large, scale.kept, parts)
        assert torch.equal(grids.extract(both, scale.kept, parts), small)
        assert torch.equal(both[both >= 0], large[both >= 0])
        assert (both >= 0).sum() == large.numel() * 3 // 4


def test_the_misplacement_spares_what_the_spec_says():
    h = w = 8  # of a 256 × 256 image; the later shares depend on the width
    params = numbered(1, 16, h, w)
    moved = grids.misplace(params.contiguous(memory_format=torch.channels_last))
    # 8 groups of one channel; the means (second half) move like the scales.
    own = moved == params
    assert torch.equal(own[:, :8], own[:, 8:])
    shares = []
    for group in range(8):
        row, column = ((0, 0), (0, 1), (1, 0), (1, 1))[group // 2]
        fresh = torch.ones(h, w, dtype=torch.bool)
        fresh[row::2, column::2] = False
        shares.append(round(100 * own[0, group][fresh].double().mean().item()))
    assert shares == [100, 100, 67, 67, 17, 17, 8, 8]


def test_an_unknown_schedule_names_the_ones_there_are():
    with pytest.raises(ConfigError, match=r"schedule: '3-3-3' is not one of .*2-3-6"):
        schedule_named("3-3-3")
