"""Freed memory that is needed again stays with the process."""

import subprocess
import sys

import pytest

from hpcm_scale import heap

FAULTS = """
import resource
import numpy as np
from hpcm_scale.heap import keep_heap
keep_heap()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    both = np.ones(3 << 17), np.ones(3 << 17)  # 3 MiB each
    del both
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(heap._glibc() is None, reason="a C library of another kind")
def test_blocks_of_some_mib_are_cleared_once() -> None:
    """Not at every use, which would be 150 000 pages; by itself glibc often does that."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    pages = 2 * 3 * 2**20 // 4096
    assert int(done.stdout) < 3 * pages
