"""How a rank's process ends."""

import os
import subprocess
import sys

import pytest

# A thread inside a call of torch's when the process ends, as the watchdog's is.
BUSY = """
import atexit, sys, threading, time
from datetime import timedelta
from torch.distributed import TCPStore
from hpcm_scale.training.job import leave

store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)

def ask():
    while True:
        try:
            store.wait(["never"], timedelta(seconds=0.2))
        except Exception:
            pass

threading.Thread(target=ask, daemon=True).start()
time.sleep(0.3)
print("all is written")
END
"""


def end(how: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BUSY.replace("END", how)],
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("code", "text"), [(0, ""), (75, "it is saved")])
def test_a_thread_of_torchs_does_not_abort_a_rank_that_leaves(code, text):
    """By the interpreter's own end it does: "terminate called without an active exception"."""
    done = end(f"leave({code}, {text!r})")
    assert done.returncode == code, done.stderr
    assert done.stdout == "all is written\n"
    assert done.stderr == (f"train: {text}\n" if text else "")
