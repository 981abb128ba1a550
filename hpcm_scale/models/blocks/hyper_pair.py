"""A hyper synthesis of two nets of one shape, for means and for scales."""

import torch
from torch import Tensor, nn

from hpcm_scale.models.transforms import ModuleCall, Transform, call


class HyperPair(nn.Module):
    """h_s: ẑ (B, N, h/4, w/4) -> (mean | scale), each (B, C, h, w)."""

    def __init__(self, mean: Transform, scale: Transform) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, z_hat: Tensor, run: ModuleCall = call) -> Tensor:
        return torch.cat([self.mean(z_hat, run), self.scale(z_hat, run)], dim=1)
