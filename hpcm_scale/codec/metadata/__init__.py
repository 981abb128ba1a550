"""Tags of a picture's file beside its pixels: read from each format, kept, given back."""

from hpcm_scale.codec.metadata.tags import FileParts, Metadata, fitting_profile

__all__ = ["FileParts", "Metadata", "fitting_profile"]
