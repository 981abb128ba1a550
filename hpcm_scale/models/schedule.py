"""The hierarchical coding schedule as data: scales, channel groups and steps as integer tables.

Three scales, coarse to fine: S1 (H/4 × W/4), S2 (H/2 × W/2) and S3 (H × W), where H × W is the grid
of the latents. A scale's grid holds every channel once per position; a step's table says which
channel groups are coded at each position of a small block that tiles the grid. Pure Python, no
tensors: `grids.py` turns the tables into slicing.

Source: arXiv 2507.19125, section 3.2, and the published program for the S3 orders.
"""

from dataclasses import dataclass

from hpcm_scale.errors import ConfigError

Table = tuple[tuple[tuple[int, ...], ...], ...]
"""(k, p, p): the k channel groups active at each position of a p × p block."""

Offsets = tuple[tuple[int, int], ...]
"""Per channel group, the (row, column) of every 2 × 2 block that the next smaller scale keeps."""


@dataclass(frozen=True)
class Scale:
    """One resolution of the latents and the steps that code it."""

    groups: int
    """n, equal channel groups the tables speak of."""
    steps: tuple[Table, ...]
    """Positions that steps code; with the smaller scales' steps, every group at every position."""
    kept: Offsets
    """Positions of this grid that the next smaller scale takes; empty for the smallest."""


@dataclass(frozen=True)
class Schedule:
    """All scales, smallest first."""

    name: str
    scales: tuple[Scale, ...]

    @property
    def steps(self) -> tuple[tuple[int, Table], ...]:
        """(scale index, table) of every step in coding order."""
        return tuple((s, table) for s, scale in enumerate(self.scales) for table in scale.steps)

    def channels(self, step: int, latent_channels: int) -> int:
        """Channels of the dense tensor of symbols that `step` codes, for M latent channels."""
        scale, table = self.steps[step]
        return latent_channels // self.scales[scale].groups * len(table)


def _one_group(rows: tuple[tuple[int, ...], ...]) -> Table:
    return (rows,)


# S1: a checkerboard over two halves of the channels.
_CHECKERBOARD = (_one_group(((0, 1), (1, 0))), _one_group(((1, 0), (0, 1))))

# A quadtree over four channel groups: row k gives each group's position (of 0 1 / 2 3).
_QUADTREE_ROWS = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))


def _quadtree(row: tuple[int, ...]) -> Table:
    group_at = [row.index(position) for position in range(4)]
    return _one_group(((group_at[0], group_at[1]), (group_at[2], group_at[3])))


# S3: eight pairs of positions in a 4 × 4 block; row k gives the pair that each of 8 groups codes.
_PAIRS = (
    ((0, 0), (2, 2)),
    ((0, 2), (2, 0)),
    ((1, 1), (3, 3)),
    ((1, 3), (3, 1)),
    ((0, 1), (2, 3)),
    ((0, 3), (2, 1)),
    ((1, 0), (3, 2)),
    ((1, 2), (3, 0)),
)
_PAIR_ROWS = (
    (0, 2, 4, 6, 1, 3, 5, 7),
    (1, 3, 5, 7, 0, 2, 4, 6),
    (2, 4, 6, 0, 3, 5, 7, 1),
    (3, 5, 7, 1, 2, 4, 6, 0),
    (4, 6, 0, 2, 5, 7, 1, 3),
    (5, 7, 1, 3, 4, 6, 0, 2),
    (6, 0, 2, 4, 7, 1, 3, 5),
    (7, 1, 3, 5, 6, 0, 2, 4),
)


def _pairs(row: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    block = [[-1] * 4 for _ in range(4)]
    for group, pair in enumerate(row):
        for r, c in _PAIRS[pair]:
            block[r][c] = group
    return tuple(tuple(line) for line in block)


def _half_pairs(row: tuple[int, ...], first: int) -> Table:
    """A row over 16 half groups in two sub-steps: each half at one position of its pair."""
    block = [[-1] * 4 for _ in range(4)]
    for group, pair in enumerate(row):
        for half, (r, c) in enumerate(_PAIRS[pair]):
            block[r][c] = 2 * group + (half + first) % 2
    return _one_group(tuple(tuple(line) for line in block))


_S2_KEEPS = ((0, 0), (0, 1), (1, 0), (1, 1))
_S3_KEEPS = ((0, 0), (1, 1), (0, 1), (1, 0)) * 2

_S1 = {
    2: Scale(2, _CHECKERBOARD, ()),
    4: Scale(4, tuple(_quadtree(row) for row in _QUADTREE_ROWS), ()),
}
_S2 = {3: Scale(4, tuple(_quadtree(row) for row in _QUADTREE_ROWS[1:]), _S2_KEEPS)}
_S3 = {
    6: Scale(8, tuple(_one_group(_pairs(row)) for row in _PAIR_ROWS[2:]), _S3_KEEPS),
    # Two consecutive rows of the six at once: the quadtree of S2 over both halves of the channels.
    3: Scale(
        8, tuple((_pairs(_PAIR_ROWS[k]), _pairs(_PAIR_ROWS[k + 1])) for k in (2, 4, 6)), _S3_KEEPS
    ),
    # Each of the six in two halves: the paper gives the count, the halving is our reading.
    12: Scale(
        16, tuple(_half_pairs(row, first) for row in _PAIR_ROWS[2:] for first in (0, 1)), _S3_KEEPS
    ),
}

QUADTREE = Schedule("quadtree", (_S1[4],))
"""Four steps on one grid, that of the latents: DCVC-DC's (arXiv 2302.14402)."""


def schedule_named(name: str) -> Schedule:
    """The schedule with the step counts of S1-S2-S3 in its name, "2-3-6" being the published one.

    Raises:
        ConfigError: for a name that is not one of the papers' schedules.
    """
    known = [f"{a}-{b}-{c}" for a in _S1 for b in _S2 for c in _S3]
    if name not in known:
        raise ConfigError(f"schedule: {name!r} is not one of {', '.join(known)}")
    a, b, c = (int(part) for part in name.split("-"))
    return Schedule(name, (_S1[a], _S2[b], _S3[c]))
