"""The network of a configuration."""

from collections.abc import Callable
from importlib import import_module
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
from hpcm_scale.models.codec_network import CodecNetwork

__all__ = [
    "ARCHITECTURES",
    "build",
    "chosen_model",
    "model_config",
    "network_class",
    "scale_config",
    "variants",
    "with_rates",
]

ARCHITECTURES = {
    "hpcm": ("hpcm", "HPCM"),
    "charm": ("baselines.charm", "Charm"),
    "dcvc-dc-intra": ("baselines.dcvc_dc", "DcvcDcIntra"),
    "dcae": ("peers.dcae", "Dcae"),
    "elic": ("peers.elic", "Elic"),
    "flic": ("peers.flic", "Flic"),
    "lalic": ("peers.lalic", "Lalic"),
    "mambavc": ("peers.mambavc", "Mambavc"),
    "mlicpp": ("peers.mlicpp", "Mlicpp"),
    "stf": ("peers.stf", "Stf"),
    "tcm": ("peers.tcm", "Tcm"),
    "weconvene": ("peers.weconvene", "Weconvene"),
}
"""Module here and class of each architecture's network."""


def network_class(architecture: str) -> Callable[[Any], CodecNetwork]:
    """The class of an architecture's network; its module is imported when it is first asked for."""
    module, name = ARCHITECTURES[architecture]
    return getattr(import_module(f"hpcm_scale.models.{module}"), name)


def build(config: ModelConfig) -> CodecNetwork:
    """The network of `config`, initialised by torch's global generator, in channels_last memory."""
    network = network_class(config.architecture)(config)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
