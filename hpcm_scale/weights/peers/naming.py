"""Names shared by the checkpoints of all peers: CompressAI's density of z, blocks, buffers."""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from hpcm_scale.config import ModelConfig
from hpcm_scale.models.zoo import build

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression in our name of a parameter, and what the published one has there."""

IGNORED = (
    r"gaussian_conditional\..*|.*\.(bound|target|scale_table|scale_bound|pedestal"
    r"|_offset|_quantized_cdf|_cdf_length)|.*\.(beta|gamma)_reparam\..*"
)
"""CompressAI's buffers: bounds, and tables that export computes again."""

SYNONYMS = (
    (re.compile(r"^entropy_bottleneck\.matrices\."), "entropy_bottleneck._matrix"),
    (re.compile(r"^entropy_bottleneck\.biases\."), "entropy_bottleneck._bias"),
    (re.compile(r"^entropy_bottleneck\.factors\."), "entropy_bottleneck._factor"),
)
"""The density's tensors as CompressAI names them from version 1.2.7 on, and up to 1.2.6."""

DENSITY: tuple[Rule, ...] = (
    (r"^z_prior\.quantiles$", "entropy_bottleneck.quantiles"),
    (r"^z_prior\.(matrix|bias|factor)", r"entropy_bottleneck._\1"),
)
"""The factorised density of z."""

SAMPLING: tuple[Rule, ...] = ((r"\.(subpel_conv|upsample)\.(weight|bias)$", r".\1.0.\2"),)
"""`ResidualUp`, whose pixel shuffle the published programs keep in a list with its convolution."""

SLICE_NETS: tuple[Rule, ...] = (
    (r"^(mean|scale)_nets\.", r"cc_\1_transforms."),
    (r"^residual_nets\.", "lrp_transforms."),
)
"""The nets of a `ResidualSliceNetwork`."""

GATES: tuple[Rule, ...] = (
    (r"^(mean|scale)_gates\.(\d+)\.", r"atten_\1.\2.0."),
    (r"\.trunk\.(\d)\.branch\.", r".conv_a.\1.conv."),
    (r"\.mask\.(\d)\.branch\.", r".conv_b.\1.conv."),
    (r"\.mask\.(\d)\.", r".conv_b.\1."),
    (
        r"\.refine\.(\d)\.",
        lambda match: f".non_local_block.block_{int(match[1]) + 1}.",
    ),
)
"""A `GatedContext` of each slice."""

SHUFFLED: tuple[Rule, ...] = (
    # A pixel shuffle is kept in a list with its convolution.
    (r"^(g_s|h_mean_s|h_scale_s)\.(\d+)\.(weight|bias)$", r"\1.\2.0.\3"),
)
"""Convolutions with a pixel shuffle at the end of g_s and of both nets of h_s."""


def hyper_pair(config: ModelConfig) -> tuple[Rule, ...]:
    """Stages of g_a, g_s, h_a and both nets of h_s, which are numbered through."""
    parts = {"g_a": "g_a", "g_s": "g_s", "h_a": "h_a"}
    parts |= {"h_s.mean": "h_mean_s", "h_s.scale": "h_scale_s"}
    return tuple(flattened(config, ours, theirs) for ours, theirs in parts.items())


def ignored(*more: str) -> re.Pattern[str]:
    """Names that an import drops without a note: CompressAI's buffers, those of one program."""
    return re.compile("|".join((IGNORED, *more)))


def renamed(config: ModelConfig, rules: Sequence[Rule]) -> dict[str, str]:
    """Our parameter name -> the published one, for every parameter of the network of `config`.

    Args:
        rules: applied to each name, one after the other, wherever they match.
    """
    with torch.device("meta"):
        names = {name: name for name, _ in build(config).named_parameters()}
    for pattern, replacement in rules:
        expression = re.compile(pattern)
        names = {ours: expression.sub(replacement, theirs) for ours, theirs in names.items()}
    return names


def flattened(config: ModelConfig, part: str, theirs: str) -> Rule:
    """A transform's stages, which the published program numbers through as one list.

    Args:
        part: g_a, g_s, h_a, h_s or a transform inside it, of the network of `config`.
        theirs: the published list.
    """
    with torch.device("meta"):
        stages = build(config).get_submodule(part).children()
    starts = [0, *accumulate(len(list(stage.children())) for stage in stages)]
    return (
        rf"^{re.escape(part)}\.(\d+)\.(\d+)\.",
        lambda match: f"{theirs}.{starts[int(match[1])] + int(match[2])}.",
    )


def later(theirs: str) -> Callable[[re.Match[str]], str]:
    """The name in a published list that numbers every slice, for ours, which lacks the first."""
    return lambda match: f"{theirs}.{int(match[1]) + 1}."
