"""What EXACT.md prints is what the program has."""

import pytest

from hpcm_scale.models.schedule import schedule_named
from tests.entropy.exact_page import printed_schedule


@pytest.mark.parametrize("name", ["2-3-6", "4-3-6", "2-3-3", "2-3-12"])
def test_the_page_prints_the_schedule(name: str) -> None:
    printed, ours = printed_schedule(name), schedule_named(name)
    assert len(printed.scales) == len(ours.scales) == 3
    for theirs, scale in zip(printed.scales, ours.scales, strict=True):
        assert theirs == (scale.groups, scale.steps, scale.kept)
    assert printed.steps == list(ours.steps)
