"""What EXACT.md prints is what the program has."""

import re
from pathlib import Path

import pytest

import hpcm_scale.entropy
from hpcm_scale.models.schedule import Scale, schedule_named

PAGE = (Path(hpcm_scale.entropy.__file__).parent / "EXACT.md").read_text()
_SCALE = re.compile(
    r"^    scale (\d) of (\d+) steps, (\d+) groups(?:, kept \d: ([\d ]+))?\n((?:     .*\n)+)", re.M
)


def _printed() -> dict[tuple[int, int], Scale]:
    """(scale, number of steps) -> what the page says of it."""
    found = {}
    for number, count, groups, kept, rows in _SCALE.findall(PAGE):
        steps = tuple(
            tuple(
                tuple(tuple(int(group, 16) for group in row) for row in table.split("/"))
                for table in step.split("+")
            )
            for step in rows.split()
        )
        assert len(steps) == int(count)
        offsets = tuple((int(pair[0]), int(pair[1])) for pair in kept.split())
        found[int(number), int(count)] = Scale(int(groups), steps, offsets)
    return found


@pytest.mark.parametrize("name", ["2-3-6", "4-3-6", "2-3-3", "2-3-12"])
def test_the_page_prints_the_schedule(name: str) -> None:
    printed = _printed()
    for s, scale in enumerate(schedule_named(name).scales):
        assert printed[s, len(scale.steps)] == scale
