"""The exact counterparts of the layers that HPCM consists of."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from hpcm_scale.entropy.exact.attention import ExactWindowFusion
from hpcm_scale.entropy.exact.composite import Composite
from hpcm_scale.entropy.exact.convolution import ExactDeconv, exact_conv
from hpcm_scale.entropy.exact.layers import ExactDWConvRB, ExactLinear, ExactPConvRB, ExactUp
from hpcm_scale.models.blocks.resampling import Conv1x1, Up2x2
from hpcm_scale.models.blocks.residual import DWConvRB, PConvRB
from hpcm_scale.models.context import WindowFusion


class Registry(NamedTuple):
    """The layers and blocks of some architectures, and what computes them exactly."""

    layers: Mapping[type[nn.Module], Callable[..., nn.Module]]
    """Layers -> functions of (layer, name, kernels) that give their exact counterparts."""
    blocks: Mapping[type[nn.Module], Callable[..., Composite]]
    """Blocks -> functions of (block, its exact parts, name, kernels) that do so."""


HPCM = Registry(
    {
        Conv1x1: ExactLinear,
        Up2x2: ExactUp,
        DWConvRB: ExactDWConvRB,
        PConvRB: ExactPConvRB,
        WindowFusion: ExactWindowFusion,
        nn.Conv2d: exact_conv,
        nn.ConvTranspose2d: ExactDeconv,
    },
    {},
)
"""What HPCM and the baselines on its transforms consist of."""
