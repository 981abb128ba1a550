"""The exact counterpart of every kind of layer and block that has one."""

from hpcm_scale.entropy.exact.hpcm_registry import HPCM, Registry

__all__ = ["Registry", "registry_of"]


def registry_of(architecture: str) -> Registry:
    """The layers and blocks of an architecture; those of the peers are imported for a peer."""
    if architecture in ("hpcm", "dcvc-dc-intra"):
        return HPCM
    from hpcm_scale.entropy.exact.peer_registry import ALL

    return ALL
