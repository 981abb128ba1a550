"""Run configurations: what YAML and --set give, and how a mistake is named."""

from pathlib import Path

import pytest
import yaml

from hpcm_scale.config import configs_folder, load_run
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.zoo import model_config, variants

RUN = {"name": "a", "data": {"train": "x"}, "steps": 10}


def write(folder: Path, values: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_set_reads_values_as_yaml_and_wins_over_the_file(tmp_path):
    path = write(tmp_path, RUN | {"optimizer": {"lr": 1e-3}})
    run = load_run(path, ["optimizer.lr=2.0e-4", "model.overrides.fusion=psi", "batch=8"])
    assert (run.optimizer.lr, run.model.overrides, run.batch) == (2e-4, {"fusion": "psi"}, 8)
    assert run.folder == Path("runs/a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["steps=0"], "steps: 0: input should be greater than 0"),
        (["optimiser.lr=1"], "optimiser: unknown key"),
        (["optimizer.rate=1"], "optimizer.rate: unknown key"),
        (["optimizer.lr=fast"], "optimizer.lr: 'fast': input should be a valid number"),
        (["optimizer.parametrization=mup"], "optimizer.base_width: is missing; mup needs"),
        (["optimizer.base_width=0.1"], "optimizer.base_width: 0.1 needs parametrization mup"),
        (["steps"], "--set steps: is not key=value"),
        (["steps.more=1"], "--set steps.more=1: steps is a value, not a section"),
        (["name="], "name: None: input should be a valid string"),
    ],
)
def test_a_bad_value_names_file_field_and_rule(tmp_path, changes, message):
    path = write(tmp_path, RUN)
    with pytest.raises(ConfigError) as caught:
        load_run(path, changes)
    assert message in str(caught.value)


def test_a_missing_field_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml: name: is required"):
        load_run(write(tmp_path, {"steps": 1, "data": {"train": "x"}}))
    with pytest.raises(ConfigError, match=r"run\.yaml: steps: give one of .*, not none"):
        load_run(write(tmp_path, {"name": "a", "data": {"train": "x"}}))
    with pytest.raises(ConfigError, match=r"not steps and flops"):
        load_run(write(tmp_path, RUN), ["flops=1.0e+15"])
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml: is not YAML"):
        load_run(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_run(tmp_path / "none.yaml")


def test_every_config_in_the_repository_can_be_read():
    for path in configs_folder("runs").glob("*.yaml"):
        run = load_run(path)
        model_config(run.model.variant, run.model.width, run.model.depth, run.model.overrides)
    for variant in variants():
        assert model_config(variant).name == variant
