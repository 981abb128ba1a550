"""Maximal update parametrization: initial weights and learning rates that transfer across widths.

A base network has the parametrization of torch. At other widths each parameter's initial values
and its learning rate of Adam are multiplied by factors of the ratio r = fan-in of the base / its
own (Yang et al., arXiv 2203.03466, table 3), so that every activation and its change in a step
keep their size:

| parameter | initial size relative to the base's | learning rate |
|---|---|---|
| weights between layers that grow with the width | √r | r |
| weights of outputs that do not grow: the picture | r | r |
| inputs that do not grow, depthwise kernels, biases, scales, gains, tables, densities | 1 | 1 |

The fan-in is the number of channels that an output sums over: of a transposed convolution those of
its input, of a depthwise one 1, of a partial one its own part. Attention keeps 1/√d: heads keep
their size d and follow the width in number.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.blocks.gdn import GDN
from hpcm_scale.models.blocks.residual import ResidualPair
from hpcm_scale.models.blocks.selective_scan import SelectiveScan2d
from hpcm_scale.models.zoo import build, chosen_model
from hpcm_scale.training.deepspeed_internals import is_partitioned

WIDER = 4.0
"""How much wider than the base the network is whose shapes tell which layers grow."""


class Matrices(NamedTuple):
    """Weights between channels that a kind of module has."""

    names: tuple[str, ...]
    outputs: int
    """Axis of the channels that they make."""
    inputs: int
    """Axis of those that an output sums over."""
    drawn_by: int | None
    """Axis whose size n they are drawn by, as 1/√n; None if they begin at fixed values."""
    biases: bool = True
    """Whether biases, named like their weights, are drawn by the same."""


MATRICES: dict[type[nn.Module], Matrices] = {
    nn.Conv2d: Matrices(("weight",), 0, 1, 1),
    nn.ConvTranspose2d: Matrices(("weight",), 1, 0, 1),
    nn.Linear: Matrices(("weight",), 0, 1, 1),
    ResidualPair: Matrices(("expand_weight", "project_weight"), 0, 1, 1),
    GDN: Matrices(("gamma",), 0, 1, None, biases=False),
    SelectiveScan2d: Matrices(("x_proj_weight", "dt_projs_weight"), 1, 2, 2, biases=False),
}
"""All else that a network learns is a number, or a few, for each channel."""


class Scaling(NamedTuple):
    """Factors of one parameter relative to the parametrization of torch."""

    init: float
    """Of its initial values."""
    lr: float
    """Of its learning rate."""


UNSCALED = Scaling(1.0, 1.0)


def scalings(run: RunConfig, model: ModelConfig) -> dict[str, Scaling]:
    """Factors of every parameter by name; none in the standard parametrization.

    Args:
        model: the network of the run: the one it chooses, or that of `init`, which must then be
            of the family that `run.model` names.

    Raises:
        ConfigError: if the base network has other parts than `model`.
    """
    width = run.optimizer.base_width
    if run.optimizer.parametrization == "standard" or width is None:
        return {}
    base, wide = (
        chosen_model(
            run.model.model_copy(update={"width": multiplier, "rates": model.rates or None})
        )
        for multiplier in (width, WIDER * width)
    )
    return between(model, base, wide)


def between(model: ModelConfig, base: ModelConfig, wide: ModelConfig) -> dict[str, Scaling]:
    """Factors of every parameter of one network against the same of `base`.

    Args:
        wide: a wider network of the family; channels that it has no more of than `base` do not
            grow.

    Raises:
        ConfigError: if the networks differ in their parts.
    """
    with torch.device("meta"):
        network, *others = (build(config) for config in (model, base, wide))
    own, of_base, of_wide = (
        {name: tuple(parameter.shape) for name, parameter in each.named_parameters()}
        for each in (network, *others)
    )
    kinds = [{name: len(shape) for name, shape in each.items()} for each in (own, of_base, of_wide)]
    if kinds[0] != kinds[1] or kinds[0] != kinds[2]:
        raise ConfigError(
            "optimizer.parametrization: mup compares the network with the one that `model` is at "
            "`base_width`, which has other parts; let `model` name variant, depth and overrides of "
            "`init`"
        )
    found = dict.fromkeys(own, UNSCALED)
    for prefix, module in network.named_modules():
        held = [matrices for kind, matrices in MATRICES.items() if isinstance(module, kind)]
        for name, matrices in ((name, each) for each in held for name in each.names):
            weight, bias = (f"{prefix}.{part}" for part in (name, name.replace("weight", "bias")))

            def ratio(axis: int, weight: str = weight) -> float:
                return of_base[weight][axis] / own[weight][axis]

            grows_out = of_base[weight][matrices.outputs] != of_wide[weight][matrices.outputs]
            lr = ratio(matrices.inputs)
            wanted = lr**0.5 if grows_out else lr
            by = matrices.drawn_by
            drawn = wanted if by is None else ratio(by) ** 0.5
            found[weight] = Scaling(wanted / drawn, lr)
            if matrices.biases and bias in own:
                found[bias] = Scaling(1 / drawn, 1.0)
    return found


@torch.no_grad()
def scale_initial(network: nn.Module, scalings: Mapping[str, Scaling]) -> None:
    """Multiply the initial values of a network, which ZeRO-3 may have spread already."""
    for name, parameter in network.named_parameters():
        held: Any = parameter
        if is_partitioned(parameter):
            held = held.ds_tensor  # this rank's part; the others scale theirs
        held.mul_(scalings[name].init)
