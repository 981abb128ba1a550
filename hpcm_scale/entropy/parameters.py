"""The entropy path: everything that decides which table codes a latent and what mean is added.

Encoder and decoder walk the same path with different callbacks. Here is the one in floating point;
`exact/path.py` has the one that every machine computes alike.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hpcm_scale.entropy.tables import Tables
from hpcm_scale.models.codec_network import CodecNetwork


class StepCoding(NamedTuple):
    """How the latents of one step are coded; all dense (B, C_k, h_k, w_k)."""

    table: Tensor
    """The table of each, int32: it alone decides the coding."""
    mean: Tensor
    scale: Tensor
    """Scale of the density, for the rate estimate."""

    def symbols(self, y: Tensor) -> Tensor:
        """Float symbols of the latents that an encoder has."""
        return (y - self.mean).round()

    def latents(self, symbols: Tensor) -> Tensor:
        """ŷ that symbols stand for."""
        return symbols + self.mean

    def residual(self, symbols: Tensor) -> Tensor:
        """Distance of ŷ from its mean, of which the density gives the likelihood."""
        return symbols


class UncentredStepCoding(StepCoding):
    """The same where ŷ = round(y): a symbol is counted from round(mean), towards the mean."""

    @property
    def _nearest(self) -> Tensor:
        return self.mean.round()

    @property
    def _side(self) -> Tensor:
        return torch.where(self.mean < self._nearest, -1.0, 1.0).to(self.mean.dtype)

    def symbols(self, y: Tensor) -> Tensor:
        return (y.round() - self._nearest) * self._side

    def latents(self, symbols: Tensor) -> Tensor:
        return symbols * self._side + self._nearest

    def residual(self, symbols: Tensor) -> Tensor:
        return self.latents(symbols) - self.mean


CodeStep = Callable[[int, StepCoding], Tensor]
"""(step, how its latents are coded) -> its symbols, int32."""


class EntropyParameters(Protocol):
    """Entropy parameters as the codec needs them."""

    portable: bool
    """Whether every machine computes the same indices and means; the header says which path."""

    def hyper_symbols(self, z: Tensor) -> Tensor:
        """z (B, N, h, w) as its float symbols, not yet bounded."""
        ...

    def walk(self, z_symbols: Tensor, code: CodeStep) -> Tensor:
        """ŷ (B, M, 4h, 4w) from z symbols (B, N, h, w) int32, calling `code` once a step."""
        ...


class FloatParameters:
    """The network as it was trained, in its own floating point.

    Its last bits depend on device, library and thread count, so a picture decodes for certain only
    where it was encoded; elsewhere the digest of the symbols catches a difference.
    """

    portable = False

    def __init__(self, network: CodecNetwork, tables: Tables) -> None:
        self._network = network
        device = next(network.parameters()).device
        self._boundaries = torch.from_numpy(tables.boundaries).to(device)
        self._offsets = None
        if tables.offsets is not None:
            self._offsets = torch.from_numpy(tables.offsets).to(device)

    def hyper_symbols(self, z: Tensor) -> Tensor:
        return (z - self._network.z_prior.centre).round()

    def walk(self, z_symbols: Tensor, code: CodeStep) -> Tensor:
        def coded(step: int, scale: Tensor, mean: Tensor) -> Tensor:
            coding = self.coding(scale, mean)
            return coding.latents(code(step, coding))

        z_hat = (z_symbols + self._network.z_prior.centre).contiguous(
            memory_format=torch.channels_last
        )
        return self._network.code_steps(self._network.h_s(z_hat), coded)

    def coding(self, scale: Tensor, mean: Tensor) -> StepCoding:
        """How latents of a scale and a mean, both dense (B, C_k, h_k, w_k), are coded."""
        index = torch.bucketize(scale.contiguous(), self._boundaries, out_int32=True)
        if self._offsets is None:
            return StepCoding(index, mean, scale)
        offset = (mean - mean.round()).abs().contiguous()
        index = index * (len(self._offsets) + 1)
        index += torch.bucketize(offset, self._offsets, out_int32=True)
        return UncentredStepCoding(index, mean, scale)
