"""The key names of MambaVC's checkpoints: those of github QinSY123/2024-MambaVC at f849e9b."""

from hpcm_scale.config.peers.mambavc import MambavcConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import (
    DENSITY,
    GATES,
    SLICE_NETS,
    SYNONYMS,
    hyper_pair,
    ignored,
    renamed,
)


def _names(config: MambavcConfig) -> dict[str, str]:
    return renamed(
        config,
        (
            *DENSITY,
            *hyper_pair(config),
            *SLICE_NETS,
            *GATES,
            (r"\.msa\.table$", ".msa.relative_position_params"),
        ),
    )


LAYOUT = PublishedLayout(_names, ("mambavc",), ignored(), synonyms=SYNONYMS)
