"""Functions between the peers' linear layers in exact arithmetic: of grid tensors, one value at a
time. Shapes stay."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.entropy.exact.function_tables import gelu_drop, half_tanh, sigmoid_gate, silu_drop
from hpcm_scale.entropy.exact.grid import LIMIT, requantize
from hpcm_scale.entropy.exact.integer_weights import SLOPE_DENOMINATOR, SLOPE_NUMERATOR
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.errors import CheckpointError


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Entries of a table (n,) at integers of any floating-point type and shape, from 0 to n − 1."""
    # Twice as fast as indexing, and with dense memory in whatever order the index has.
    flat = index.int()
    if flat.is_contiguous(memory_format=torch.channels_last):
        rows = flat.permute(0, 2, 3, 1)
        return table.index_select(0, rows.reshape(-1)).view(rows.shape).permute(0, 3, 1, 2)
    return table.index_select(0, flat.reshape(-1)).view(flat.shape)


def leaky_relu(x: Tensor) -> Tensor:
    """The grid's LeakyReLU, its product rounded to single precision first."""
    return F.leaky_relu(x, SLOPE_NUMERATOR / SLOPE_DENOMINATOR).round_()


def added(x: Tensor, y: Tensor) -> Tensor:
    """The clamped sum of two grid tensors."""
    return (x + y).clamp_(-LIMIT, LIMIT)


def gated(x: Tensor, gate: Tensor, bits: int) -> Tensor:
    """round(x · gate / 2^bits), clamped to the grid: a grid tensor times integers over 2^bits."""
    return requantize(x.double().mul_(gate).mul_(2.0**-bits)).float()


class FromRelu(nn.Module):
    """A function that is ReLU but near 0, by a table of its distance from it.

    Args:
        distance: function − ReLU at ±n grid points, (reach + 1,); 0 at the last.
    """

    distance: Tensor

    def __init__(self, distance: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("distance", torch.tensor(distance), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        index = x.abs().clamp_(max=len(self.distance) - 1)
        return lookup(self.distance, index).add_(x.clamp_min(0))


class Centred(nn.Module):
    """A function that is constant far from 0, by a table of it around 0: (2·reach + 1,)."""

    table: Tensor

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("table", torch.tensor(table), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        reach = len(self.table) // 2
        return lookup(self.table, x.clamp(-reach, reach).add_(reach))


class Gelu(FromRelu):
    """GELU on the grid."""

    def __init__(self) -> None:
        super().__init__(-gelu_drop())


class ExactGelu(Gelu):
    """The GELU of a network, if it is the one by the error function."""

    def __init__(self, layer: nn.GELU, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        if layer.approximate != "none":
            raise CheckpointError(f"{name}: {layer} has no exact arithmetic")
        super().__init__()


class Silu(FromRelu):
    """SiLU on the grid."""

    def __init__(self) -> None:
        super().__init__(-silu_drop())


class Sigmoid(Centred):
    """The sigmoid of a grid tensor, over 2^15."""

    def __init__(self) -> None:
        super().__init__(sigmoid_gate())


class HalfTanh(Centred):
    """½·tanh on the grid."""

    def __init__(self) -> None:
        super().__init__(half_tanh())


def activation(function: Callable[[Tensor], Tensor], name: str) -> Callable[[Tensor], Tensor]:
    """The exact counterpart of the activation that a residual block is given.

    Raises:
        CheckpointError: if it has none.
    """
    if function is F.leaky_relu:
        return leaky_relu
    if function is F.gelu:
        return Gelu()
    raise CheckpointError(f"{name}: {function} has no exact arithmetic")
