"""The exact counterpart of every kind of layer and block that has one."""

from collections.abc import Callable

from torch import nn

from hpcm_scale.entropy.exact import (
    attention_blocks,
    channel_attention,
    frequency_attention,
    linear_attention,
    peer_blocks,
    rwkv_blocks,
    scan_blocks,
)
from hpcm_scale.entropy.exact.attention import ExactWindowFusion
from hpcm_scale.entropy.exact.composite import Composite
from hpcm_scale.entropy.exact.convolution import (
    ExactCheckerboardConv,
    ExactDeconv,
    ExactSubpixelConv,
    exact_conv,
)
from hpcm_scale.entropy.exact.functions import ExactGelu
from hpcm_scale.entropy.exact.layers import (
    ExactDWConvRB,
    ExactLinear,
    ExactPConvRB,
    ExactRows,
    ExactUp,
)
from hpcm_scale.entropy.exact.normalisation import ExactInverseGDN, ExactLayerNorm
from hpcm_scale.entropy.exact.window_attention import ExactWindowAttention
from hpcm_scale.models.blocks.checkerboard_context import CheckerboardConv
from hpcm_scale.models.blocks.gdn import GDN
from hpcm_scale.models.blocks.resampling import Conv1x1, Up2x2
from hpcm_scale.models.blocks.residual import DWConvRB, PConvRB
from hpcm_scale.models.blocks.sampling import SubpixelConv
from hpcm_scale.models.blocks.window_attention import WindowAttention
from hpcm_scale.models.context import WindowFusion
from hpcm_scale.models.linear import Linear

LAYERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    Conv1x1: ExactLinear,
    Up2x2: ExactUp,
    DWConvRB: ExactDWConvRB,
    PConvRB: ExactPConvRB,
    WindowFusion: ExactWindowFusion,
    nn.Conv2d: exact_conv,
    nn.ConvTranspose2d: ExactDeconv,
    CheckerboardConv: ExactCheckerboardConv,
    SubpixelConv: ExactSubpixelConv,
    Linear: ExactRows,
    nn.Linear: ExactRows,
    nn.GELU: ExactGelu,
    nn.LayerNorm: ExactLayerNorm,
    GDN: ExactInverseGDN,
    WindowAttention: ExactWindowAttention,
    **attention_blocks.LAYERS,
    **channel_attention.LAYERS,
    **frequency_attention.LAYERS,
    **linear_attention.LAYERS,
    **rwkv_blocks.LAYERS,
}
"""Layers of a network -> functions of (layer, name, kernels) that give their exact counterparts."""
BLOCKS: dict[type[nn.Module], Callable[..., Composite]] = {
    **attention_blocks.COMPOSITES,
    **channel_attention.COMPOSITES,
    **frequency_attention.COMPOSITES,
    **linear_attention.COMPOSITES,
    **peer_blocks.COMPOSITES,
    **rwkv_blocks.COMPOSITES,
    **scan_blocks.COMPOSITES,
}
"""Blocks -> functions of (block, its exact parts, name, kernels) that do so."""
