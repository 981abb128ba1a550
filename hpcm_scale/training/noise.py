"""Quantisation noise that does not depend on how a batch is spread over ranks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.config import ModelConfig
from hpcm_scale.models.codec_network import noise_shapes


@dataclass(frozen=True)
class Noise:
    """Uniform noise in [−½, ½) for y and z, keyed by seed, step and row of the global batch."""

    model: ModelConfig
    crop: int
    """Side of the crops, in pixels."""
    seed: int
    """The run's."""
    rank: int
    world_size: int

    def __call__(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Noise of step `step` for `rows` of this rank's part of the batch.

        Returns:
            y (n, M, crop/16, crop/16) and z (n, N, crop/64, crop/64).
        """
        pinned = torch.cuda.is_available()
        y, z = (
            torch.empty(shape, pin_memory=pinned)
            for shape in noise_shapes(self.model, len(rows), self.crop, self.crop)
        )
        for i, row in enumerate(rows):
            generator = np.random.default_rng((self.seed, step, row * self.world_size + self.rank))
            for part in (y[i], z[i]):
                generator.random(dtype=np.float32, out=part.view(-1).numpy())
        return y.sub_(0.5), z.sub_(0.5)
