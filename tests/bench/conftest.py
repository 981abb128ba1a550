"""Pictures and datasets to measure loaders with."""

from tests.data.conftest import dataset, encode, make_folder, make_picture

__all__ = ["dataset", "encode", "make_folder", "make_picture"]
