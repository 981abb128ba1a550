"""The entropy path: everything that decides which table codes a latent and what mean is added.

Encoder and decoder walk the same path with different callbacks. Here is the one in floating point;
`exact/path.py` has the one that every machine computes alike.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hpcm_scale.entropy.tables import Tables
from hpcm_scale.models.codec_network import CodecNetwork

CodeStep = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(step, table index, mean, scale) -> symbols of the step, int32; all dense (B, C_k, h_k, w_k).

The scale is what the rate estimate prices with; the table index alone decides the coding."""


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
        self._boundaries = torch.from_numpy(tables.boundaries).to(next(network.parameters()).device)

    def hyper_symbols(self, z: Tensor) -> Tensor:
        return (z - self._network.z_prior.centre).round()

    def walk(self, z_symbols: Tensor, code: CodeStep) -> Tensor:
        def coded(step: int, scale: Tensor, mean: Tensor) -> Tensor:
            index = torch.bucketize(scale.contiguous(), self._boundaries, out_int32=True)
            return code(step, index, mean, scale) + mean

        z_hat = (z_symbols + self._network.z_prior.centre).contiguous(
            memory_format=torch.channels_last
        )
        return self._network.code_steps(self._network.h_s(z_hat), coded)
