"""The soak, shortened to the faults that no other test has."""

import pytest

from tests.distributed.soak import soak

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.long]


def test_a_run_under_faults_becomes_what_one_without_does(tmp_path):
    counts = {"a rank killed while saving": 1, "a shard corrupted": 1}
    report = soak(tmp_path, 24, 4, counts, print)
    assert len(report["faults"]) == len(counts)
    assert [check for check in report["checks"] if not check["holds"]] == []
