"""Slices of channels coded one after the other, each refined by a predicted residual.

Source: Minnen and Singh, arXiv 2007.08739, whose walk STF, TCM, MambaVC, WeConvene and DCAE take
with contexts of their own.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from hpcm_scale.config import ModelConfig
from hpcm_scale.models.blocks.gated_context import GatedContext
from hpcm_scale.models.blocks.sampling import conv3
from hpcm_scale.models.blocks.window_attention import SwinLayer
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.slices import SlicePartition

Config = TypeVar("Config", bound=ModelConfig)

CONTEXT_WINDOW = 8
"""Side of the windows that a `GatedSliceNetwork`'s contexts attend in, in latents."""


def slice_net(inputs: int, widths: Sequence[int], outputs: int) -> nn.Sequential:
    """3×3 convolutions with GELUs between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *widths, outputs)):
        layers += [conv3(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class PredictedResidual(nn.Module):
    """coded + ½·tanh(r): a slice with half a tangent of what its residual net says, r."""

    def forward(self, coded: Tensor, r: Tensor) -> Tensor:
        return coded + 0.5 * r.tanh()


class ResidualSliceNetwork(CodecNetwork[Config, SlicePartition]):
    """A network with a mean, a scale and a residual net of each slice; what extends it walks."""

    def add_slice_nets(
        self, inputs: Sequence[int], widths: Sequence[int], read: Sequence[int] | None = None
    ) -> None:
        """Make the nets.

        Args:
            inputs: channels that the mean and the scale net of each slice read.
            widths: channels between a net's convolutions.
            read: channels that the residual net of each slice reads beside the slice; those of the
                mean if not given.
        """
        sizes = self.partition.sizes
        pairs = list(zip(inputs, sizes, strict=True))
        self.mean_nets = nn.ModuleList(slice_net(count, widths, size) for count, size in pairs)
        self.scale_nets = nn.ModuleList(slice_net(count, widths, size) for count, size in pairs)
        self.residual_nets = nn.ModuleList(
            slice_net(count + size, widths, size)
            for count, size in zip(read or inputs, sizes, strict=True)
        )
        self.predicted_residual = PredictedResidual()

    def code_slice(
        self,
        i: int,
        code: Code,
        mean_context: Tensor,
        scale_context: Tensor,
        read: Tensor | None = None,
    ) -> Tensor:
        """ŷ of slice i with its residual: the symbols' value + ½·tanh(residual net).

        Args:
            code: as for `code_steps`.
            mean_context, scale_context: (B, C, h, w), what mean and scale are predicted from.
            read: what the residual is predicted from beside the slice; the mean's context if not
                given.
        """
        mean = self.run(self.mean_nets[i], mean_context)
        scale = self.run(self.scale_nets[i], scale_context)
        coded = code(i, scale, mean)
        inputs = torch.cat([mean_context if read is None else read, coded], dim=1)
        return self.predicted_residual(coded, self.run(self.residual_nets[i], inputs))


def swin_pair(width: int, heads: int) -> nn.Sequential:
    """A plain and a shifted Swin layer: what TCM and MambaVC refine their contexts by."""
    layers = (SwinLayer(width, heads, CONTEXT_WINDOW, shifted) for shifted in (False, True))
    return nn.Sequential(*layers)


class GatedSliceNetwork(ResidualSliceNetwork[Config]):
    """Slices that read all before them through gates (TCM, MambaVC, WeConvene)."""

    def add_gates(
        self,
        read: Sequence[int],
        given: Sequence[int],
        width: int,
        refine: Callable[[], nn.Module],
    ) -> None:
        """Make the gates.

        Args:
            read, given: channels that the gates of each slice read and hand out.
            width: channels inside.
            refine: makes what a gate refines its mask by.
        """
        pairs = list(zip(read, given, strict=True))
        self.mean_gates, self.scale_gates = (
            nn.ModuleList(
                GatedContext(inputs, width, outputs, refine()) for inputs, outputs in pairs
            )
            for _ in ("mean", "scale")
        )

    def beside_slice(self, i: int, mean_context: Tensor, done: Sequence[Tensor]) -> Tensor:
        """Input of the residual net of slice i beside the slice."""
        return mean_context

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ): (mean | scale), (B, 2C, h, w).
            code: called once a slice with its scale and mean; returns ŷ.

        Returns:
            What g_s reads (B, M, h, w): ŷ, residuals included.
        """
        mean, scale = params.chunk(2, dim=1)
        done: list[Tensor] = []
        for i, (mean_gate, scale_gate) in enumerate(
            zip(self.mean_gates, self.scale_gates, strict=True)
        ):
            mean_context = self.run(mean_gate, torch.cat([mean, *done], dim=1))
            scale_context = self.run(scale_gate, torch.cat([scale, *done], dim=1))
            read = self.beside_slice(i, mean_context, done)
            done.append(self.code_slice(i, code, mean_context, scale_context, read))
        return torch.cat(done, dim=1)
