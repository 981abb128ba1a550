"""Pictures and datasets to measure loaders with."""

from tests.data.conftest import dataset, make_folder, make_picture

__all__ = ["dataset", "make_folder", "make_picture"]
