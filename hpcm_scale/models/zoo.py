"""The network of a configuration."""

from collections.abc import Callable
from typing import Any

import torch

from hpcm_scale.config import ModelConfig
from hpcm_scale.config.variants import (
    chosen_model,
    model_config,
    scale_config,
    variants,
    with_rates,
)
from hpcm_scale.models.baselines.charm import Charm
from hpcm_scale.models.baselines.dcvc_dc import DcvcDcIntra
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.hpcm import HPCM
from hpcm_scale.models.peers.dcae import Dcae
from hpcm_scale.models.peers.elic import Elic
from hpcm_scale.models.peers.flic import Flic
from hpcm_scale.models.peers.lalic import Lalic
from hpcm_scale.models.peers.mambavc import Mambavc
from hpcm_scale.models.peers.mlicpp import Mlicpp
from hpcm_scale.models.peers.stf import Stf
from hpcm_scale.models.peers.tcm import Tcm
from hpcm_scale.models.peers.weconvene import Weconvene

__all__ = [
    "ARCHITECTURES",
    "build",
    "chosen_model",
    "model_config",
    "scale_config",
    "variants",
    "with_rates",
]

ARCHITECTURES: dict[str, Callable[[Any], CodecNetwork]] = {
    "hpcm": HPCM,
    "charm": Charm,
    "dcvc-dc-intra": DcvcDcIntra,
    "dcae": Dcae,
    "elic": Elic,
    "flic": Flic,
    "lalic": Lalic,
    "mambavc": Mambavc,
    "mlicpp": Mlicpp,
    "stf": Stf,
    "tcm": Tcm,
    "weconvene": Weconvene,
}


def build(config: ModelConfig) -> CodecNetwork:
    """The network of `config`, initialised by torch's global generator, in channels_last memory."""
    network = ARCHITECTURES[config.architecture](config)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
