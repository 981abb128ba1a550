"""Maximal update parametrization: which parameters are scaled, by how much, and that it works."""

import pytest
import torch

from hpcm_scale.bench.coordinates import PARAMETRIZATIONS, Check, measure, slopes
from hpcm_scale.config import OptimizerConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.training.parameter_groups import FACTOR, parameter_groups
from hpcm_scale.training.parametrization import (
    UNSCALED,
    Scaling,
    between,
    scale_initial,
)

BASE = 0.1
PEERS = ("flic", "mambavc", "lalic", "dcae")


def of(variant: str, width: float, base: float = BASE) -> dict[str, Scaling]:
    return between(*(model_config(variant, each) for each in (width, base, 4 * base)))


def test_at_the_base_width_nothing_is_scaled():
    assert set(of("base", BASE).values()) == {UNSCALED}


def test_each_kind_of_parameter_has_its_factors():
    found = of("base", 0.2)
    # Channels of the transforms at 0.1 and 0.2: 8, 20, 40 and 20, 40, 76; M: 32 and 64.
    wanted = {
        "g_a.0.0.weight": (1, 1),  # from the picture
        "g_a.0.0.bias": (1, 1),
        "g_a.1.0.weight": (1, 8 / 20),
        "g_a.1.0.bias": ((20 / 8) ** 0.5, 1),
        "g_a.1.1.partial.weight": (1, 5 / 10),
        "g_a.1.1.pair.project_weight": (1, 20 / 40),
        "g_a.1.1.pair.project_bias": ((40 / 20) ** 0.5, 1),
        # A transposed convolution is drawn by its outputs, 40 -> 76, and sums over M inputs.
        "g_s.0.0.weight": ((76 / 40 * 32 / 64) ** 0.5, 32 / 64),
        "g_s.3.2.weight": (8 / 20, 8 / 20),  # to the picture
        "g_s.3.2.bias": (1, 1),
        "shared_s3.before.0.depthwise.weight": (1, 1),
        "steps.0.scale": (1, 1),
        "fusions.0.query.weight": (1, 32 / 64),
        "z_prior.scale": (1, 1),
    }
    for name, (init, lr) in wanted.items():
        assert found[name] == pytest.approx((init, lr)), name


@pytest.mark.parametrize("variant", ["base", *PEERS])
def test_what_grows_along_two_axes_has_a_smaller_rate(variant):
    """Whatever the module: such a weight's fan-in grows; a value or a few a channel has none."""
    found = of(variant, 2 * BASE)
    with torch.device("meta"):
        small, large = (
            dict(build(model_config(variant, width)).named_parameters())
            for width in (BASE, 2 * BASE)
        )
    for name, parameter in large.items():
        shapes = zip(small[name].shape, parameter.shape, strict=True)
        grown = sum(before != after for before, after in shapes)
        assert found[name].lr < 1 if grown == 2 else 0.25 < found[name].lr <= 1, name
        assert grown < 3


def test_networks_of_other_parts_are_no_base():
    deeper = model_config("base", BASE, depth=2)
    with pytest.raises(ConfigError, match=r"optimizer.parametrization: mup compares .* `init`"):
        between(deeper, model_config("base", BASE), model_config("base", 4 * BASE))


def test_groups_have_the_factors_and_keep_the_decay_of_a_step():
    network = build(model_config("base", 2 * BASE))
    optimizer = OptimizerConfig(
        type="adamw", weight_decay=0.1, parametrization="mup", base_width=BASE,
        lr_factors={"g_s": 0.5}, freeze=("h_a",),
    )  # fmt: skip
    scalings = of("base", 2 * BASE)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in parameter_groups(network, optimizer, scalings):
        for parameter in group["params"]:
            name = names[id(parameter)]
            if name.startswith("h_a."):
                assert group["lr"] == 0
                continue
            part = 0.5 if name.startswith("g_s.") else 1.0
            assert group[FACTOR] == part * scalings[name].lr
            decay = group.get("weight_decay", optimizer.weight_decay)
            assert group[FACTOR] * decay == pytest.approx(part * optimizer.weight_decay)


def test_initial_values_are_scaled():
    torch.manual_seed(0)
    network = build(model_config("base", 2 * BASE))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    found = of("base", 2 * BASE)
    scale_initial(network, found)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name] * found[name].init), name
    last = "g_s.3.2.weight"
    assert not torch.equal(before[last], network.get_parameter(last))


SURE = ("ResidualPair", "Up2x2", "Conv1x1", "Conv1x1, query", "Conv1x1, value", "Conv1x1, out")
"""Layers whose changes vary little from seed to seed."""


def test_updates_keep_their_size_with_mup_and_grow_without():
    """The coordinate check, small: the standard parametrization must fail what mup passes."""
    overrides = {"windows": (1, 2, 2), "hyper_depths": (0, 1)}
    check = Check(widths=(0.05, 0.2), seeds=1, steps=2, eps=1e-16, overrides=overrides)
    standard, mup = (
        {kind: slopes(values[..., 0], check.widths)[0] for kind, values in found.items()}
        for found in (measure(check, parametrization) for parametrization in PARAMETRIZATIONS)
    )
    assert max(abs(mup[kind]) for kind in SURE) < 0.15
    assert max(map(abs, mup.values())) < 0.6
    assert min(standard[kind] for kind in SURE) > 0.2
