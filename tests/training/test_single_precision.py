"""fp32 is fp32 on GPUs too: what torch is told of products, once an engine is there."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, os, torch
from hpcm_scale.bench.train_workers import case
from hpcm_scale.config import ModelChoice
from hpcm_scale.models.zoo import chosen_model
from hpcm_scale.training.engine import build_engine, init_distributed
init_distributed(60)
found = [[torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]]
for precision in ("tf32", "fp32"):
    run = case("", ModelChoice(width=0.025), deepspeed="zero0", precision=precision).run
    build_engine(run, chosen_model(run.model), 1)
    found.append([torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32])
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_fp32_is_rounded_only_where_the_run_says_so():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [[True, False], [True, True], [False, False]]  # torch's default comes first
