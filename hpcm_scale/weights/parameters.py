"""A network's parameters as model files hold them: names, shapes, values, hashes.

A file's configuration is not believed before its tensors bear it out: a network of it is built on
no device, and only as far as it needs no more parameters than the file has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from hpcm_scale.config import ModelConfig
from hpcm_scale.errors import CheckpointError, ConfigError, one_line
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.zoo import build, network_class
from hpcm_scale.weights.byte_weights import as_bytes, from_bytes

_REGISTERED = 4
"""Times that a parameter may be registered while a network is built: some are made in one module
and moved to another."""
_MODULES = 20
"""More modules than this for each tensor, no network here has."""
_SHOWN = 80
"""Characters of a name from a file in an error."""


class Extent(NamedTuple):
    """Bound on the size of a network."""

    tensors: int
    elements: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Size of some parameters."""
        return cls(len(tensors), sum(tensor.numel() for tensor in tensors.values()))


def build_on_meta(config: ModelConfig, source: str, limit: Extent | None = None) -> CodecNetwork:
    """The network of a configuration, with parameters that have shapes and no values.

    Args:
        source: what errors name.
        limit: how large it may be; building stops as soon as it is larger.

    Raises:
        CheckpointError: if no such network can be built, or not within the limit.
    """
    network_class(config.architecture)  # imported out here: it may make tensors of its own
    try:
        with torch.device("meta"), _Uninitialised(), _within(limit):
            return build(config)
    except (ConfigError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        reason = one_line(error)[:200]
        raise CheckpointError(f"{source}: holds no network that can be built ({reason})") from None


def parameter_shapes(
    config: ModelConfig, source: str, limit: Extent | None = None
) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's parameters by name, in its order.

    Args, Raises: as for `build_on_meta`.
    """
    return shapes_of(build_on_meta(config, source, limit))


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's parameters by name, in its order."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


class _Uninitialised(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does: on no device it takes most of the time and fills
    nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def _within(limit: Extent | None) -> Iterator[None]:
    """Let networks have no more parameters than that."""
    if limit is None:
        yield
        return
    tensors = elements = modules = 0

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, elements
        if parameter is not None:
            tensors += 1
            elements += parameter.numel()
        if tensors > _REGISTERED * limit.tensors or elements > _REGISTERED * limit.elements:
            raise ConfigError(
                f"its configuration needs more than the {limit.tensors} parameters of "
                f"{limit.elements} values that the file has"
            )

    def count_module(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > _MODULES * (limit.tensors + 1):
            raise ConfigError(
                f"its configuration needs over {modules - 1} modules, for {limit.tensors} tensors"
            )

    hooks = (
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Rounded(Mapping[str, Tensor]):
    """Parameters as float16 holds them."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        return self._parameters[name].half()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


class InBytes(Mapping[str, Tensor]):
    """Parameters, of which some weights are as `byte_weights` holds them.

    Args:
        parameters: all of them.
        names: of those weights.
    """

    def __init__(self, parameters: Mapping[str, Tensor], names: Set[str]) -> None:
        self._parameters, self._names = parameters, names

    def integers(self, name: str) -> np.ndarray:
        """One of those weights as stored, in int8."""
        return self._stored(name)[0]

    def units(self, name: str) -> np.ndarray:
        """The units of its output channels."""
        return self._stored(name)[1]

    def _stored(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return as_bytes(self._parameters[name].detach().float().cpu().numpy())

    def __getitem__(self, name: str) -> Tensor:
        if name in self._names:
            return torch.from_numpy(from_bytes(*self._stored(name)))
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def check_names(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, object], config: ModelConfig, source: str
) -> None:
    """Raises CheckpointError unless the tensors are those of the network, by name."""
    missing, unknown = sorted(shapes.keys() - tensors), sorted(tensors.keys() - shapes)
    if missing or unknown:
        shown = [name[:_SHOWN] for name in unknown[:3]]
        raise CheckpointError(
            f"{source}: parameters do not fit the model {config.name}: "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {shown}"
        )


def values_of(
    tensors: Mapping[str, Tensor], name: str, shapes: Mapping[str, tuple[int, ...]], source: str
) -> np.ndarray:
    """A parameter in float32.

    Raises:
        CheckpointError: if it has another shape, or values that are not finite.
    """
    tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
    if tuple(tensor.shape) != shapes[name]:
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(tensor.shape)}, the model needs {shapes[name]}"
        )
    if not tensor.isfinite().all():
        raise CheckpointError(
            f"{source}: {name} holds values that are not finite; the training diverged, "
            "export an earlier checkpoint"
        )
    return tensor.numpy()
