"""Gain vectors: one network for every rate.

Latents are multiplied by a gain vector before they are coded, and divided by it before synthesis,
as if each rate had its own quantisation step in each channel; coding steps and hyperprior see
latents that are already scaled, and know nothing of it. Source: arXiv 2003.02012 (G-VAE), whose
encoder and decoder have vectors of their own; here one serves both ways.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn


def lambdas_at(rates: Sequence[float], places: Tensor) -> Tensor:
    """λ (B,) at places (B,) in [0, len − 1] among `rates`, by logarithms between two of them."""
    logs = _logs(tuple(rates), places.device)
    return _between(logs, places.double()).exp().to(places.dtype)


# A copy to a GPU from memory that is not pinned stops the host: one for all steps of a run.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _logs(rates: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(rates, dtype=torch.float64).log().to(device)


class Gains(nn.Module):
    """The gain vector of any place among the rates.

    A vector begins at √(λ/λ₀) in every channel: at high rate the quantisation step that suits λ is
    proportional to 1/√λ.

    Args:
        channels: M, of the latents.
        rates: λ of each vector, increasing.
        centre: λ₀, at which the gains begin at 1; the geometric mean of the rates if not given.
    """

    def __init__(self, channels: int, rates: Sequence[float], centre: float | None = None) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.logs = nn.Parameter(torch.empty(len(rates), channels))
        self.reset(centre)

    def reset(self, centre: float | None = None) -> None:
        """Reset to gains of 1 at λ = `centre`."""
        with torch.no_grad():
            self.logs.copy_(self.start(centre)[:, None].expand_as(self.logs))

    def start(self, centre: float | None = None) -> Tensor:
        """Logarithms (rates,) that the gains begin with, equal in all channels."""
        # As plain numbers: arithmetic on torch's meta device loads its compiler, for a second.
        logs = [math.log(rate) for rate in self.rates]
        middle = sum(logs) / len(logs) if centre is None else math.log(centre)
        return torch.tensor([(log - middle) / 2 for log in logs])

    def forward(self, places: Tensor) -> Tensor:
        """Gains (B, M, 1, 1) in float32 at places (B,) in [0, len(rates) − 1]."""
        return _between(self.logs.float(), places).exp()[..., None, None]


def _between(values: Tensor, places: Tensor) -> Tensor:
    """Rows of `values` (R, ...) at places (B,), linear between neighbours: (B, ...)."""
    low = places.floor().clamp(0, len(values) - 2).long()
    share = (places - low).to(values.dtype).view(-1, *(1 for _ in values.shape[1:]))
    return values[low] * (1 - share) + values[low + 1] * share
