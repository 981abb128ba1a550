"""The network of a run that starts from a model file."""

from pathlib import Path

import pytest

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.zoo import chosen_model
from hpcm_scale.runs.network import init_file, network_of
from hpcm_scale.weights.stored_model import bundled_model, read_info

BUNDLED = "w0.125-0.013"


def run(tmp_path: Path, **fields) -> RunConfig:
    values = {"name": "tuned", "steps": 1, "out": tmp_path, "data": {"train": "none"}}
    return RunConfig.model_validate(values | fields)


def test_the_file_brings_its_network(tmp_path: Path):
    described = run(tmp_path, init=BUNDLED, model={"variant": "large"})
    config, note = network_of(described)
    assert config == read_info(bundled_model(BUNDLED)).config
    assert "the network is that of" in note
    assert "instead of" in note
    assert network_of(run(tmp_path, init=BUNDLED)) == (config, "")
    assert network_of(run(tmp_path)) == (chosen_model(run(tmp_path).model), "")


def test_a_path_and_a_bundled_name_are_told_apart(tmp_path: Path):
    assert init_file(Path(BUNDLED)) == bundled_model(BUNDLED)
    assert init_file(tmp_path / "a.safetensors") == tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=r"model: 'base-13' is not one of .*w0\.125-0\.013"):
        init_file(Path("base-13"))
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        network_of(run(tmp_path, init=tmp_path / "missing.safetensors"))
