"""Weight gradients of layers that run many times in a pass, computed together at its end.

Left to autograd, every use of a shared layer has its own gradients of weight and bias, which are
added one after the other: four small launches a use. Here a use leaves what its gradients are
products of, and one product over all uses, of all layers of a shape, follows once the backward pass
has been through them. Parameters get their gradients once a pass, as before, so that what hangs on
it (ZeRO's reductions, accumulation over micro-batches) sees no difference.

Source: weight-gradient passes apart from the others are zero-bubble pipelining's
(arXiv 2401.10241); Transformer Engine keeps such a store for it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hpcm_scale.models.density import upcast_half
from hpcm_scale.models.linear import use_onednn, weight_gradient
from hpcm_scale.units import MIB

HELD_BYTES = 512 * MIB
"""Bytes that uses may leave on an accelerator before they are summed up. Batches that exceed it are
bound by arithmetic, not by launches."""
CPU_HELD_BYTES = 0
"""The same on a CPU, which gains nothing by waiting."""

Layer = tuple[Tensor, ...]
"""Weight and bias of a product of rows, (O, I) but for axes of size 1, or of a depthwise
convolution 3×3, (C, 1, 3, 3); or the factors of channels alone, (1, C, 1, 1)."""
Gradients = tuple[Tensor, ...]
"""Of a layer's parameters."""
Uses = Sequence[tuple[Tensor, Tensor]]
"""Of a layer: the gradients of its results and what went in, (n, O) and (n, I) or (B, C, h, w)."""


class WeightGradientStore:
    """What one pass through the uses of some layers leaves to be multiplied.

    It lives as long as the pass's graph: a backward pass that fails leaves nothing to the next.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._kinds = {id(layer[0]): _kind(layer) for layer in layers}
        self._uses: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._sums: dict[int, Gradients] = {}
        self._held = 0
        self.token: Tensor = _Settle.apply(self, *(one for layer in layers for one in layer))
        """An input of every use, so that the layers' gradients come after the last of them."""

    def add(self, weight: int, grad: Tensor, x: Tensor) -> None:
        """Note that the backward pass has been through a use.

        Args:
            weight: the `id` of the layer's.
            grad: of the layer's result: (n, O), or (B, C, h, w) of a convolution.
            x: what went in: (n, I) or (B, C, h, w).
        """
        # Detached: a graph that its own store held would never be freed if this pass failed.
        self._uses[weight].append((grad, x.detach()))
        self._held += grad.nbytes + x.nbytes
        if self._held > (CPU_HELD_BYTES if grad.device.type == "cpu" else HELD_BYTES):
            self._sum_up()

    def gradients(self) -> list[Tensor | None]:
        """Gradients of the parameters of layer after layer, None of those not used."""
        self._sum_up()
        found: list[Tensor | None] = []
        for layer in self._layers:
            sums = self._sums.pop(id(layer[0]), (None,) * len(layer))
            for parameter, total in zip(layer, sums, strict=True):
                if total is not None and parameter.requires_grad:
                    found.append(total.to(parameter.dtype).view_as(parameter))
                else:
                    found.append(None)
        return found

    def _sum_up(self) -> None:
        alike: dict[Any, list[tuple[int, Uses]]] = defaultdict(list)
        for weight, uses in self._uses.items():
            by_size: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for grad, x in uses:  # maps of one size go together, rows whatever their number
                by_size[x.shape[2:]].append((grad, x))
            for some in by_size.values():
                shapes = tuple((grad.shape, x.shape) for grad, x in some)
                alike[self._kinds[weight], shapes].append((weight, some))
        for (kind, *_), found in alike.items():
            weights, layers = zip(*found, strict=True)
            for weight, new in zip(weights, kind(layers), strict=True):
                self._sums[weight] = _added(self._sums.get(weight), new)
        self._uses.clear()
        self._held = 0


