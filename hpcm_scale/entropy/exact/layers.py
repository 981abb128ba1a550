"""The network's layers in exact arithmetic: grid tensors (B, C, H, W) in and out.

Every layer works on some image rows at a time, which stay in the processor's cache.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.entropy.exact.grid import EXACT, LIMIT, requantize
from hpcm_scale.entropy.exact.product import (
    SLOPE_DENOMINATOR,
    SLOPE_NUMERATOR,
    Addend,
    IntegerWeights,
    Product,
)
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.resampling import Conv1x1, Up2x2
from hpcm_scale.models.blocks.residual import DWConvRB, PConvRB, ResidualPair
from hpcm_scale.models.context import ContextStep

ELEMENTS = 192 * 1024
"""Positions times channels that a layer handles at a time, about."""
SCALE_BITS = 12
"""A step scale is an integer over 2^12."""


class ExactLinear(nn.Module):
    """A 1×1 convolution."""

    def __init__(self, layer: Conv1x1, name: str) -> None:
        super().__init__()
        self._product = Product(layer.weight.flatten(1), layer.bias, name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        v = x.permute(0, 2, 3, 1)
        out = v.new_empty(*v.shape[:3], self._product.outputs)
        operand = self._product.operand()
        for part in strips(v):
            rows = v[part]
            settled = requantize(self._product.multiply(rows.flatten(0, 1), operand))
            out[part] = settled.view(*rows.shape[:2], -1)
        return out.permute(0, 3, 1, 2)


class ExactUp(nn.Module):
    """A 2×2 transposed convolution of stride 2."""

    def __init__(self, layer: Up2x2, name: str) -> None:
        super().__init__()
        weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
        assert layer.bias is not None  # the class is made with one
        self._product = Product(weight, layer.bias.repeat(4), name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, h, w) -> (B, O, 2h, 2w)."""
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, c)
        out = requantize(self._product.multiply(rows, self._product.operand())).to(x.dtype)
        blocks = out.view(b, h, w, 2, 2, -1).transpose(2, 3)
        return blocks.reshape(b, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


class _Pair:
    """x + a pair of 1×1 convolutions of h, with LeakyReLU between them, over rows."""

    def __init__(self, pair: ResidualPair, name: str) -> None:
        self._expand = Product(
            pair.expand_weight.flatten(1),
            pair.expand_bias,
            f"{name}.expand",
            sloped=True,
        )
        self._project = Product(
            pair.project_weight.flatten(1), pair.project_bias, f"{name}.project", Addend(LIMIT)
        )

    def operands(self) -> tuple[Tensor, Tensor]:
        return self._expand.operand(), self._project.operand()

    def __call__(self, x: Tensor, h: Tensor, operands: tuple[Tensor, Tensor]) -> Tensor:
        """x, h (R, C) -> (R, C) float64, settled."""
        hidden = self._expand.multiply(h, operands[0])
        F.leaky_relu_(hidden, SLOPE_NUMERATOR / SLOPE_DENOMINATOR)
        return requantize(self._project.multiply(requantize(hidden), operands[1]).add_(x))


class _Block(nn.Module):
    """A residual block: a 3×3 convolution, then a pair of 1×1 ones."""

    _pair: _Pair

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        v = x.permute(0, 2, 3, 1)
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        operands, spatial = self._pair.operands(), self._spatial_operand()
        for part in strips(v):
            rows = v[part]
            mixed = self._mix(rows, bordered(v, part), spatial)
            done = self._pair(rows.flatten(0, 1), mixed.flatten(0, 1), operands)
            out[part] = done.view(rows.shape)
        return out.permute(0, 3, 1, 2)

    def _spatial_operand(self) -> Tensor:
        """Weights in the form that `_mix` takes."""
        raise NotImplementedError

    def _mix(self, rows: Tensor, around: Tensor, operand: Tensor) -> Tensor:
        """The pair's h (r, W, C) from image rows (r, W, C) and their surroundings."""
        raise NotImplementedError


class ExactDWConvRB(_Block):
    """A DWConvRB in exact arithmetic."""

    def __init__(self, block: DWConvRB, name: str) -> None:
        super().__init__()
        layer = block.depthwise
        assert layer.bias is not None  # the block makes it with one
        kernel, bias = (p.detach().cpu().numpy() for p in (layer.weight.flatten(1), layer.bias))
        weights = IntegerWeights(kernel, bias, f"{name}.depthwise")
        unit = np.ldexp(1.0, -weights.shift)
        device = layer.weight.device
        taps = (weights.weight * unit[:, None]).T.reshape(3, 3, -1)
        self._taps = torch.from_numpy(taps).to(device)
        self._bias = torch.from_numpy(weights.bias * unit).to(device)
        self._pair = _Pair(block.pair, f"{name}.pair")

    def _spatial_operand(self) -> Tensor:
        return self._taps

    def _mix(self, rows: Tensor, around: Tensor, operand: Tensor) -> Tensor:
        out = self._bias.expand(rows.shape).clone()
        for view, tap in zip(neighbours(around), operand.flatten(0, 1), strict=True):
            out.addcmul_(view, tap)
        return requantize(out)


class ExactPConvRB(_Block):
    """A PConvRB in exact arithmetic."""

    def __init__(self, block: PConvRB, name: str) -> None:
        super().__init__()
        layer = block.partial
        # In the order of the neighbours, all channels of one after those of the one before.
        weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
        self._product = Product(weight, layer.bias, f"{name}.partial")
        self._pair = _Pair(block.pair, f"{name}.pair")

    def _spatial_operand(self) -> Tensor:
        return self._product.operand()

    def _mix(self, rows: Tensor, around: Tensor, operand: Tensor) -> Tensor:
        count = self._product.outputs
        columns = torch.cat(list(neighbours(around[..., :count])), dim=-1)
        out = rows.double()
        spatial = requantize(self._product.multiply(columns.flatten(0, 1), operand))
        out[..., :count] = spatial.view(*rows.shape[:2], count)
        return out


class ExactSharedNet(nn.Module):
    """A SharedNet, its parts converted."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor, step_scale: Tensor) -> Tensor:
        """(B, 3M, h, w) -> ψ (B, 2M, h, w)."""
        scaled = requantize(self.before(x) * step_scale)
        return self.after(scaled.to(x.dtype))


class ExactContextStep(nn.Module):
    """A step's adaptor and its scale on the shared net's middle."""

    def __init__(self, step: ContextStep, adaptor: nn.Module, name: str) -> None:
        super().__init__()
        self.adaptor = adaptor
        self._scale = integer_scale(step, name) / (1 << SCALE_BITS)

    def forward(self, context: Tensor, y_hat: Tensor, shared: ExactSharedNet) -> Tensor:
        """ψ (B, 2M, h, w) from the context (B, 2M, h, w) and the latents so far (B, M, h, w)."""
        return shared(self.adaptor(_with_latents(context, y_hat)), self._scale)


class ExactQuadtreeStep(nn.Module):
    """A QuadtreeStep, its adaptor converted."""

    def __init__(self, adaptor: nn.Module) -> None:
        super().__init__()
        self.adaptor = adaptor

    def forward(self, params: Tensor, y_hat: Tensor, shared: nn.Module) -> Tensor:
        """(scale | mean) (B, 2M, h, w) from h_s(ẑ) (B, 2M, h, w) and ŷ so far (B, M, h, w)."""
        return shared(self.adaptor(_with_latents(params, y_hat)))


def integer_scale(step: ContextStep, name: str) -> Tensor:
    """A step's scale (1, 3M, 1, 1) as integers over 2^12, in float64.

    Raises:
        CheckpointError: if its products could leave what float64 represents exactly.
    """
    scale = step.scale.detach().double().mul(1 << SCALE_BITS).round()
    largest = float(scale.abs().max())
    if not largest * LIMIT < EXACT:
        raise CheckpointError(
            f"{name}.scale: is up to {largest / (1 << SCALE_BITS):.4g}, exact arithmetic allows "
            f"{EXACT // LIMIT >> SCALE_BITS}; the training diverged, export an earlier checkpoint"
        )
    return scale


def _with_latents(context: Tensor, y_hat: Tensor) -> Tensor:
    """Input of an adaptor. ŷ is not bounded by the grid as activations are."""
    return torch.cat([context, y_hat.clamp(-LIMIT, LIMIT)], dim=1)


def strips(v: Tensor, multiple: int = 1, taps: int = 1) -> Iterator[tuple[int, slice]]:
    """Indices of some image rows of (B, H, W, C) at a time, a multiple of `multiple`, in order.

    Args:
        taps: positions whose channels are put side by side for every position.
    """
    b, h, w, c = v.shape
    count = max(1, ELEMENTS // (w * c * taps * multiple)) * multiple
    for i in range(b):
        for top in range(0, h, count):
            yield i, slice(top, min(top + count, h))


def bordered(v: Tensor, part: tuple[int, slice], reach: int = 1) -> Tensor:
    """Image rows of (B, H, W, C) with `reach` positions around them, zeros outside: float64."""
    i, rows = part
    h, w, c = v.shape[1:]
    height = rows.stop - rows.start + 2 * reach
    out = torch.zeros(height, w + 2 * reach, c, dtype=torch.float64, device=v.device)
    first, last = max(rows.start - reach, 0), min(rows.stop + reach, h)
    start = first - (rows.start - reach)
    out[start : start + last - first, reach : reach + w] = v[i, first:last]
    return out


def neighbours(around: Tensor, reach: int = 1) -> Iterator[Tensor]:
    """What `bordered` gives -> the (r, W, C) that each tap of a kernel meets, row by row."""
    r, w = around.shape[0] - 2 * reach, around.shape[1] - 2 * reach
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            yield around[dy : dy + r, dx : dx + w]
