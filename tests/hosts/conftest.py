"""Two hosts on a network of their own."""

import pytest

from tests.distributed.conftest import dataset
from tests.hosts import network as networks

__all__ = ["dataset", "network"]


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """Two hosts with one slot each."""
    reason = networks.missing()
    if reason:
        pytest.skip(f"hosts: {reason}")
    with networks.network(tmp_path_factory.mktemp("network"), ["hpcm-a", "hpcm-b"]) as made:
        yield made