class _Settle(torch.autograd.Function):
    """Gives layers their gradients when the backward pass has been through all their uses."""

    @staticmethod
    def forward(ctx: Any, store: WeightGradientStore, *parameters: Tensor) -> Tensor:
        ctx.store = store
        ctx.set_materialize_grads(False)
        return parameters[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.store.gradients()


def _added(sums: Gradients | None, new: Gradients) -> Gradients:
    if sums is None:
        return new
    # Half precision would lose what comes late.
    return tuple(upcast_half(total).add_(one) for total, one in zip(sums, new, strict=True))


def _kind(layer: Layer) -> Callable[[Sequence[Uses]], Iterable[Gradients]]:
    if len(layer) == 1:
        return _factors
    return _depthwise if layer[0].shape[-1] == 3 else _products


def _stacked(layers: Sequence[Uses], which: int) -> Tensor:
    """Gradients (0) or inputs (1) of all uses of all layers: (layers, uses · n or B, ...)."""
    parts = [use[which] for uses in layers for use in uses]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.unflatten(0, (len(layers), -1))


def _products(layers: Sequence[Uses]) -> Iterable[Gradients]:
    """Gradients of weights and biases from uses (n, O) and (n, I), equally many of each layer."""
    grad, x = _stacked(layers, 0), _stacked(layers, 1)
    if use_onednn(x):  # a batched product would be BLAS's
        of_weight = [weight_gradient(g, rows) for g, rows in zip(grad, x, strict=True)]
    else:
        of_weight = torch.bmm(grad.transpose(1, 2), x)
    return zip(of_weight, grad.sum(1), strict=True)


def _factors(layers: Sequence[Uses]) -> Iterable[Gradients]:
    """Gradients of factors of channels from uses (B, C, h, w) twice."""
    return ((one,) for one in (_stacked(layers, 0) * _stacked(layers, 1)).sum((1, 3, 4)))


def _depthwise(layers: Sequence[Uses]) -> Iterable[Gradients]:
    """Gradients of depthwise convolutions from uses (B, C, h, w) twice: by one, of all channels."""
    grad, x = (_side_by_side(_stacked(layers, which)) for which in (0, 1))
    shape = x.new_empty(1).expand(x.shape[1], 1, 3, 3)  # its values are not read
    _, *found = depthwise_backward(grad, x, shape, (False, True, True))
    return zip(*(one.chunk(len(layers)) for one in found), strict=True)


def _side_by_side(maps: Tensor) -> Tensor:
    """Maps (layers, B, C, h, w) as one of many channels, in channels_last memory."""
    if len(maps) == 1:
        return maps[0]
    return maps.permute(1, 3, 4, 0, 2).flatten(3).permute(0, 3, 1, 2)


def depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, ...]:
    """Gradients of x (B, C, h, w), weight (C, 1, 3, 3) and bias (C,), those `wanted`."""
    channels = x.shape[1]
    return torch.ops.aten.convolution_backward(
        *(grad, x, weight, [channels], [1, 1], [1, 1], [1, 1], False, [0, 0], channels),
        list(wanted),
    )


class Delayable:
    """A module that gives its uses to a store, where there is one."""

    delayed: "DelayedGradients | None" = None

    def layers(self) -> list[Layer]:
        """Parameters of each of its own layers: of one, if not said otherwise."""
        return [tuple(self.parameters(recurse=False))]  # pyright: ignore[reportAttributeAccessIssue]


class DelayedGradients:
    """Hands layers the store of the pass that is under way."""

    def __init__(self) -> None:
        self._store: WeightGradientStore | None = None

    @property
    def store(self) -> WeightGradientStore | None:
        """Of this pass; None where a use computes its own gradients.

        That is so in compiled code, without gradients, under ZeRO-3, and where activations are
        recomputed (whose results matter, not their graph).
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None
        return self._store

    def take_over(self, modules: nn.Module) -> None:
        """Delay the weight gradients of all layers in `modules` that know how."""
        for module in modules.modules():
            if isinstance(module, Delayable):
                module.delayed = self

    @contextmanager
    def one_pass(self, *modules: nn.Module) -> Iterator[None]:
        """Let all uses of the layers in `modules` share a store while this lasts."""
        if torch.is_grad_enabled():
            layers = [
                layer
                for each in modules
                for module in each.modules()
                if isinstance(module, Delayable)
                for layer in module.layers()
            ]
            parameters = [one for layer in layers for one in layer]
            # ZeRO-3 has a parameter, and its shape, only while its owner runs.
            whole = not any(hasattr(one, "ds_id") for one in parameters)
            if whole and any(one.requires_grad for one in parameters):
                self._store = WeightGradientStore(layers)
        try:
            yield
        finally:
            if self._store is not None:
                del self._store.token  # the graph, which holds the store, has it from here on
            self._store = None
