"""The published checkpoints of the papers' nine peers: one module a peer names its tensors."""

from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers import dcae, elic, flic, lalic, mambavc, mlicpp, stf, tcm, weconvene

PEERS: dict[str, PublishedLayout] = {
    "dcae": dcae.LAYOUT,
    "elic": elic.LAYOUT,
    "flic": flic.LAYOUT,
    "lalic": lalic.LAYOUT,
    "mambavc": mambavc.LAYOUT,
    "mlicpp": mlicpp.LAYOUT,
    "stf": stf.LAYOUT,
    "tcm": tcm.LAYOUT,
    "weconvene": weconvene.LAYOUT,
}
"""Layouts of the peers' checkpoints by architecture."""
