"""Learning rates of parts, and parts that keep their weights."""

import pytest
import torch

from hpcm_scale.config import OptimizerConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.training.parameter_groups import FACTOR, check_parts, parameter_groups


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build(model_config("base", 0.025))


def names_of(network, group) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in network.named_parameters() if id(parameter) in ids}


def test_nothing_said_is_one_group_of_all(network):
    (group,) = parameter_groups(network, OptimizerConfig())
    assert group[FACTOR] == 1
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]


def test_the_innermost_part_decides(network):
    inner = next(n for n, _ in network.named_parameters() if n.startswith("g_a."))
    inner = inner.rpartition(".")[0]
    optimizer = OptimizerConfig(lr_factors={"g_a": 0.1, inner: 0.5}, freeze=("h_a",))
    check_parts(network, optimizer)
    groups = parameter_groups(network, optimizer)
    by_factor = {group[FACTOR]: names_of(network, group) for group in groups}
    assert all(name.startswith(inner + ".") for name in by_factor[0.5])
    assert all(name.startswith("g_a.") for name in by_factor[0.1])
    assert all(name.startswith("h_a.") for name in by_factor[None])
    assert sum(map(len, by_factor.values())) == len(list(network.parameters()))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_frozen_parts_keep_their_bits(network, optimizer):
    decay = 0.1 if optimizer == "adamw" else 0.0
    config = OptimizerConfig(type=optimizer, weight_decay=decay, freeze=("g_a", "h_s"))
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.Adam
    steps = kind(parameter_groups(network, config), lr=1e-2, weight_decay=decay)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(2):
        sum((p**2).sum() for p in network.parameters()).backward()
        assert all(not p.grad.any() for p in network.g_a.parameters())
        steps.step()
    for name, parameter in network.named_parameters():
        frozen = name.partition(".")[0] in config.freeze
        if frozen:
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(next(network.g_s.parameters()), before["g_s." + next(
        iter(dict(network.g_s.named_parameters())))])  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"freeze": ("g_b",)}, r"optimizer.freeze: the network has no part 'g_b'; it has g_a, "),
        ({"lr_factors": {"g": 0.1}}, "optimizer.lr_factors: the network has no part 'g'"),
        ({"freeze": ("everything",)}, "leaves nothing to train"),
    ],
)
def test_parts_that_cannot_be_meant_are_one_line(network, fields, words):
    if fields.get("freeze") == ("everything",):
        fields = {"freeze": tuple(name for name, _ in network.named_parameters())}
    with pytest.raises(ConfigError, match=words):
        check_parts(network, OptimizerConfig(**fields))
