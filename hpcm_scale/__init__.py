"""Train HPCM learned image codecs at any scale, fit their scaling laws, compress images."""

__version__ = "0.1.0"
