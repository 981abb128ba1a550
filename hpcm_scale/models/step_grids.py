"""The latents of an image on the grids of the scales and as steps, for the tensors of any engine.

Written once over a few moves that each engine brings: `grids.py` has those of torch.
"""

from typing import Any, Generic, Protocol, TypeVar

from hpcm_scale.models.schedule import Offsets, Schedule, Table


class Addable(Protocol):
    """A tensor, of whatever engine."""

    def __add__(self, other: Any, /) -> Any: ...


T = TypeVar("T", bound=Addable)


class Moves(Protocol[T]):
    """Moving latents between grids and steps; with (H, W) the sides of the larger grid:"""

    def take(self, x: T, table: Table, groups: int, parts: int = 1) -> T:
        """A step's latents, dense: of parts·M channels, parts·k·M/groups of them."""
        ...

    def place(self, x: T, table: Table, groups: int) -> T:
        """A step's dense tensor at its places, else 0: of k·M/groups channels, M."""
        ...

    def put(self, x: T, into: T, table: Table, groups: int) -> T:
        """`into`, which is 0 at a step's places, with the step's dense tensor there."""
        ...

    def extract(self, x: T, kept: Offsets, parts: int = 1) -> T:
        """The smaller grid within a larger one: (H, W) to (H/2, W/2)."""
        ...

    def insert(self, small: T, large: T, kept: Offsets, parts: int = 1) -> T:
        """A copy of `large` (H, W) with `small` (H/2, W/2) where it was kept from."""
        ...

    def insert_into_zeros(self, small: T, kept: Offsets) -> T:
        """`small` where it was kept from, zeros elsewhere."""
        ...

    def misplace(self, params: T) -> T:
        """Hyper-parameters on the S2 grid as the published program hands them out."""
        ...

    def halves(self, x: T) -> tuple[T, T]:
        """The first and the second half of the channels."""
        ...


class StepGrids(Generic[T]):
    """The latents of an image as the dense tensors that the coding steps handle, and back."""

    def __init__(self, schedule: Schedule, moves: Moves[T]) -> None:
        self.schedule = schedule
        self.moves = moves

    @property
    def step_scales(self) -> tuple[int, ...]:
        """The scale each step belongs to, in coding order, counted from 0."""
        return tuple(s for s, _ in self.schedule.steps)

    def pyramid(self, y: T, parts: int = 1) -> list[T]:
        """Latents of parts·M channels on every scale's grid, smallest first; the last is `y`."""
        grids = [y]
        for scale in reversed(self.schedule.scales[1:]):
            grids.insert(0, self.moves.extract(grids[0], scale.kept, parts))
        return grids

    def narrow(self, x: T, scale: int, parts: int = 1) -> T:
        """Extract the grid of `scale` from the largest, of parts·M channels."""
        for larger in reversed(self.schedule.scales[scale + 1 :]):
            x = self.moves.extract(x, larger.kept, parts)
        return x

    def widen(self, x: T, scale: int) -> T:
        """A tensor on the grid of `scale` within the largest, zeros elsewhere."""
        for larger in self.schedule.scales[scale + 1 :]:
            x = self.moves.insert_into_zeros(x, larger.kept)
        return x

    def split(self, y: T) -> list[T]:
        """Latents of M channels as one dense tensor a step, in coding order."""
        grids = self.pyramid(y)
        return [
            self.moves.take(grids[s], table, self.schedule.scales[s].groups)
            for s, table in self.schedule.steps
        ]

    def join(self, parts: list[T]) -> T:
        """The inverse of `split`."""
        y, before = None, 0
        for (s, table), part in zip(self.schedule.steps, parts, strict=True):
            scale = self.schedule.scales[s]
            placed = self.moves.place(part, table, scale.groups)
            if y is None:
                y = placed
            elif s == before:
                y = y + placed
            else:
                y = self.moves.insert(y, placed, scale.kept)
            before = s
        assert y is not None  # a schedule has steps
        return y
