"""The exact counterparts of what HPCM has not, and the peers' networks consist of."""

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
from hpcm_scale.entropy.exact.convolution import ExactCheckerboardConv, ExactSubpixelConv
from hpcm_scale.entropy.exact.functions import ExactGelu
from hpcm_scale.entropy.exact.hpcm_registry import HPCM, Registry
from hpcm_scale.entropy.exact.layers import ExactRows
from hpcm_scale.entropy.exact.normalisation import ExactInverseGDN, ExactLayerNorm
from hpcm_scale.entropy.exact.window_attention import ExactWindowAttention
from hpcm_scale.models.blocks.checkerboard_context import CheckerboardConv
from hpcm_scale.models.blocks.gdn import GDN
from hpcm_scale.models.blocks.sampling import SubpixelConv
from hpcm_scale.models.blocks.window_attention import WindowAttention
from hpcm_scale.models.linear import Linear

ALL = Registry(
    {
        **HPCM.layers,
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
    },
    {
        **attention_blocks.COMPOSITES,
        **channel_attention.COMPOSITES,
        **frequency_attention.COMPOSITES,
        **linear_attention.COMPOSITES,
        **peer_blocks.COMPOSITES,
        **rwkv_blocks.COMPOSITES,
        **scan_blocks.COMPOSITES,
    },
)
"""Every layer and block that has an exact counterpart."""
