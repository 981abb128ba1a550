"""The entropy path in exact arithmetic: the network's own walk over layers of integers."""

import copy
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.grid import GRID, LIMIT, requantize
from hpcm_scale.entropy.exact.integer_weights import integer_scale
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Calibration, Kernels
from hpcm_scale.entropy.exact.layers import (
    ExactContextStep,
    ExactQuadtreeStep,
    ExactSharedNet,
)
from hpcm_scale.entropy.exact.registry import Registry, registry_of
from hpcm_scale.entropy.parameters import CodeStep, FloatParameters, StepCoding
from hpcm_scale.entropy.tables import Tables
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.baselines.dcvc_dc import QuadtreeStep
from hpcm_scale.models.blocks.hyper_pair import HyperPair
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.context import ContextStep, SharedNet
from hpcm_scale.models.transforms import Transform

_COMPARING = (nn.ReLU, nn.Identity)
"""Layers that take and give grid tensors as they are."""

ARCHITECTURES = (
    *("hpcm", "dcvc-dc-intra"),
    *("elic", "stf", "weconvene", "dcae", "tcm", "lalic", "mambavc", "mlicpp", "flic"),
)
"""Those that have an exact path: also what their walks do beside calling layers is exact."""
LISTED = 4
"""Layers that a refusal names."""
_FLOATING = {"g_a", "g_s", "h_a", "z_prior", "gains"}
"""Parts of a network that stay as they are: no table and no mean depends on them."""


class ExactParameters:
    """Scales and means that every machine computes to the last bit, as EXACT.md defines them.

    Raises:
        CheckpointError: if the network is of an architecture that has no exact arithmetic, or if
            its parameters could make a sum overflow.
    """

    portable = True

    def __init__(
        self, network: CodecNetwork, tables: Tables, arithmetic: Arithmetic = ORIGINAL
    ) -> None:
        self._network = exact_network(network, Kernels(arithmetic))
        centre = network.z_prior.centre
        self._z_mean = requantize(centre.double() * GRID)
        boundaries = np.floor(tables.boundaries.astype(np.float64) * GRID)
        self._boundaries = torch.from_numpy(boundaries.astype(np.float32)).to(centre.device)
        self._uncentred = None if network.centred else FloatParameters(network, tables).coding

    def hyper_symbols(self, z: Tensor) -> Tensor:
        return (z - (self._z_mean / GRID).to(z.dtype)).round()

    def walk(self, z_symbols: Tensor, code: CodeStep) -> Tensor:
        def coded(step: int, scale: Tensor, mean: Tensor) -> Tensor:
            if self._uncentred is not None:
                # Grid integers over 1024 are single-precision numbers, as are their distances from
                # the nearest integer.
                coding = self._uncentred(scale / GRID, mean / GRID)
                return coding.latents(code(step, coding)) * GRID
            index = torch.bucketize(scale.contiguous(), self._boundaries, out_int32=True)
            symbols = code(step, StepCoding(index, mean / GRID, scale / GRID))
            return (symbols.double().mul_(GRID).add_(mean)).float()

        z_hat = (z_symbols.double() * GRID + self._z_mean).clamp_(-LIMIT, LIMIT).float()
        z_hat = z_hat.contiguous(memory_format=torch.channels_last)
        return self._network.code_steps(self._network.h_s(z_hat), coded) / GRID


def calibrated(network: CodecNetwork) -> Arithmetic:
    """The arithmetic that suits a network; the original for an architecture that has none.

    Holds the integers of one layer at a time.

    Raises:
        CheckpointError: naming the layer.
    """
    calibration = Calibration()
    _check(network, calibration)
    return calibration.arithmetic if network.config.architecture in ARCHITECTURES else ORIGINAL


def byte_weights(shapes: Mapping[str, tuple[int, ...]], arithmetic: Arithmetic) -> set[str]:
    """The parameters, by name, that an HPCM model's exact path takes as bytes: of its products.

    Args:
        shapes: of all parameters.
    """

    def is_narrow(name: str) -> bool:
        path = name.partition(".")[0] not in _FLOATING
        product = name.endswith("weight") and len(shapes[name]) == 4 and shapes[name][1] > 1
        # Layers with several weights name each: `pair.expand` is of `pair.expand_weight`.
        return path and product and not any(name.startswith(wide) for wide in arithmetic.wide)

    return {name for name in shapes if arithmetic.version == 2 and is_narrow(name)}


