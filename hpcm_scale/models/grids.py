"""Moving latents between grids and steps: strided slices and cached index tables, no masks.

Tensors are (B, C, H, W) in channels_last memory, so a position's channel groups lie side by side
and every move below copies runs of channels.
"""

from functools import lru_cache

import torch
from torch import Tensor

from hpcm_scale.models.schedule import Offsets, Schedule, Table


# Tables are made once for all callers, so outside inference mode: training could not save for its
# backward pass what an encoder made.
@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def _group_index(table: Table, height: int, width: int, device: torch.device) -> Tensor:
    """(1, H, W, 1, k, 1) int64: the channel groups that `table` activates at each position."""
    block = torch.tensor(table, device=device)  # (k, p, p)
    period = block.shape[-1]
    tiled = block.repeat(1, -(-height // period), -(-width // period))[:, :height, :width]
    return tiled.permute(1, 2, 0)[None, :, :, None, :, None].contiguous()


def _by_group(x: Tensor, parts: int, groups: int) -> Tensor:
    """(B, parts·groups·C, H, W) as (B, H, W, parts, groups, C); a view in channels_last memory."""
    b, channels, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, h, w, parts, groups, channels // (parts * groups))


def _from_groups(x: Tensor) -> Tensor:
    """The inverse of `_by_group`: (B, H, W, parts, groups, C) as (B, parts·groups·C, H, W)."""
    return x.flatten(3).permute(0, 3, 1, 2)


def take(x: Tensor, table: Table, groups: int, parts: int = 1) -> Tensor:
    """Take a step's latents, dense: (B, parts·M, H, W) -> (B, parts·k·M/groups, H, W).

    `parts` stacked tensors of M channels, such as (scale | mean), are taken in one move.
    """
    v = _by_group(x, parts, groups)
    index = _group_index(table, v.shape[1], v.shape[2], x.device)
    return _from_groups(v.gather(4, index.expand(*v.shape[:4], -1, v.shape[5])))


def place(x: Tensor, table: Table, groups: int) -> Tensor:
    """A step's dense tensor at its places, else 0: (B, k·M/groups, H, W) -> (B, M, H, W)."""
    v = _by_group(x, 1, len(table))
    index = _group_index(table, v.shape[1], v.shape[2], x.device)
    zeros = v.new_zeros(*v.shape[:4], groups, v.shape[5])
    return _from_groups(zeros.scatter(4, index.expand_as(v), v))


def extract(x: Tensor, kept: Offsets, parts: int = 1) -> Tensor:
    """The smaller grid within a larger one: (B, parts·M, 2h, 2w) -> (B, parts·M, h, w)."""
    v = _by_group(x, parts, len(kept))
    groups = [v[:, r::2, c::2, :, g] for g, (r, c) in enumerate(kept)]
    return _from_groups(torch.stack(groups, dim=4))


def insert(small: Tensor, large: Tensor, kept: Offsets, parts: int = 1) -> Tensor:
    """`large` (B, parts·M, 2h, 2w) with `small` (B, parts·M, h, w) where it was kept from."""
    out = _by_group(large, parts, len(kept)).clone()
    v = _by_group(small, parts, len(kept))
    for g, (r, c) in enumerate(kept):
        out[:, r::2, c::2, :, g] = v[..., g, :]
    return _from_groups(out)


def insert_into_zeros(small: Tensor, kept: Offsets) -> Tensor:
    """`small` (B, M, h, w) where it was kept from, zeros elsewhere: (B, M, 2h, 2w)."""
    b, m, h, w = small.shape
    empty = small.new_zeros(b, 2 * h, 2 * w, m).permute(0, 3, 1, 2)
    return insert(small, empty, kept)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _misplacement(height: int, width: int, device: torch.device) -> Tensor:
    """(1, H·W, 1, 8, 1) int64: where the published program reads the value for each S2 position."""
    # On the CPU whatever the default device: picking by mask needs values, and meta has none.
    cpu = torch.device("cpu")
    position = torch.arange(height * width, device=cpu).view(height, width)
    rows = torch.arange(height, device=cpu)[:, None] % 2
    columns = torch.arange(width, device=cpu)[None, :] % 2

    def all_but(offset: tuple[int, int]) -> Tensor:
        return position[~((rows == offset[0]) & (columns == offset[1]))]

    source = position.flatten().repeat(8, 1)
    for group in range(8):
        target = all_but(((0, 0), (0, 1), (1, 0), (1, 1))[group // 2])
        source[group, target] = all_but((0, group // 4))
    return source.T.reshape(1, height * width, 1, 8, 1).to(device)


def misplace(params: Tensor) -> Tensor:
    """Hyper-parameters on the S2 grid as the published program hands them out: (B, 2M, h, w).

    Per channel, the values at the S2 positions whose offset in a 2 × 2 block is not (0, group // 4)
    are read row by row and written row by row to the positions that S1 did not code. Published
    checkpoints were trained with this; models trained here use each position's own values.
    """
    v = _by_group(params, 2, 8)
    b, h, w, *rest = v.shape
    flat = v.reshape(b, h * w, *rest)
    index = _misplacement(h, w, params.device).expand(b, -1, 2, -1, rest[-1])
    return _from_groups(flat.gather(1, index).view_as(v))


class StepGrids:
    """The latents of an image as the dense tensors that the coding steps handle, and back."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @property
    def step_scales(self) -> tuple[int, ...]:
        """The scale each step belongs to, in coding order, counted from 0."""
        return tuple(s for s, _ in self.schedule.steps)

    def pyramid(self, y: Tensor, parts: int = 1) -> list[Tensor]:
        """(B, parts·M, H, W) on every scale's grid, smallest first; the last is `y` itself."""
        grids = [y]
        for scale in reversed(self.schedule.scales[1:]):
            grids.insert(0, extract(grids[0], scale.kept, parts))
        return grids

    def narrow(self, x: Tensor, scale: int, parts: int = 1) -> Tensor:
        """Extract the grid of `scale` from the largest: (B, parts·M, H, W) -> (.., h, w)."""
        for larger in reversed(self.schedule.scales[scale + 1 :]):
            x = extract(x, larger.kept, parts)
        return x

    def widen(self, x: Tensor, scale: int) -> Tensor:
        """A tensor on the grid of `scale` within the largest, zeros elsewhere."""
        for larger in self.schedule.scales[scale + 1 :]:
            x = insert_into_zeros(x, larger.kept)
        return x

    def split(self, y: Tensor) -> list[Tensor]:
        """(B, M, H, W) -> one dense (B, C_k, h_k, w_k) tensor a step, in coding order."""
        grids = self.pyramid(y)
        return [
            take(grids[s], table, self.schedule.scales[s].groups)
            for s, table in self.schedule.steps
        ]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        y = None
        for (s, table), part in zip(self.schedule.steps, parts, strict=True):
            scale = self.schedule.scales[s]
            placed = place(part, table, scale.groups)
            if y is None:
                y = placed
            elif y.shape[-1] == placed.shape[-1]:
                y = y + placed
            else:
                y = insert(y, placed, scale.kept)
        assert y is not None  # a schedule has steps
        return y
