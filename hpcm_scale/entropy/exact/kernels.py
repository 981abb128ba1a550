"""The products of a model's exact layers in torch, as its arithmetic has them."""

import torch
from torch import Tensor

from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.integer_weights import (
    NOTHING,
    SCALE_BITS,
    Addend,
    integer_scale,
)
from hpcm_scale.entropy.exact.narrow import NarrowDepthwise, NarrowProduct
from hpcm_scale.entropy.exact.product import Depthwise, Product

LARGEST_ROUNDOFF = 1e-3
"""Layers that fewer bits change by more, in energy, keep 14: a few large weights among small
ones. Of bell-shaped weights bytes change about 1e-4."""


class Kernels:
    """Makes layers' products.

    Args:
        arithmetic: of the model.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic

    def product(
        self,
        weight: Tensor,
        bias: Tensor | None,
        name: str,
        addend: Addend = NOTHING,
        sloped: bool = False,
    ) -> Product | NarrowProduct:
        """The products of one layer; arguments as of `Product`."""
        if self.arithmetic.is_narrow(name):
            narrow = NarrowProduct(weight, bias, name, addend)
            if self._suits(name, narrow):
                return narrow
        return Product(weight, bias, name, addend, sloped)

    def depthwise(self, weight: Tensor, bias: Tensor, name: str) -> Depthwise | NarrowDepthwise:
        """The sums of a depthwise convolution; arguments as of `Depthwise`."""
        if self.arithmetic.is_narrow(name):
            narrow = NarrowDepthwise(weight, bias, name)
            if self._suits(name, narrow):
                return narrow
        return Depthwise(weight, bias, name)

    def _suits(self, name: str, narrow: NarrowProduct | NarrowDepthwise) -> bool:
        """Whether a layer that is to have few bits may have them."""
        return True

    def step_scale(self, scale: Tensor, name: str) -> Tensor:
        """A step's factors of activations; in arithmetic 2 a product is rounded once more.

        Raises:
            CheckpointError: as `integer_scale`.
        """
        integers = integer_scale(scale.detach().double().cpu().numpy(), name)
        factor = torch.from_numpy(integers / (1 << SCALE_BITS))
        factor = factor if self.arithmetic.version == 1 else factor.float()
        return factor.view(scale.shape).to(scale.device)


ORIGINAL_KERNELS = Kernels(ORIGINAL)


class Calibration(Kernels):
    """Arithmetic 2 while it is found out which layers bytes would spoil."""

    def __init__(self) -> None:
        super().__init__(Arithmetic(2))

    def _suits(self, name: str, narrow: NarrowProduct | NarrowDepthwise) -> bool:
        suits = narrow.roundoff <= LARGEST_ROUNDOFF
        if not suits:
            self.arithmetic = Arithmetic(2, self.arithmetic.wide | {name})
        return suits