def check_exact(network: CodecNetwork, arithmetic: Arithmetic) -> None:
    """Refuse a network whose sums could overflow; one of an architecture without is let pass.

    Holds the integers of one layer at a time.

    Raises:
        CheckpointError: naming the layer.
    """
    _check(network, Kernels(arithmetic))


def _check(network: CodecNetwork, kernels: Kernels) -> None:
    if network.config.architecture not in ARCHITECTURES:
        return
    registry = registry_of(network.config.architecture)
    for name, module in network.named_children():
        if name not in _FLOATING:
            _check_layers(module, name, kernels, registry)


def _check_layers(module: nn.Module, name: str, kernels: Kernels, registry: Registry) -> None:
    layer = registry.layers.get(type(module))
    if layer is not None:  # its parts are no layers of their own
        layer(module, name, kernels)
        return
    if isinstance(module, ContextStep):
        integer_scale(module.scale.detach().double().cpu().numpy(), name)
    if type(module) in registry.blocks:
        registry.blocks[type(module)](module, {}, name, kernels)
    for part, child in module.named_children():
        _check_layers(child, f"{name}.{part}", kernels, registry)


def refused(network: CodecNetwork) -> str | None:
    """Why a network has no exact arithmetic; None if it has."""
    if network.config.architecture in ARCHITECTURES:
        return None
    inexact = obstacles(network)
    listed = ", ".join(inexact[:LISTED]) + ", ..." * (len(inexact) > LISTED)
    reason = listed or "what its steps compute beside layers"
    return f"architecture {network.config.architecture} has no exact arithmetic for {reason}"


def obstacles(network: CodecNetwork) -> list[str]:
    """Layers on the decoder's path that have no exact arithmetic, the first of each kind."""
    found: dict[str, str] = {}
    registry = registry_of(network.config.architecture)
    for name, child in network.named_children():
        if name not in _FLOATING:
            for layer, kind in _inexact(child, name, registry):
                found.setdefault(kind, f"{layer} ({kind})")
    return list(found.values())


def _inexact(module: nn.Module, name: str, registry: Registry) -> Iterator[tuple[str, str]]:
    """Name and kind of the layers inside `module` that have no exact counterpart."""
    if type(module) in (*registry.layers, *_COMPARING):
        return
    children = list(module.named_children())
    owns = any(True for _ in module.parameters(recurse=False))
    made = (ContextStep, nn.ModuleList, *registry.blocks)
    if not isinstance(module, made) and (owns or not children):
        yield name, type(module).__name__
    for part, child in children:
        yield from _inexact(child, f"{name}.{part}", registry)


def exact_network(network: CodecNetwork, kernels: Kernels = ORIGINAL_KERNELS) -> CodecNetwork:
    """A twin of `network` whose entropy path takes and gives grid tensors.

    Raises: as `ExactParameters`.
    """
    refusal = refused(network)
    if refusal is not None:
        raise CheckpointError(
            f"{refusal}, so its files decode for certain only where they were made; encode with "
            "--fast if that will do"
        )
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    device = network.z_prior.centre.device
    registry = registry_of(network.config.architecture)
    for name in twin._modules.keys() - _FLOATING:
        exact = _exact(getattr(network, name), name, kernels, registry)
        setattr(twin, name, exact.to(device))
    return twin


def _exact(module: nn.Module, name: str, kernels: Kernels, registry: Registry) -> nn.Module:
    """The exact layer, or container of exact layers, of `module`."""
    layer = registry.layers.get(type(module))
    if layer is not None:
        return layer(module, name, kernels)
    parts = {
        part: _exact(child, f"{name}.{part}", kernels, registry)
        for part, child in module.named_children()
    }
    if isinstance(module, ContextStep):
        return ExactContextStep(module, parts["adaptor"], name, kernels)
    if isinstance(module, QuadtreeStep):
        return ExactQuadtreeStep(parts["adaptor"])
    if isinstance(module, SharedNet):
        return ExactSharedNet(parts["before"], parts["after"])
    if isinstance(module, _COMPARING):
        return module
    if type(module) in registry.blocks:
        return registry.blocks[type(module)](module, parts, name, kernels)
    if isinstance(module, HyperPair):
        return HyperPair(*(cast(Transform, parts[part]) for part in ("mean", "scale")))
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*parts.values())
    return type(module)(parts.values())  # a ModuleList
