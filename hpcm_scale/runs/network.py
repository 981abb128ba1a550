"""The network of a run: the one it chooses, or that of the model file it starts from."""

from pathlib import Path
from typing import NamedTuple

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.config.model_kinds import parse_model
from hpcm_scale.models.zoo import chosen_model, with_rates
from hpcm_scale.runs.run_record import RunRecord
from hpcm_scale.weights.stored_model import bundled_model, read_info


class RunNetwork(NamedTuple):
    """The configuration of a run's network, and what its user should know of it."""

    config: ModelConfig
    note: str
    """Where the network is not the one that `model` describes; "" if it is."""


def init_file(init: Path) -> Path:
    """The model file that `init` names: a path, or the name of a bundled model.

    Raises:
        CheckpointError: if it is a mere name, and no bundled model has it.
    """
    is_name = init.name == str(init) and not init.suffix.startswith((".safetensors", ".json"))
    return bundled_model(init.name) if is_name and not init.exists() else init


def network_of(run: RunConfig) -> RunNetwork:
    """The network that a run trains. One that starts from a model file has the network of the file.

    A run that was begun keeps the network of its record, whatever has become of that file.

    Raises:
        ConfigError: if `model` describes no network.
        CheckpointError: if the file of `init` is missing or not a model file.
        RunError: if the run's record is damaged.
    """
    if run.init is None:
        return RunNetwork(chosen_model(run.model), "")
    if RunRecord.exists(run.folder):
        record = RunRecord.read(run.folder)
        return RunNetwork(parse_model(record.field("model", dict), str(record.folder)), "")
    path = init_file(run.init)
    config = read_info(path).config
    if run.model.rates is not None and not config.rates:
        config = with_rates(config, run.model.rates)
    if run.model.model_fields_set <= {"rates"}:
        return RunNetwork(config, "")
    described, held = (
        m.model_dump(mode="json", exclude={"name", "published"})
        for m in (chosen_model(run.model), config)
    )
    different = [
        f"{key} {held.get(key)} instead of {described.get(key)}"
        for key in held | described
        if held.get(key) != described.get(key)
    ]
    listed = ", ".join(different[:3]) + ", ..." * (len(different) > 3)
    note = f"init: the network is that of {path.name}: {listed}" if different else ""
    return RunNetwork(config, note)
