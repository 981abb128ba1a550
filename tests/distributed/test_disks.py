"""Parameters and optimizer state on disks (ZeRO-Infinity): trained, resumed, exported."""

import json
import subprocess
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder

from hpcm_scale.config import configs_folder
from hpcm_scale.training.export import export_run
from tests.distributed.jobs import ROOT, command, environment, rows

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.long,  # DeepSpeed compiles its operator for disks first
    pytest.mark.skipif(
        not AsyncIOBuilder().is_compatible(verbose=False), reason="needs libaio-dev and a compiler"
    ),
]
STEPS = 4
CHANGES = [
    *("model.width=0.1", "batch=2", f"steps={STEPS}", "optimizer.decay_fraction=0"),
    *("checkpoint.every=2", "checkpoint.keep=9"),
]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> Path:
    """configs/deepspeed/zero3-infinity.json in the proportions of a small network."""
    config = json.loads((configs_folder("deepspeed") / "zero3-infinity.json").read_text())
    config["aio"]["block_size"] = 2**18
    zero = config["zero_optimization"]
    zero |= {"sub_group_size": 3e5, "stage3_param_persistence_threshold": 1e3}
    zero["offload_param"]["buffer_size"] = 2e5
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(config))
    return path


def train(out: Path, dataset: Path, *changes: str, ranks: int = 1, resume: str = "never") -> str:
    """All that the run says; it must end well unless the changes say otherwise."""
    done = subprocess.run(
        command(out, dataset, ranks, *CHANGES, *changes, resume=resume),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,  # the operator is compiled once
    )
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out, "train")]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
def test_a_run_on_disks_equals_one_in_memory(precision, on_disk, dataset, tmp_path):
    settings = (f"precision={precision}",)
    for name, deepspeed in (("disks", str(on_disk)), ("memory", "zero3")):
        said = train(tmp_path / name, dataset, f"deepspeed={deepspeed}", *settings)
        assert said.startswith("0\n"), said
    disks = losses(tmp_path / "disks")
    assert disks == pytest.approx(losses(tmp_path / "memory"), rel=1e-3)
    assert len(set(disks)) == STEPS

    saved = tmp_path / "disks" / "small" / "checkpoints" / "step-00000002"
    swapped = [*saved.glob("swapped-00000-*.safetensors")]
    files = json.loads((saved / "checkpoint.json").read_text())["files"]
    assert swapped
    assert {path.name for path in swapped} <= set(files)  # each with its checksum

    again = (f"deepspeed={on_disk}", *settings)
    said = train(tmp_path / "branch", dataset, *again, resume=str(saved))
    assert said.startswith("0\n"), said
    # Adam's averages and count are as they were; a rounding differs with the buffer it falls in.
    rel = 1e-5 if precision == "bf16" else 1e-6
    assert losses(tmp_path / "branch") == pytest.approx(disks[2:], rel=rel)

    exported = export_run(tmp_path / "disks" / "small", tmp_path / "model.safetensors")
    assert ("in bf16" if precision == "bf16" else "as in training") in exported.check

    other = json.loads(on_disk.read_text())
    other["zero_optimization"]["sub_group_size"] = 6e5
    on_disk.with_name("other.json").write_text(json.dumps(other))
    said = train(
        tmp_path / "other",
        dataset,
        f"deepspeed={on_disk.with_name('other.json')}",
        *settings,
        resume=str(saved),
    )
    assert said.startswith("2\n"), said
    assert "keep the sub_group_size" in said
    said = train(tmp_path / "back", dataset, "deepspeed=zero3", *settings, resume=str(saved))
    assert said.startswith("2\n"), said
    assert "its optimizer state was on disks; keep the run's `deepspeed`" in said


def test_two_ranks_on_disks_are_resumed_by_two_alone(on_disk, dataset, tmp_path):
    config = json.loads(on_disk.read_text())
    config["zero_optimization"]["offload_param"]["buffer_size"] = 1e5
    two = tmp_path / "two.json"
    two.write_text(json.dumps(config))
    settings = (f"deepspeed={two}", "steps=2", "checkpoint.every=1")
    said = train(tmp_path / "two", dataset, *settings, ranks=2)
    assert said.startswith("0\n"), said
    run = tmp_path / "two" / "small"
    assert [*run.glob("checkpoints/step-00000002/swapped-00001-*.safetensors")]
    assert "as in training" in export_run(run, tmp_path / "model.safetensors").check
    saved = run / "checkpoints" / "step-00000001"
    said = train(tmp_path / "again", dataset, *settings, ranks=2, resume=str(saved))
    assert said.startswith("0\n"), said
    again = losses(tmp_path / "again")
    assert again == pytest.approx(losses(tmp_path / "two")[1:], rel=1e-6)
    said = train(tmp_path / "one", dataset, *settings, resume=str(saved))
    assert said.startswith("2\n"), said
    assert "as many must continue it, not 1" in said
