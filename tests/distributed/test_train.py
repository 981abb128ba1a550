"""Whole runs through the launcher: records, equal losses however spread, a usable model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcm_scale.codec.codec import Codec
from hpcm_scale.config import LossConfig
from hpcm_scale.data.stream import read_images
from hpcm_scale.training.export import export_run
from hpcm_scale.training.loss import RateDistortion
from hpcm_scale.training.validate import pad
from hpcm_scale.weights.model_file import load_model
from tests.distributed.jobs import launch, rows

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, dataset) -> Path:
    out = tmp_path_factory.mktemp("two")
    done = launch(out, dataset, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_run_leaves_its_records(two_ranks):
    folder = two_ranks / "small"
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["seed"] == 3
    parts = record["parameters"]
    assert parts["total"] == parts["transform"] + parts["hyper"] + parts["context"]
    train = rows(two_ranks, "train")
    assert [row["step"] for row in train] == [1, 2, 3]
    assert [row["crops"] for row in train] == [4, 8, 12]
    assert train[-1]["flops"] == pytest.approx(12 * record["flops_per_image"]["train"])
    assert train[-1]["loss"] < train[0]["loss"]
    assert list((folder / "tensorboard").glob("events.*"))


def test_the_same_seed_gives_the_same_losses(two_ranks, dataset, tmp_path):
    shared = Path("/dev/shm")
    before = set(shared.glob("deepspeed_*"))
    assert launch(tmp_path, dataset, 2).returncode == 0
    assert set(shared.glob("deepspeed_*")) <= before  # memory that no process would give back
    for kind in ("train", "val"):
        first, second = rows(two_ranks, kind), rows(tmp_path, kind)
        assert [row["loss"] for row in first] == [row["loss"] for row in second]


def test_mup_does_not_depend_on_the_layout_and_resumes(dataset, tmp_path):
    """Scaled by each rank's own part of the weights under ZeRO-3; a resume keeps the factors."""
    mup = ("optimizer.parametrization=mup", "optimizer.base_width=0.1", "model.width=0.05")
    spread, whole = tmp_path / "spread", tmp_path / "whole"
    for out, ranks, zero in ((spread, 2, "zero3"), (whole, 1, "zero0")):
        done = launch(out, dataset, ranks, *mup, f"deepspeed={zero}")
        assert done.returncode == 0, done.stdout + done.stderr
    expected = [row["loss"] for row in rows(whole, "train")]
    assert [row["loss"] for row in rows(spread, "train")] == pytest.approx(expected, rel=1e-5)
    record = json.loads((spread / "small" / "run.json").read_text())
    assert record["config"]["optimizer"]["parametrization"] == "mup"
    for changes, code in ((mup, 0), (mup[2:], 2)):
        done = launch(spread, dataset, 2, *changes, "steps=4", resume="auto")
        assert done.returncode == code, done.stdout + done.stderr
    assert "optimizer.base_width: was 0.1 when" in done.stderr
    assert [row["step"] for row in rows(spread, "train")] == [1, 2, 3, 4]


def test_other_layouts_give_the_losses_of_two_ranks(two_ranks, dataset, tmp_path):
    changes = ["micro_batch=1", "deepspeed=zero0", "checkpoint_activations=false"]
    changes += ["steps=null", "images=11", f"data.val_also=[{dataset}]", "profile=[1, 1]"]
    done = launch(tmp_path, dataset, 1, *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [row["loss"] for row in rows(two_ranks, "train")]
    assert [row["loss"] for row in rows(tmp_path, "train")] == pytest.approx(expected, rel=1e-5)
    # the split once more, as a set of its own
    (first,), (again,) = rows(tmp_path, "val"), rows(tmp_path, "val-shards")
    assert again["loss"] == first["loss"]
    trace = json.loads((tmp_path / "small" / "profile" / "steps-1-1.json").read_text())
    assert any("_linear" in event.get("name", "") for event in trace["traceEvents"])


def test_a_run_goes_on_in_the_other_precision(dataset, tmp_path):
    """The state that bf16 and fp32 share is fp32: the move itself changes no weight."""
    same = ("deepspeed=zero1", "optimizer.ema=0.9", "optimizer.warmup_steps=0")
    same += ("optimizer.decay_fraction=0",)
    for precision, steps in (("bf16", 2), ("fp32", 3), ("bf16", 4)):
        changes = (*same, f"precision={precision}", f"steps={steps}")
        done = launch(tmp_path, dataset, 2, *changes, resume="auto")
        assert done.returncode == 0, done.stdout + done.stderr
    sessions = json.loads((tmp_path / "small" / "run.json").read_text())["sessions"]
    assert [session["precision"] for session in sessions] == ["bf16", "fp32", "bf16"]
    train, val = rows(tmp_path, "train"), rows(tmp_path, "val")
    assert [row["step"] for row in train] == [1, 2, 3, 4]
    straight = tmp_path / "straight"
    assert launch(straight, dataset, 2, *same, "steps=4").returncode == 0
    for moved, stayed in zip(train, rows(straight, "train"), strict=True):
        assert moved["loss"] == pytest.approx(stayed["loss"], rel=0.01)
    assert val[-1]["loss"] == pytest.approx(rows(straight, "val")[-1]["loss"], rel=0.01)
    # A run validates in its own precision, and so does what exports it.
    assert "in bf16" in export_run(tmp_path / "small", tmp_path / "half.safetensors").check


def test_the_exported_model_has_the_run_s_loss_and_codes(two_ranks, dataset, tmp_path):
    export_run(two_ranks / "small", tmp_path / "model.safetensors")
    network = load_model(tmp_path / "model.safetensors").network
    losses = []
    for item in read_images(str(dataset), "val"):
        x = item.image[None].float() / 255
        padded = pad(x, network.image_multiple)
        with torch.no_grad():
            output = network(padded)
        output = output._replace(x_hat=output.x_hat[..., : x.shape[-1]])
        losses.append(RateDistortion(LossConfig(lmbda=0.013)).per_image(output, x)[0, 0].item())
    assert np.mean(losses) == pytest.approx(rows(two_ranks, "val")[-1]["loss"], rel=1e-5)

    codec = Codec.load(tmp_path / "model.safetensors")
    picture = item.image.permute(1, 2, 0).numpy()
    assert codec.decode(codec.encode(picture)).size == (288, 256)


def test_a_second_run_in_the_same_folder_is_refused_in_one_line(two_ranks, dataset):
    before = (two_ranks / "small" / "metrics.jsonl").read_bytes()
    done = launch(two_ranks, dataset, 1)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert "Traceback" not in done.stderr
    assert (two_ranks / "small" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.train=/nowhere", "/nowhere"),
        ("steps=-1", "steps: -1"),
        ("model.overrides.heads=7", "heads: 7 does not divide"),
        ("data.crop=200", "crop"),
    ],
)
def test_what_cannot_be_used_ends_in_one_line_and_code_2(tmp_path, dataset, change, message):
    done = launch(tmp_path, dataset, 1, change)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "small").exists()
