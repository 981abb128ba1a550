"""Importing published checkpoints: every form they come in, and every fault named."""

import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.errors import CheckpointError, ConfigError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.checkpoint_file import Parameters, choose, read_checkpoint
from hpcm_scale.weights.hpcm_names import official_names
from hpcm_scale.weights.model_file import load_model
from hpcm_scale.weights.published import import_published, to_ours, variant_of
from tests.models import weights_rule

SHARED = Path(os.environ.get("HPCM_SHARED", Path(__file__).parents[3] / "shared"))
FAILS = SHARED / "fails" / "models"

NARROW_FIELDS = {
    "latent_channels": 32,
    "hyper_channels": 16,
    "hyper_width": 24,
    "widths": [8, 16, 24],
}
NARROW = """
name: narrow
latent_channels: 32
hyper_channels: 16
hyper_width: 24
widths: [8, 16, 24]
heads: 4
"""


@pytest.fixture
def state():
    arrays = weights_rule.official_state_dict(weights_rule.reduced_layout("base"), "import")
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()}


@pytest.fixture
def variant(tmp_path):
    path = tmp_path / "narrow.yaml"
    path.write_text(NARROW)
    return str(path)


def published(state):
    """With the buffers that published checkpoints carry."""
    return state | {"scale_table": torch.ones(60), "offset_z": torch.ones(3, dtype=torch.int32)}


@pytest.mark.parametrize("form", ["plain", "nested", "parallel", "old", "safetensors"])
def test_every_form_of_a_checkpoint_gives_the_same_model(tmp_path, state, variant, form):
    path = tmp_path / ("c.safetensors" if form == "safetensors" else "c.pth.tar")
    if form == "safetensors":
        save_file(published(state), path)
    elif form == "parallel":
        torch.save({"state_dict": {f"module.{k}": v for k, v in published(state).items()}}, path)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": published(state)}, path)
    else:
        torch.save(published(state), path, _use_new_zipfile_serialization=form != "old")
    info = import_published(path, variant, tmp_path / "out.safetensors", lmbda=0.013).info
    assert info.config.hyper_alignment == "official"
    network = load_model(tmp_path / "out.safetensors").network
    names = official_names(info.config)
    for ours, tensor in network.named_parameters():
        assert torch.equal(tensor, state[names[ours]])


def test_first_steps_use_the_last_adaptor_of_the_list():
    names = official_names(model_config("base"))
    lists = [names[f"steps.{k}.adaptor.weight"].split("list_")[1] for k in range(10)]
    assert [name.removesuffix(".weight") for name in lists] == [
        "s1.0", "s2.2", "s2.0", "s2.1", "s3.5", "s3.0", "s3.1", "s3.2", "s3.3", "s3.4",
    ]  # fmt: skip


def test_missing_unknown_and_misshapen_tensors_are_listed(tmp_path, state, variant):
    del state["context_net.0.bias"]
    state["context_net.7.bias"] = torch.ones(1)
    state["g_a.branch.0.weight"] = torch.ones(8, 3, 2, 2)
    torch.save(state, tmp_path / "c.pth.tar")
    with pytest.raises(CheckpointError) as caught:
        import_published(tmp_path / "c.pth.tar", variant, tmp_path / "out.safetensors")
    for part in (
        "1 missing: context_net.0.bias",
        "1 unknown: context_net.7.bias",
        "1 misshapen: g_a.branch.0.weight (8, 3, 2, 2) instead of (8, 3, 4, 4)",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pickle_that_runs_code_is_refused(tmp_path, variant):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"state_dict": Harmful()}, tmp_path / "c.pth.tar")
    arguments = ["import", str(tmp_path / "c.pth.tar"), str(tmp_path / "o.safetensors")]
    result = CliRunner().invoke(app, [*arguments, "--variant", variant])
    assert isinstance(result.exception, CheckpointError)
    assert not (tmp_path / "harm").exists()


HARMLESS_BESIDE = {
    "epoch": 3,
    "best_loss": np.float64(1.25),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
}


