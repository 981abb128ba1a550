"""Groups of parameters that the optimizer treats apart: by learning rate, frozen, auxiliary."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from hpcm_scale.config import OptimizerConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.training.parametrization import UNSCALED, Scaling

FACTOR = "lr_factor"
"""Key of a group: what its learning rate is of the run's; None if it has one of its own."""


def part_of(name: str, parts: Iterable[str]) -> str | None:
    """The longest of some module paths that a parameter lies in; None if it lies in none."""
    found = [part for part in parts if name == part or name.startswith(f"{part}.")]
    return max(found, key=len, default=None)


def check_parts(network: CodecNetwork, optimizer: OptimizerConfig) -> None:
    """
    Raises:
        ConfigError: if `freeze` or `lr_factors` names what no parameter lies in, or nothing is
            left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for field, parts in (("freeze", optimizer.freeze), ("lr_factors", optimizer.lr_factors)):
        for part in parts:
            if not any(part_of(name, [part]) for name in names):
                known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                raise ConfigError(
                    f"optimizer.{field}: the network has no part {part!r}; it has {known}, and "
                    "parts of these by dotted names"
                )
    if all(part_of(name, optimizer.freeze) for name in names):
        raise ConfigError("optimizer.freeze: leaves nothing to train")


def parameter_groups(
    network: CodecNetwork, optimizer: OptimizerConfig, scalings: Mapping[str, Scaling] | None = None
) -> list[dict[str, Any]]:
    """Groups by learning rate, then those of the auxiliary loss, then frozen ones, where any.

    Args:
        scalings: of the parameters by name, where the parametrization has any. Decoupled weight
            decay is a share of the learning rate: it is divided by the factor of that.

    Frozen parameters keep taking part in the passes and in the optimizer, with gradients of 0 and a
    rate of 0: their values do not change, nor do they count in the norm that is clipped. Parameters
    without gradients are reported to stay gathered on every rank after recomputation (DeepSpeed's
    issue 8148).
    """
    auxiliary = {id(parameter) for parameter in network.z_prior.auxiliary_parameters}
    by_factors: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, 1.0): []}
    of_auxiliary_loss, frozen = [], []
    for name, parameter in network.named_parameters():
        if part_of(name, optimizer.freeze):
            parameter.register_hook(torch.zeros_like)
            frozen.append(parameter)
        elif id(parameter) in auxiliary:
            of_auxiliary_loss.append(parameter)
        else:
            part = part_of(name, optimizer.lr_factors)
            factor = 1.0 if part is None else optimizer.lr_factors[part]
            scale = (scalings or {}).get(name, UNSCALED).lr
            by_factors.setdefault((factor, scale), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (factor, scale), members in by_factors.items():
        if members:
            groups.append({"params": members, FACTOR: factor * scale})
            if scale != 1:
                groups[-1]["weight_decay"] = optimizer.weight_decay / scale
    if of_auxiliary_loss:
        rate = optimizer.auxiliary_lr
        groups.append({"params": of_auxiliary_loss, "lr": rate, "weight_decay": 0.0, FACTOR: None})
    if frozen:
        groups.append({"params": frozen, "lr": 0.0, "weight_decay": 0.0, FACTOR: None})
    return groups
