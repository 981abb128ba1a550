"""How often the host waits for the device in a training step."""

import json
import subprocess
import sys

import pytest

from tests.distributed.jobs import ROOT, environment

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_a_step_waits_for_the_device_once(dataset, tmp_path):
    done = subprocess.run(
        [sys.executable, "tests/distributed/host_waits.py", str(dataset), str(tmp_path)],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for stage in ("zero0", "zero1", "zero2", "zero3"):
        alone, spoiled = found[stage]
        assert alone == ["tolist"], stage
        # The count would have seen more: a float(loss) in each of the two passes.
        assert spoiled == [*2 * ["aten::_local_scalar_dense"], "tolist"], stage
