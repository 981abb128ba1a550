"""The tiny models of the codec's tests."""

from tests.codec.conftest import codec, make_model, make_photo, models, picture, run

__all__ = ["codec", "make_model", "make_photo", "models", "picture", "run"]
