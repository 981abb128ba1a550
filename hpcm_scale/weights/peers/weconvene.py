"""The key names of WeConvene's checkpoints (github fengyurenpingsheng/WeConvene at 7fae6c4)."""

import re

from hpcm_scale.config.peers.weconvene import WECONVENE_SLICES, WeconveneConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import (
    DENSITY,
    GATES,
    SAMPLING,
    SHUFFLED,
    SLICE_NETS,
    SYNONYMS,
    hyper_pair,
    ignored,
    renamed,
)


def _banded(match: re.Match[str]) -> str:
    """The published name of a slice's net: of the low band ("real"), then of the high ones."""
    index = int(match[2])
    band = "real" if index < WECONVENE_SLICES else "imag"
    return f"{match[1]}_{band}.{index % WECONVENE_SLICES}."


def _names(config: WeconveneConfig) -> dict[str, str]:
    return renamed(
        config,
        (
            *DENSITY,
            *hyper_pair(config),
            *SHUFFLED,
            (r"^(g_s\.0)\.conv1\.", r"\1.subpel_conv."),
            (r"^(g_s\.0)\.skip\.", r"\1.upsample."),
            *SAMPLING,
            (r"\.bands\.", "."),
            (r"^((?:g_s|h_mean_s|h_scale_s)\..*)\.gdn_", r"\1.igdn_"),
            *SLICE_NETS,
            *GATES,
            (
                r"^(atten_mean|atten_scale|cc_mean_transforms|cc_scale_transforms|lrp_transforms)"
                r"\.(\d+)\.",
                _banded,
            ),
        ),
    )


LAYOUT = PublishedLayout(
    _names,
    ("weconvene",),
    ignored(r"(.*\.)?i?dwt\..*", r"gaussian_conditional_(real|imag)\..*"),
    {"wavelet": "published"},
    "published weights were trained with wavelet filters in single precision (wavelet: published), "
    "0.49999997 instead of a half",
    unused=re.compile(r"(g_a\.4|g_a\.8|h_a\.0)\.conv2\.(weight|bias)"),
    synonyms=SYNONYMS,
)
