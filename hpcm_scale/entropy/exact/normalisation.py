"""Normalisation by roots of sums of squares in exact arithmetic: LayerNorm and inverse GDN.

Sums of squares are integers, whatever adds them up; a root is the largest integer whose square they
reach, whatever finds it.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.grid import EXACT, GRID, GRID_BITS, LIMIT, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.gdn import BETA_MIN, GDN, OFFSET

LARGEST_CHANNELS = 1024
"""Most channels of a LayerNorm: so many squares, times their number, stay below 2^62."""
SMALL_BITS, LIFT = 40, 10
"""A sum of squares below 2^40 is multiplied by 2^20, so that its root has digits enough."""
NORMAL_BITS, GAIN_BITS = 16, 12
"""Normalised values are integers over 2^16, a LayerNorm's gains over 2^12."""
SQUARE_BITS = 14
"""GDN takes squares as integers over 2^14."""
GAMMA_BITS = 15
"""The weights that one output of GDN gives squares add up to at most 2^15, but for rounding."""
LARGEST_GAMMA_SHIFT = 24
LARGEST_NORM = 1 << 52
"""GDN's sums stay below this: the root of any of them is then right, if it is rounded once."""


def floor_root(x: Tensor) -> Tensor:
    """⌊√x⌋ of non-negative int64 integers below 2^62."""
    root = x.double().sqrt_().long()
    # Within one of it, however the machine rounds roots.
    root -= (root * root > x).long()
    return root + ((root + 1) * (root + 1) <= x).long()


class ExactLayerNorm(nn.Module):
    """An nn.LayerNorm over the channels of positions (..., C)."""

    def __init__(self, norm: nn.LayerNorm, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        self._channels = len(norm.weight)
        if self._channels > LARGEST_CHANNELS:
            raise CheckpointError(
                f"{name}: normalises {self._channels} channels; exact arithmetic allows "
                f"{LARGEST_CHANNELS}"
            )
        gain, offset = (p.detach().double().cpu().numpy() for p in (norm.weight, norm.bias))
        gain = np.rint(gain * (1 << GAIN_BITS))
        offset = np.rint(offset * (1 << NORMAL_BITS + GAIN_BITS))
        # No value is further from the mean than the root of C standard deviations.
        largest = (1 << NORMAL_BITS + 1) * math.sqrt(self._channels)
        bound = float((np.abs(gain) * largest + np.abs(offset)).max())
        if not bound < EXACT:
            raise CheckpointError(
                f"{name}: its products could reach 2^{math.log2(bound):.1f}, exact arithmetic "
                "allows less than 2^53; the training diverged, export an earlier checkpoint"
            )
        self._gain, self._offset = (
            torch.from_numpy(p).to(norm.weight.device) for p in (gain, offset)
        )
        self._least = round(norm.eps * (GRID * self._channels) ** 2)
        if self._least < 1:
            raise CheckpointError(f"{name}: {norm} has no exact arithmetic")

    def forward(self, t: Tensor) -> Tensor:
        """A grid tensor (..., C) stays."""
        count = self._channels
        wide = t.double()
        total = wide.sum(-1, keepdim=True)
        squares = wide.square().sum(-1, keepdim=True)
        spread = squares.long() * count - total.long().square() + self._least
        small = spread < 1 << SMALL_BITS
        root = floor_root(torch.where(small, spread << 2 * LIFT, spread)).double()
        # Powers of two change no quotient's rounding.
        root.mul_(torch.where(small, 2.0 ** -(NORMAL_BITS + LIFT), 2.0**-NORMAL_BITS))
        normal = wide.mul_(count).sub_(total).div_(root).round_()
        scaled = normal.mul_(self._gain).add_(self._offset)
        scaled.mul_(2.0 ** (GRID_BITS - NORMAL_BITS - GAIN_BITS))
        return requantize(scaled).float()


class ExactInverseGDN(nn.Module):
    """A GDN that multiplies: v_i · √(β_i + Σ_j γ_ij·v_j²), of maps (B, C, H, W)."""

    def __init__(self, gdn: GDN, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        if not gdn.inverse:
            raise CheckpointError(f"{name}: a GDN that divides has no exact arithmetic")
        beta, gamma = (p.detach().double().cpu().numpy() for p in (gdn.beta, gdn.gamma))
        beta = np.square(np.maximum(beta, math.sqrt(BETA_MIN + OFFSET))) - OFFSET
        gamma = np.square(np.maximum(gamma, math.sqrt(OFFSET))) - OFFSET
        sums = np.array([math.fsum(row) for row in gamma])
        _, exponent = np.frexp(sums)
        shift = np.clip(GAMMA_BITS - exponent, 0, LARGEST_GAMMA_SHIFT)
        shift[sums == 0] = LARGEST_GAMMA_SHIFT
        shift -= shift % 2  # the root of 2^shift is a power of two
        gamma = np.rint(np.ldexp(gamma, shift[:, None]))
        beta = np.rint(np.ldexp(beta, shift + SQUARE_BITS))
        bound = gamma.sum(axis=1) * (LIMIT**2 >> 2 * GRID_BITS - SQUARE_BITS) + beta
        if not bound.max() < LARGEST_NORM:  # a NaN is no bound either
            raise CheckpointError(
                f"{name}: its squares could add up to 2^{np.log2(bound.max()):.1f}, exact "
                "arithmetic allows less than 2^52; the training diverged, export an earlier "
                "checkpoint"
            )
        unit = np.ldexp(1.0, -(shift + SQUARE_BITS) // 2)
        self._gamma, self._beta, self._unit = (
            torch.from_numpy(p).to(gdn.beta.device) for p in (gamma.T.copy(), beta, unit)
        )

    def forward(self, x: Tensor) -> Tensor:
        """A grid tensor (B, C, H, W) stays."""
        v = x.permute(0, 2, 3, 1)
        wide = v.reshape(-1, v.shape[-1]).double()
        squares = wide.square().mul_(2.0 ** (SQUARE_BITS - 2 * GRID_BITS)).round_()
        norm = torch.addmm(self._beta, squares, self._gamma)
        root = floor_root(norm.long()).double()
        out = requantize(root.mul_(wide).mul_(self._unit)).float()
        return out.view(v.shape).permute(0, 3, 1, 2)
