"""Stale locks on compiled operators: gone when their process is, kept while it lives."""

import subprocess
import sys

from hpcm_scale.training.extension_locks import drop_stale_locks

HOLD = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); "


def test_only_the_lock_of_a_dead_process_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD + "time.sleep(60)", str(lock)], stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    assert drop_stale_locks(grace=0) == []
    assert lock.exists()
    holder.kill()  # as a rank is that dies while it compiles
    holder.wait()
    assert drop_stale_locks(grace=0.5) == [lock]
    assert not lock.exists()
