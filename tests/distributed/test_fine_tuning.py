"""Runs that start from a model file, on one rank and two, whole and spread."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcm_scale.training.export import export_run
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.weights.model_file import load_model
from tests.distributed.jobs import ROOT, RUN, environment, launch, rows, verb

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def source(dataset: Path, tmp_path_factory) -> tuple[Path, dict]:
    """A trained model's file, and the row of its last validation."""
    out = tmp_path_factory.mktemp("source")
    done = launch(out, dataset, 1, "model.overrides.hyper_alignment=official")
    assert done.returncode == 0, done.stderr
    model = out / "source.safetensors"
    export_run(out / "small", model)
    return model, rows(out, "val")[-1]


@pytest.mark.parametrize(
    ("zero", "ranks"),
    [
        ("zero3", 2),
        *(pytest.param(*how, marks=LONG) for how in (("zero0", 1), ("zero0", 2), ("zero3", 1))),
    ],
)
def test_a_run_starts_at_the_models_loss(source, dataset, tmp_path: Path, zero, ranks):
    model, last = source
    changes = (f"init={model}", f"deepspeed={zero}", "optimizer.freeze=[g_a,h_a]")
    changes += ("optimizer.lr_factors={g_s: 0.5}", "loss.lmbda=0.013")
    done = launch(tmp_path, dataset, ranks, *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    # The run's file says nothing of where hyper-parameters are placed; the model's does.
    assert "hyper_alignment official instead of aligned" in done.stdout + done.stderr
    first = rows(tmp_path, "val")[0]
    assert first["step"] == 0
    for figure in ("loss", "bpp", "mse"):
        assert first[figure] == last[figure], figure
    export_run(tmp_path / "small", tmp_path / "tuned.safetensors")
    before = load_model(model).network.state_dict()
    for name, after in load_model(tmp_path / "tuned.safetensors").network.state_dict().items():
        part = name.partition(".")[0]
        if part in ("g_a", "h_a", "g_s"):
            assert torch.equal(before[name], after) == (part != "g_s"), name


def test_the_verb_tunes_a_bundled_model_in_one_line(dataset, tmp_path: Path):
    command = [*verb(tmp_path, dataset, 1, "steps=1", "batch=1"), "--init", "w0.125-0.013"]
    for more, words in ((["--dry-run"], "starts from"), (["--freeze", "g_a,h_a"], "")):
        done = subprocess.run(
            [*command, *more], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert words in done.stdout
    assert [row["step"] for row in rows(tmp_path, "val")] == [0, 1]


def test_frozen_parts_are_spread_again_after_a_step(dataset, tmp_path: Path):
    settings = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "spread.json").write_text(json.dumps(settings))
    changes = f"deepspeed: {tmp_path / 'spread.json'}\ncheckpoint_activations: true\n"
    text = RUN.replace("data: {", f"data: {{train: {dataset}, ").replace(
        "optimizer: {", "optimizer: {freeze: [g_a, h_a], "
    )
    (tmp_path / "run.yaml").write_text(text + changes)
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, "tests/distributed/gathered_job.py", str(tmp_path / "run.yaml")),
                *(str(tmp_path), str(rank), port),
            ],
            cwd=ROOT,
            env=environment() | {"PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=600) for process in ranks] == [0, 0]
    for rank in range(2):
        count, gathered = json.loads((tmp_path / f"gathered-{rank}.json").read_text())
        assert count > 100
        assert gathered == []


@pytest.mark.parametrize(("zero", "ranks"), [("zero3", 2), pytest.param("zero0", 1, marks=LONG)])
def test_a_model_of_one_rate_becomes_one_of_every_rate(
    source, dataset, tmp_path: Path, zero, ranks
):
    """At its own λ it begins as it was; each crop has a rate, each rate a validation."""
    model, last = source
    rates = [0.0035, 0.013, 0.0483]  # the middle is what `source` was trained for
    changes = (f"init={model}", f"deepspeed={zero}", f"model={{rates: {rates}}}")
    done = launch(tmp_path, dataset, ranks, *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, final = rows(tmp_path, "val")
    assert first["step"] == 0
    for figure in ("bpp", "psnr"):
        assert first[f"{figure}_0.013"] == pytest.approx(last[figure], rel=1e-6)
        at_rates = [first[f"{figure}_{rate:g}"] for rate in rates]
        assert first[figure] == pytest.approx(sum(at_rates) / 3)
    export_run(tmp_path / "small", tmp_path / "every.safetensors")  # checks the loss
    every = load_model(tmp_path / "every.safetensors")
    assert every.info.config.rates == tuple(rates)
    assert every.info.lmbda is None
    gains = every.network.gains
    assert not torch.equal(gains.logs, gains.start(0.013)[:, None].expand_as(gains.logs))
    assert final["loss"] != first["loss"]


@pytest.mark.long
def test_a_run_starts_from_principal_components(dataset, tmp_path: Path):
    """They keep what the crops hold: 64 channels of smooth pictures are nearly all."""
    changes = ["initial_weights=principal_components"]
    changes += ["model.overrides={latent_channels: 64, widths: [16, 32, 64]}"]
    losses = []
    for ranks, zero in ((1, "zero0"), (2, "zero3")):
        out = tmp_path / zero
        done = launch(out, dataset, ranks, f"deepspeed={zero}", *changes)
        assert done.returncode == 0, done.stdout + done.stderr
        first = rows(out, "val")[0]
        assert first["step"] == 0
        assert first["psnr"] > 25
        losses.append([first["loss"], *(row["loss"] for row in rows(out, "train")[:2])])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_weights_come_from_one_place(dataset, tmp_path: Path):
    changes = ("init=compact", "initial_weights=principal_components")
    done = launch(tmp_path, dataset, 1, *changes)
    assert done.returncode == 2
    assert "initial_weights: principal_components beside init" in done.stdout + done.stderr
