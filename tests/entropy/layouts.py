"""Layouts in memory that a tensor may come in."""

import torch
from torch import Tensor


def strided(x: Tensor) -> Tensor:
    """The same numbers two apart in memory and, of four dimensions or more, two of them swapped."""
    swapped = x.transpose(1, -1) if x.dim() > 3 else x
    wide = torch.zeros(*swapped.shape[:-1], 2 * swapped.shape[-1], dtype=x.dtype)
    wide[..., ::2] = swapped
    view = wide[..., ::2]
    return view.transpose(1, -1) if x.dim() > 3 else view
