"""Gathered parameters that autograd keeps under ZeRO-3, as plans count them."""

import json
import os
import subprocess
import sys

import pytest

from hpcm_scale.models.zoo import model_config
from hpcm_scale.planning.memory import parameter_sizes, viewed_parameters
from hpcm_scale.training.rendezvous import free_port
from tests.distributed.jobs import ROOT, environment

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_two_ranks_hold_after_a_forward_pass_what_plans_count(tmp_path):
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "tests/distributed/held_job.py", str(tmp_path), str(rank), port],
            cwd=ROOT,
            env=environment() | {"PYTHONPATH": os.fspath(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said, _ = ranks[0].communicate(timeout=600)
        assert ranks[1].wait(timeout=60) == ranks[0].returncode == 0
    finally:
        for process in ranks:
            process.kill()
    found = json.loads(said.splitlines()[-1])
    assert found["released"] == found["parameters"]
    model = model_config("base", width=0.025)
    expected = viewed_parameters(model, 256)
    assert 0 < expected < parameter_sizes(model)[0]
    # Scales of coding steps, single numbers a channel, are used as views of the same shape.
    assert found["held"] == pytest.approx(expected, rel=0.02)
