"""The schedules that EXACT.md prints, read from the page; no code of the package's."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "hpcm_scale/entropy/EXACT.md"
_SCALE = re.compile(
    r"^    scale (\d) of (\d+) steps, (\d+) groups(?:, kept \d: ([\d ]+))?\n((?:     .*\n)+)", re.M
)

Table = tuple[tuple[tuple[int, ...], ...], ...]
"""(k, p, p): the channel groups that a step codes at each position."""


class Scale(NamedTuple):
    """A scale as the page has it."""

    groups: int
    steps: tuple[Table, ...]
    kept: tuple[tuple[int, int], ...]
    """(row, column) of every 2×2 block, group by group; empty for the smallest scale."""


class Schedule(NamedTuple):
    """The scales, smallest first."""

    scales: tuple[Scale, ...]

    @property
    def steps(self) -> list[tuple[int, Table]]:
        """Scale and table of every step in coding order."""
        return [(s, step) for s, scale in enumerate(self.scales) for step in scale.steps]


@cache
def _scales() -> dict[tuple[int, int], Scale]:
    """(scale, number of steps) -> what the page says of it."""
    found = {}
    for number, count, groups, kept, rows in _SCALE.findall(PAGE.read_text(encoding="utf-8")):
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


def printed_schedule(name: str) -> Schedule:
    """The schedule of a `config`, such as 2-3-6: the steps of each scale."""
    counts = map(int, name.split("-"))
    return Schedule(tuple(_scales()[s, count] for s, count in enumerate(counts)))
