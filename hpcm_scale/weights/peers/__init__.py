"""The published checkpoints of the papers' nine peers: one module a peer names its tensors."""

from hpcm_scale.weights.layout import PublishedLayout

PEERS: dict[str, PublishedLayout] = {}
"""By architecture."""