@pytest.mark.parametrize("kind", ["base", "large", "phi", "1b"])
@pytest.mark.parametrize("with_scales", [True, False])
def test_checkpoints_of_before_and_after_2026_open(tmp_path, kind, with_scales):
    layout = weights_rule.reduced_layout(kind)
    arrays = weights_rule.official_state_dict(layout, "old")
    full = {name: torch.from_numpy(array) for name, array in arrays.items()}
    kept = {k: v for k, v in full.items() if with_scales or not k.startswith("adaptive_params")}
    torch.save({"state_dict": kept}, tmp_path / "c.pth")
    overrides = NARROW_FIELDS if kind == "1b" else NARROW_FIELDS | {"heads": 4}
    config = model_config(kind, overrides=overrides)
    found = choose(read_checkpoint(tmp_path / "c.pth"), official_names(config).values())
    ours, names = to_ours(found.tensors, config), official_names(config)
    for name, tensor in ours.items():
        scale = names[name].startswith("adaptive_params_list")
        expected = full[names[name]] if with_scales or not scale else torch.ones_like(tensor)
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod."])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "ema", "net", None])
def test_every_prefix_and_nesting_opens(tmp_path, state, variant, prefix, key):
    prefixed = {prefix + name: tensor for name, tensor in published(state).items()}
    content = prefixed if key is None else HARMLESS_BESIDE | {key: prefixed}
    torch.save(content, tmp_path / "c.pth.tar")
    made = import_published(tmp_path / "c.pth.tar", variant, tmp_path / "out.safetensors")
    network = load_model(tmp_path / "out.safetensors").network
    names = official_names(made.info.config)
    for ours, tensor in network.named_parameters():
        assert torch.equal(tensor, state[names[ours]])


def test_weights_are_taken_before_their_average(tmp_path, state, variant):
    average = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"ema": {"model": average}, "model": state}, tmp_path / "c.pth")
    made = import_published(tmp_path / "c.pth", variant, tmp_path / "out.safetensors")
    assert "parameters from 'model' ('ema.model' not taken)" in made.notes
    network = load_model(tmp_path / "out.safetensors").network
    names = official_names(made.info.config)
    for ours, tensor in network.named_parameters():
        assert torch.equal(tensor, state[names[ours]])


@pytest.mark.parametrize("kind", ["base", "large", "phi", "1b"])
def test_the_variant_is_found_from_names_and_shapes(kind):
    config = model_config(kind, overrides={"hyper_alignment": "official"})
    with torch.device("meta"):
        shapes = dict(build(config).named_parameters())
    held = {theirs: shapes[ours] for ours, theirs in official_names(config).items()}
    assert variant_of([Parameters(held, "")], "c").name == config.name


def test_a_checkpoint_of_no_published_network_names_the_nearest(tmp_path, state):
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"none of the published .*nearest: .*misshapen"):
        import_published(tmp_path / "c.pth", None, tmp_path / "out.safetensors")


def test_some_missing_step_scales_are_a_fault(tmp_path, state, variant):
    del state["adaptive_params_list.3"]
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: adaptive_params_list\.3"):
        import_published(tmp_path / "c.pth", variant, tmp_path / "out.safetensors")


def test_integer_weights_are_refused_by_name(tmp_path, state, variant):
    state["context_net.0.bias"] = state["context_net.0.bias"].long()
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"not floating point: context_net.0.bias \(int64\)"):
        import_published(tmp_path / "c.pth", variant, tmp_path / "out.safetensors")


@pytest.mark.parametrize("lmbda", [float("nan"), float("inf"), -0.013, 0.0])
def test_a_lambda_that_cannot_be_is_refused(tmp_path, state, variant, lmbda):
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match="--lambda"):
        import_published(tmp_path / "c.pth", variant, tmp_path / "out.safetensors", lmbda)


def test_a_refusal_does_not_advise_to_run_the_file(tmp_path, variant):
    class Harmful:
        def __reduce__(self):
            return (os.system, ("true",))

    torch.save({"state_dict": {}, "hook": Harmful()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError) as caught:
        import_published(tmp_path / "c.pth", variant, tmp_path / "out.safetensors")
    text = str(caught.value)
    assert "system" in text
    assert "weights_only" not in text
    assert "\n" not in text


def test_a_tensor_larger_than_its_file_is_refused(tmp_path, variant):
    torch.save({"g_a.weight": torch.zeros(1).expand(10**12)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="more than the whole file holds"):
        import_published(tmp_path / "c.pth", variant, tmp_path / "out.safetensors")


def test_a_packed_archive_is_refused_unread(tmp_path, state, variant):
    torch.save(state, tmp_path / "c.pth")
    with zipfile.ZipFile(tmp_path / "c.pth") as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data + bytes(10**6) * name.endswith("/0"))
    with pytest.raises(CheckpointError, match="unpacks to"):
        import_published(tmp_path / "p.pth", variant, tmp_path / "out.safetensors")


@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, variant, content, suffix):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        import_published(path, variant, tmp_path / "out.safetensors")


@pytest.mark.skipif(not FAILS.is_dir(), reason="needs $HPCM_SHARED/fails/models")
@pytest.mark.parametrize("name", ["import_junk.safetensors", "import_pklstack.pth"])
def test_files_that_once_gave_tracebacks(tmp_path, name):
    with pytest.raises(CheckpointError) as caught:
        import_published(FAILS / name, None, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@given(st.binary(max_size=200), st.sampled_from([".pth", ".safetensors"]))
def test_no_bytes_give_anything_but_one_line(content, suffix):
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"c{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
    assert "\n" not in str(caught.value)
