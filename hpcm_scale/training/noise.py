"""Quantisation noise that does not depend on how a batch is spread over ranks."""

from dataclasses import dataclass
from math import prod

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
        y_shape, z_shape = noise_shapes(self.model, len(rows), self.crop, self.crop)
        sizes = [prod(shape[1:]) for shape in (y_shape, z_shape)]
        drawn = np.empty((len(rows), sum(sizes)), np.float32)
        for i, row in enumerate(rows):
            place = row * self.world_size + self.rank
            generator = np.random.default_rng((self.seed, step, place))
            generator.random(dtype=np.float32, out=drawn[i])
        drawn -= 0.5
        y, z = torch.from_numpy(drawn).split(sizes, dim=1)
        return y.reshape(y_shape), z.reshape(z_shape)
