"""Moving latents between grids and steps: strided slices and cached index tables, no masks.

Tensors are (B, C, H, W) in channels_last memory, so a position's channel groups lie side by side
and every move below copies runs of channels.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hpcm_scale.models import step_grids
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


class _Put(torch.autograd.Function):
    """`put` in one operation each way, where adding to what `place` gives takes four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, into: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return into.scatter(4, index.expand_as(x), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        (index,) = ctx.saved_tensors
        where = index.expand(*grad.shape[:4], -1, grad.shape[5])
        # What was there before is a constant 0: its gradient goes nowhere.
        return grad.gather(4, where), grad, None


def put(x: Tensor, into: Tensor, table: Table, groups: int) -> Tensor:
    """`into` (B, M, H, W), constant 0 at a step's places, with the step's dense tensor there."""
    v = _by_group(x, 1, len(table))
    index = _group_index(table, v.shape[1], v.shape[2], x.device)
    return _from_groups(_Put.apply(v, _by_group(into, 1, groups), index))


class _Pick(torch.autograd.Function):
    """Rows of `x` (B, n, c) by an index (m,) without repetitions: (B, m, c)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(1, index, grad), None


class _Insert(torch.autograd.Function):
    """`large` (B, n, c) with the rows of `small` (B, m, c) at an index (m,)."""

    @staticmethod
    def forward(ctx: Any, small: Tensor, large: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return large.index_copy(1, index, small)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        (index,) = ctx.saved_tensors
        of_large = grad.index_fill(1, index, 0) if ctx.needs_input_grad[1] else None
        return grad.index_select(1, index), of_large, None


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _kept_rows(kept: Offsets, parts: int, height: int, width: int, device: torch.device) -> Tensor:
    """(H/2·W/2·parts·groups,) int64: what a smaller grid keeps of (H, W, parts, groups) rows."""
    rows = torch.arange(height * width * parts * len(kept), device=device)
    rows = rows.view(height, width, parts, len(kept))
    groups = [rows[r::2, c::2, :, g] for g, (r, c) in enumerate(kept)]
    return torch.stack(groups, dim=3).flatten()


def _rows(x: Tensor, parts: int, groups: int) -> Tensor:
    """(B, parts·groups·C, H, W) as (B, H·W·parts·groups, C); a view in channels_last memory."""
    b, channels, _, _ = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, -1, channels // (parts * groups))


def _from_rows(rows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_rows`."""
    return rows.reshape(len(rows), height, width, -1).permute(0, 3, 1, 2)


def extract(x: Tensor, kept: Offsets, parts: int = 1) -> Tensor:
    """The smaller grid within a larger one: (B, parts·M, 2h, 2w) -> (B, parts·M, h, w)."""
    height, width = x.shape[-2:]
    index = _kept_rows(kept, parts, height, width, x.device)
    picked = _Pick.apply(_rows(x, parts, len(kept)), index)
    return _from_rows(picked, height // 2, width // 2)


def insert(small: Tensor, large: Tensor, kept: Offsets, parts: int = 1) -> Tensor:
    """`large` (B, parts·M, 2h, 2w) with `small` (B, parts·M, h, w) where it was kept from."""
    height, width = large.shape[-2:]
    index = _kept_rows(kept, parts, height, width, large.device)
    rows = (_rows(x, parts, len(kept)) for x in (small, large))
    return _from_rows(_Insert.apply(*rows, index), height, width)


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


class _Reorder(torch.autograd.Function):
    """The rows of x (B, n, c) in another order: given the order and its inverse, (n,) both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (inverse,) = ctx.saved_tensors
        return grad.index_select(1, inverse), None, None


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _coding_order(
    schedule: Schedule, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(H·W·groups,) int64 twice: the rows of `_rows` in the order of coding, and the inverse.

    Found by sending the rows' numbers the way of the latents, scale by scale.
    """
    groups = math.lcm(*(scale.groups for scale in schedule.scales))
    cpu = torch.device("cpu")  # whatever the default device: sorting needs values
    numbers = torch.arange(height * width * groups, device=cpu).view(1, height, width, groups)
    grids = [numbers.permute(0, 3, 1, 2)]
    for scale in reversed(schedule.scales[1:]):
        grids.insert(0, extract(grids[0], scale.kept))
    taken = [take(grids[s], table, schedule.scales[s].groups) for s, table in schedule.steps]
    order = torch.cat([part.permute(0, 2, 3, 1).flatten() for part in taken])
    return order.to(device), order.argsort().to(device)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the channels: (B, 2C, H, W) -> (B, C, H, W) twice."""
    first, second = x.chunk(2, dim=1)
    return first, second


class TorchMoves:
    """The moves of this module, as `StepGrids` takes them."""

    take = staticmethod(take)
    place = staticmethod(place)
    put = staticmethod(put)
    extract = staticmethod(extract)
    insert = staticmethod(insert)
    insert_into_zeros = staticmethod(insert_into_zeros)
    misplace = staticmethod(misplace)
    halves = staticmethod(halves)


class StepGrids(step_grids.StepGrids[Tensor]):
    """Latents (B, M, H, W) as one dense (B, C_k, h_k, w_k) tensor a step, and back."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule, TorchMoves())

    def split(self, y: Tensor) -> list[Tensor]:
        """(B, M, H, W) -> one dense (B, C_k, h_k, w_k) tensor a step, in coding order."""
        return self.line_up(y)[1]

    def line_up(self, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The latents in the order of coding, (B, latents of an image), and what `split` gives.

        All in one move: each step's tensor is a view of that order.
        """
        height, width = y.shape[-2:]
        groups = math.lcm(*(scale.groups for scale in self.schedule.scales))
        order = _coding_order(self.schedule, height, width, y.device)
        rows = _Reorder.apply(_rows(y, 1, groups), *order)
        shapes, sizes = [], []
        for s, table in self.schedule.steps:
            side = 1 << (len(self.schedule.scales) - 1 - s)
            h, w = height // side, width // side
            shapes.append((h, w))
            sizes.append(h * w * len(table) * groups // self.schedule.scales[s].groups)
        parts = rows.split(sizes, dim=1)
        steps = [_from_rows(part, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return rows.flatten(1), steps
