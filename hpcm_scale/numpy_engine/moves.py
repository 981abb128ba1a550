"""Moving latents between grids and steps, on arrays (H, W, C): `models/grids.py` in NumPy."""

from functools import lru_cache

import numpy as np

from hpcm_scale.models import step_grids
from hpcm_scale.models.schedule import Offsets, Schedule, Table

MISPLACED_GROUPS = 8


@lru_cache(maxsize=64)
def _group_index(table: Table, height: int, width: int) -> np.ndarray:
    """(H, W, k): the channel groups that `table` activates at each position."""
    block = np.array(table)  # (k, p, p)
    period = block.shape[-1]
    tiled = np.tile(block, (1, -(-height // period), -(-width // period)))
    return np.ascontiguousarray(tiled[:, :height, :width].transpose(1, 2, 0))


def _by_group(x: np.ndarray, parts: int, groups: int) -> np.ndarray:
    """(H, W, parts·groups·C) as (H, W, parts, groups, C), a view."""
    h, w, channels = x.shape
    return x.reshape(h, w, parts, groups, channels // (parts * groups))


class NumpyMoves:
    """The moves of `Moves`, each as `models/grids.py` has it for torch."""

    def take(self, x: np.ndarray, table: Table, groups: int, parts: int = 1) -> np.ndarray:
        """(H, W, parts·M) -> (H, W, parts·k·M/groups)."""
        v = _by_group(x, parts, groups)
        index = _group_index(table, *x.shape[:2])[:, :, None, :, None]
        return np.take_along_axis(v, index, axis=3).reshape(*x.shape[:2], -1)

    def place(self, x: np.ndarray, table: Table, groups: int) -> np.ndarray:
        """(H, W, k·M/groups) -> (H, W, M)."""
        v = _by_group(x, 1, len(table))[:, :, 0]
        out = np.zeros((*v.shape[:2], groups, v.shape[3]), x.dtype)
        np.put_along_axis(out, _group_index(table, *x.shape[:2])[..., None], v, axis=2)
        return out.reshape(*x.shape[:2], -1)

    def put(self, x: np.ndarray, into: np.ndarray, table: Table, groups: int) -> np.ndarray:
        """(H, W, k·M/groups) into (H, W, M)."""
        v = _by_group(x, 1, len(table))[:, :, 0]
        out = into.copy()
        index = _group_index(table, *x.shape[:2])[..., None]
        np.put_along_axis(_by_group(out, 1, groups)[:, :, 0], index, v, axis=2)
        return out

    def extract(self, x: np.ndarray, kept: Offsets, parts: int = 1) -> np.ndarray:
        """(2h, 2w, parts·M) -> (h, w, parts·M)."""
        v = _by_group(x, parts, len(kept))
        groups = [v[r::2, c::2, :, g] for g, (r, c) in enumerate(kept)]
        return np.stack(groups, axis=3).reshape(x.shape[0] // 2, x.shape[1] // 2, -1)

    def insert(
        self, small: np.ndarray, large: np.ndarray, kept: Offsets, parts: int = 1
    ) -> np.ndarray:
        """(h, w, parts·M) into (2h, 2w, parts·M)."""
        out = large.copy()
        target, v = _by_group(out, parts, len(kept)), _by_group(small, parts, len(kept))
        for g, (r, c) in enumerate(kept):
            target[r::2, c::2, :, g] = v[..., g, :]
        return out

    def insert_into_zeros(self, small: np.ndarray, kept: Offsets) -> np.ndarray:
        """(h, w, M) -> (2h, 2w, M)."""
        h, w, m = small.shape
        return self.insert(small, np.zeros((2 * h, 2 * w, m), small.dtype), kept)

    def misplace(self, params: np.ndarray) -> np.ndarray:
        """(h, w, 2M) stays."""
        v = _by_group(params, 2, MISPLACED_GROUPS)
        out = v.copy()
        rows, places = (np.arange(side) % 2 for side in params.shape[:2])

        def all_but(offset: tuple[int, int]) -> np.ndarray:
            return ~((rows[:, None] == offset[0]) & (places == offset[1]))

        for group in range(MISPLACED_GROUPS):
            target = all_but(((0, 0), (0, 1), (1, 0), (1, 1))[group // 2])
            out[target, :, group] = v[all_but((0, group // 4)), :, group]
        return out.reshape(params.shape)

    def halves(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 2C) -> (H, W, C) twice."""
        c = x.shape[2] // 2
        return x[..., :c], x[..., c:]


class StepGrids(step_grids.StepGrids[np.ndarray]):
    """Latents (H, W, M) as one dense (h_k, w_k, C_k) array a step, and back."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule, NumpyMoves())
