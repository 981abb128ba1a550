"""The rates that the crops of a step are trained at, whichever rank they are on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

STREAM = 1
"""Keeps these draws apart from others of one seed and step."""


@dataclass(frozen=True)
class RateDraws:
    """Places among a network's rates, keyed by seed, step and row of the global batch.

    The rows of a batch share out the range evenly: each has a part of its own, in random order.
    """

    rates: Sequence[float]
    """λ of the gain vectors."""
    seed: int
    """The run's."""
    batch: int
    """Rows of the global batch."""
    rank: int
    world_size: int

    def __call__(self, step: int, rows: range) -> Tensor | None:
        """Places (n,) in [0, len(rates) − 1] of `rows` of this rank; None for one rate."""
        if not self.rates:
            return None
        generator = np.random.default_rng((self.seed, step, self.batch, STREAM))
        drawn = (generator.permutation(self.batch) + generator.random(self.batch)) / self.batch
        mine = drawn[[row * self.world_size + self.rank for row in rows]]
        return torch.from_numpy(mine * (len(self.rates) - 1)).float()
