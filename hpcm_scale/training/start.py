"""Weights that a run of a narrow network starts from."""

import math

import torch

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.data.stream import TrainStream
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.principal_start import start_from_principal_components
from hpcm_scale.models.zoo import build
from hpcm_scale.training.parametrization import scale_initial, scalings

BATCH = 32
"""Crops read at a time."""
CROPS = 1024
"""Crops of the training data that components are taken from."""


def principal_network(run: RunConfig, model: ModelConfig) -> CodecNetwork:
    """The network of `run` with principal components of its first crops for transforms.

    The same on every rank, as far as their processors agree.

    Args:
        model: its network.

    Raises:
        ConfigError: if the network's transforms are not HPCM's.
        DataError: if the training data cannot be used.
    """
    torch.manual_seed(run.seed)
    network = build(model)
    if scaled := scalings(run, model):
        scale_initial(network, scaled)
    batches = iter(TrainStream(run.data, seed=run.seed, global_batch=BATCH, rank=0, world_size=1))
    seen = torch.cat([next(batches)["crop"] for _ in range(CROPS // BATCH)])
    start_from_principal_components(network, seen.float() / 255, _central_rate(run, model))
    return network


def _central_rate(run: RunConfig, model: ModelConfig) -> float:
    """The λ at which the latents' step is 1: the run's, or where the gains of many rates are 1."""
    rates = model.rates
    return math.exp(sum(map(math.log, rates)) / len(rates)) if rates else run.loss.lmbda
