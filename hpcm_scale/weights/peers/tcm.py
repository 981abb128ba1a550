"""The key names of TCM's checkpoints: those of github jmliu206/LIC_TCM at 6c6d7a3."""

from hpcm_scale.config.peers.tcm import TcmConfig
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


def _names(config: TcmConfig) -> dict[str, str]:
    return renamed(
        config,
        (
            *DENSITY,
            *SAMPLING,
            *hyper_pair(config),
            *SHUFFLED,
            *SLICE_NETS,
            *GATES,
            (r"\.msa\.table$", ".msa.relative_position_params"),
        ),
    )


LAYOUT = PublishedLayout(_names, ("tcm",), ignored(), synonyms=SYNONYMS)
