"""Run folders whose losses follow a law."""

from tests.scaling.conftest import write_run

__all__ = ["write_run"]
