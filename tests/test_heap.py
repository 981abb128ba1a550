"""Freed memory that is needed again stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpcm_scale import heap

FAULTS = """
import resource, sys
import numpy as np
from hpcm_scale.heap import keep_heap
if sys.argv[1] == "keep":
    keep_heap()
for _ in range(100):
    both = np.ones(3 << 17), np.ones(3 << 17)  # 3 MiB each
    del both
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def _faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(heap._glibc() is None, reason="a C library of another kind")
@pytest.mark.skipif(
    HUGE.is_file() and "[always]" in HUGE.read_text(), reason="pages of 2 MiB are few"
)
def test_blocks_of_some_mib_are_cleared_once() -> None:
    assert 4 * _faults("keep") < _faults("by itself")
