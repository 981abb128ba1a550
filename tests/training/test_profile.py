"""Which steps a trace holds, and who writes one."""

import json

import torch

from hpcm_scale.config import RunConfig
from hpcm_scale.training.profile import Profile


def run(tmp_path, profile) -> RunConfig:
    values = {"name": "a", "out": tmp_path, "steps": 9, "data": {"train": "x"}, "profile": profile}
    config = RunConfig.model_validate(values)
    config.folder.mkdir(exist_ok=True)
    return config


def products_traced(path) -> int:
    events = json.loads(path.read_text())["traceEvents"]
    return sum(event.get("name") == "aten::mm" for event in events)


def train(config: RunConfig, rank: int, steps: range) -> None:
    """Step k multiplies k + 1 times."""
    a = torch.ones(2, 2)
    with Profile(config, rank) as profile:
        for step in steps:
            profile.at(step)
            for _ in range(step + 1):
                torch.mm(a, a)


def test_a_trace_holds_the_steps_it_names_and_no_others(tmp_path):
    config = run(tmp_path, (2, 2))
    train(config, 0, range(6))
    assert products_traced(config.folder / "profile" / "steps-2-3.json") == 3 + 4


def test_a_run_that_ends_within_its_trace_writes_what_there_is(tmp_path):
    config = run(tmp_path, (2, 50))
    train(config, 0, range(4))
    assert products_traced(config.folder / "profile" / "steps-2-51.json") == 3 + 4


def test_other_ranks_and_runs_without_write_none(tmp_path):
    train(run(tmp_path, (0, 2)), 1, range(3))
    train(run(tmp_path, None), 0, range(3))
    assert not (tmp_path / "a" / "profile").exists()
