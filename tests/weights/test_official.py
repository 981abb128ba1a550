"""Importing published checkpoints: every form they come in, and every fault named."""

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.zoo import model_config
from hpcm_scale.weights import official
from hpcm_scale.weights.model_file import load_model
from tests.models import weights_rule

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
    info = official.import_published(path, variant, tmp_path / "out.safetensors", lmbda=0.013)
    assert info.config.hyper_alignment == "official"
    network = load_model(tmp_path / "out.safetensors").network
    names = official.official_names(info.config)
    for ours, tensor in network.named_parameters():
        assert torch.equal(tensor, state[names[ours]])


def test_the_first_step_of_s2_and_s3_uses_the_last_adaptor_of_its_list():
    names = official.official_names(model_config("base"))
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
        official.import_published(tmp_path / "c.pth.tar", variant, tmp_path / "out.safetensors")
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


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, variant, content):
    path = tmp_path / "c.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        official.import_published(path, variant, tmp_path / "out.safetensors")
