"""Latents coded slice after slice of their channels, each whole or in two checkerboard passes."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor


def joined(steps: list[Tensor]) -> Tensor:
    """Dense tensors (B, C_k, h_k, w_k) of all steps in one: (B, latents of an image)."""
    rows = [step.permute(0, 2, 3, 1).flatten(1, 2) for step in steps]  # (B, h_k·w_k, C_k)
    # Those of equally many channels first: flattened one by one, parts of wider rows are copied.
    runs = [list(run) for _, run in groupby(rows, key=lambda row: row.shape[2])]
    return torch.cat([torch.cat(run, dim=1).flatten(1) for run in runs], dim=1)


def take_parity(x: Tensor, parity: int) -> Tensor:
    """The positions of one parity, dense: (B, C, H, W) -> (B, C, H, W/2).

    Args:
        parity: of row + column: 0 or 1. Of every row its W/2 positions stay, in column order.
    """
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1)
    even, odd = rows[:, 0::2, parity::2], rows[:, 1::2, 1 - parity :: 2]
    return torch.stack([even, odd], dim=2).reshape(b, h, w // 2, c).permute(0, 3, 1, 2)


def place_parity(x: Tensor, parity: int) -> Tensor:
    """`take_parity`'s dense positions at their places, else 0: (B, C, H, W/2) -> (B, C, H, W)."""
    b, c, h, half = x.shape
    rows = x.permute(0, 2, 3, 1)
    out = rows.new_zeros(b, h, 2 * half, c)
    out[:, 0::2, parity::2] = rows[:, 0::2]
    out[:, 1::2, 1 - parity :: 2] = rows[:, 1::2]
    return out.permute(0, 3, 1, 2)


class SlicePartition:
    """The latents of an image as slices of their channels, one after the other.

    Args:
        sizes: channels of each slice.
        anchors: parity of row + column of the positions of a slice that are coded first; the
            others are a step of their own. None codes a slice in one step.
    """

    def __init__(self, sizes: Sequence[int], anchors: int | None = None) -> None:
        self.sizes = tuple(sizes)
        self.anchors = anchors

    @property
    def step_scales(self) -> tuple[int, ...]:
        """The scale each step belongs to: all to the one there is."""
        return (0,) * len(self.sizes) * (1 if self.anchors is None else 2)

    def split(self, y: Tensor) -> list[Tensor]:
        """(B, M, H, W) -> one dense tensor a step, in coding order: (B, C_k, H, W or W/2)."""
        parts = y.split(self.sizes, dim=1)
        if self.anchors is None:
            return [part.contiguous(memory_format=torch.channels_last) for part in parts]
        parities = (self.anchors, 1 - self.anchors)
        return [take_parity(part, parity) for part in parts for parity in parities]

    def line_up(self, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`joined` of what `split` gives, and that."""
        parts = self.split(y)
        return joined(parts), parts

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        if self.anchors is not None:
            pairs = zip(parts[0::2], parts[1::2], strict=True)
            parts = [
                place_parity(first, self.anchors) + place_parity(second, 1 - self.anchors)
                for first, second in pairs
            ]
        return torch.cat(parts, dim=1)
