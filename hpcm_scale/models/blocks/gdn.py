"""Generalised divisive normalisation, on (B, C, H, W) tensors.

Source: Ballé, Laparra and Simoncelli, arXiv 1511.06281, with CompressAI's parametrisation, in which
what is stored is bounded and squared.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.density import lower_bound

OFFSET = 2.0**-36
"""Added to what is stored before its root is taken, so that a gradient reaches values of 0."""
BETA_MIN = 1e-6
"""Smallest β."""
INITIAL_GAMMA = 0.1
"""γ of a channel's own square at first; of the others' 0."""


class GDN(nn.Module):
    """v_i / √(β_i + Σ_j γ_ij·v_j²), or with `inverse` v_i · √(the same): the shape stays.

    Stored are β′ (C) and γ′ (C, C), row i of which makes output i: β = max(β′, √(1e-6 + 2⁻³⁶))² −
    2⁻³⁶ and γ = max(γ′, 2⁻¹⁸)² − 2⁻³⁶.
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.full((channels,), (1 + OFFSET) ** 0.5))
        self.gamma = nn.Parameter((INITIAL_GAMMA * torch.eye(channels) + OFFSET).sqrt())

    def forward(self, v: Tensor) -> Tensor:
        beta = lower_bound(self.beta, (BETA_MIN + OFFSET) ** 0.5).square() - OFFSET
        gamma = lower_bound(self.gamma, OFFSET**0.5).square() - OFFSET
        norm = F.conv2d(v.square(), gamma[..., None, None], beta)
        return v * (norm.sqrt() if self.inverse else norm.rsqrt())
