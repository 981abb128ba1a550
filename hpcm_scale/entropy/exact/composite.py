"""Base of the exact counterparts of blocks."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.kernels import Kernels
from hpcm_scale.entropy.exact.softmax import powers_of_two


class Composite(nn.Module):
    """A block of exact parts.

    Args:
        block: what it is the counterpart of.
        parts: its parts by name, exact.
        name: of the block, for errors.
        kernels: of the model's arithmetic.
    """

    functions: ClassVar[Mapping[str, Callable[[], nn.Module]]] = MappingProxyType({})
    """Functions of one value at a time, by the attributes they become."""

    def __init__(
        self, block: nn.Module, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__()
        for part, module in parts.items():
            self.add_module(part, module)
        for attribute, make in self.functions.items():
            self.add_module(attribute, make())


class Attending(Composite):
    """A block of exact parts that has the table of powers."""

    powers: Tensor

    def __init__(
        self, block: nn.Module, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        table = torch.from_numpy(powers_of_two().copy())
        self.register_buffer("powers", table, persistent=False)
