"""Train HPCM learned image codecs at any scale, fit their scaling laws, and compress images with them."""

__version__ = "0.1.0"
