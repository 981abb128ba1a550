"""The published checkpoints of the papers' nine peers: one module a peer names its tensors."""

from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers import elic, flic, lalic, mambavc, mlicpp, tcm

PEERS: dict[str, PublishedLayout] = {
    "elic": elic.LAYOUT,
    "flic": flic.LAYOUT,
    "lalic": lalic.LAYOUT,
    "mambavc": mambavc.LAYOUT,
    "mlicpp": mlicpp.LAYOUT,
    "tcm": tcm.LAYOUT,
}
"""By architecture."""
