"""Freed memory that is needed again stays with the process."""

import subprocess
import sys

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


@pytest.mark.skipif(heap._glibc() is None, reason="a C library of another kind")
def test_blocks_of_some_mib_are_cleared_once() -> None:
    pages = 100 * 2 * 3 * 2**20 // 4096
    assert _faults("keep") < _faults("by itself") - pages // 2
