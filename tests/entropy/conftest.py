"""The codec of the tests' tiny models."""

from tests.codec.conftest import codec, fast_codec, make_model, make_photo, models, other_codec

__all__ = ["codec", "fast_codec", "make_model", "make_photo", "models", "other_codec"]
