"""`compile: blocks` under ZeRO-3: the same losses as without."""

import json
import os
import shutil
import subprocess

import pytest

from tests.distributed.jobs import ROOT, deepspeed, environment, launch, rows

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]


def test_blocks_compiled_inside_of_hooks_give_the_same_losses():
    done = subprocess.run(
        [*deepspeed(2), "tests/distributed/compiled_leaves.py"],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(li for li in done.stdout.splitlines() if li.startswith("{")))
    plain = found.pop("None")
    assert len(set(plain)) == len(plain)
    for losses in found.values():
        assert losses == pytest.approx(plain, rel=1e-5)


def test_a_compiled_run_has_the_losses_of_another(dataset, tmp_path):
    losses = {}
    for compiled in ("none", "blocks"):
        out = tmp_path / compiled
        done = launch(out, dataset, 2, "deepspeed=zero3", f"compile={compiled}")
        assert done.returncode == 0, done.stdout + done.stderr
        losses[compiled] = [row["loss"] for row in rows(out, "train")]
    assert losses["blocks"] == pytest.approx(losses["none"], rel=1e-5)
