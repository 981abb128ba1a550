"""Parameters and optimizer state in the host's memory, in bf16: trained, resumed, exported."""

from pathlib import Path

import pytest
import torch

from hpcm_scale.training.build_tools import missing_tools
from hpcm_scale.training.checkpoint import checkpoints
from hpcm_scale.training.zero_checkpoint import master_weights
from tests.distributed.jobs import launch, rows

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.long,  # DeepSpeed compiles its Adam first
    pytest.mark.skipif(
        bool({*missing_tools()} - {"libaio"}), reason="needs a C++ compiler and ninja"
    ),
]
CHANGES = [
    *("precision=bf16", "batch=2", "steps=3", "optimizer.decay_fraction=0", "checkpoint.every=1"),
    *("checkpoint.keep=9", "validate_every=9", "trackers=[jsonl]"),
]


def train(out: Path, dataset: Path, *changes: str, resume: str = "never") -> dict[int, float]:
    done = launch(out, dataset, 2, *CHANGES, *changes, resume=resume)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["step"]: row["loss"] for row in rows(out, "train")}


def test_bf16_in_the_hosts_memory_equals_bf16_on_the_device(dataset, tmp_path):
    offloaded = train(tmp_path / "host", dataset, "deepspeed=zero3-offload-cpu")
    kept = train(tmp_path / "device", dataset, "deepspeed=zero3")
    # DeepSpeed's Adam rounds its fp32 otherwise than torch's; weights differ where bf16 does.
    assert offloaded == pytest.approx(kept, rel=2e-3)
    assert len(set(offloaded.values())) == 3
    saved = checkpoints(tmp_path / "host" / "small")[0].folder
    masters = master_weights(saved)
    assert {masters[name].dtype for name in masters} == {torch.float32}
    other = master_weights(checkpoints(tmp_path / "device" / "small")[0].folder)
    for name in masters:
        # Adam's first step is lr whatever the gradient: 1e-3, of either sign.
        assert (masters[name] - other[name]).abs().mean() < 1e-4, name

    resumed = train(tmp_path / "again", dataset, "deepspeed=zero3-offload-cpu", resume=str(saved))
    assert resumed == {step: offloaded[step] for step in (2, 3)}
