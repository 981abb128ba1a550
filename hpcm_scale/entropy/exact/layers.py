"""The network's layers in exact arithmetic: grid tensors (B, C, H, W) in and out.

Every layer works on some image rows at a time, which stay in the processor's cache.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.entropy.exact.grid import LIMIT, requantize
from hpcm_scale.entropy.exact.integer_weights import (
    SLOPE_DENOMINATOR,
    SLOPE_NUMERATOR,
    Addend,
)
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.neighbourhoods import bordered, largest_of, neighbours, strips
from hpcm_scale.entropy.exact.product import Product
from hpcm_scale.models.blocks.resampling import Conv1x1, Up2x2
from hpcm_scale.models.blocks.residual import DWConvRB, PConvRB, ResidualPair
from hpcm_scale.models.context import ContextStep


class ExactLinear(nn.Module):
    """A 1×1 convolution."""

    def __init__(
        self, layer: Conv1x1 | nn.Linear, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        super().__init__()
        self._product = kernels.product(layer.weight.flatten(1), layer.bias, name)

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


class ExactRows(ExactLinear):
    """A linear layer over the channels of positions."""

    def __init__(self, layer: nn.Linear, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__(layer, name, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, I) -> (B, H, W, O)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ExactUp(nn.Module):
    """A 2×2 transposed convolution of stride 2."""

    def __init__(self, layer: Up2x2, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
        assert layer.bias is not None  # the class is made with one
        self._product = kernels.product(weight, layer.bias.repeat(4), name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, h, w) -> (B, O, 2h, 2w)."""
        v = x.permute(0, 2, 3, 1)
        b, h, w, _ = v.shape
        out = v.new_empty(b, h, 2, w, 2, self._product.outputs // 4)
        operand = self._product.operand()
        for part in strips(v, taps=math.ceil(self._product.outputs / v.shape[3])):
            rows = v[part]
            settled = requantize(self._product.multiply(rows.flatten(0, 1), operand))
            out[part] = settled.view(*rows.shape[:2], 2, 2, -1).transpose(1, 2)
        return out.view(b, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


class _Pair:
    """x + a pair of 1×1 convolutions of h, with LeakyReLU between them, over rows."""

    def __init__(self, pair: ResidualPair, name: str, kernels: Kernels) -> None:
        self._expand = kernels.product(
            pair.expand_weight.flatten(1),
            pair.expand_bias,
            f"{name}.expand",
            sloped=True,
        )
        self._project = kernels.product(
            pair.project_weight.flatten(1), pair.project_bias, f"{name}.project", Addend(LIMIT)
        )
        self.expansion = len(pair.expand_weight) // len(pair.project_weight)

    def operands(self) -> tuple[Tensor, Tensor]:
        return self._expand.operand(), self._project.operand()

    def takes_ones(self, operands: tuple[Tensor, Tensor]) -> bool:
        """Whether h is best given in float64 with a column of ones, which adds the bias."""
        return isinstance(self._expand, Product) and operands[0].dtype == torch.float64

    def __call__(self, x: Tensor, h: Tensor, operands: tuple[Tensor, Tensor]) -> Tensor:
        """x (R, C), h (R, C) or, with ones, (R, C + 1) -> (R, C), settled."""
        expand, project = self._expand, self._project
        most = most_total = math.inf
        largest = None
        if isinstance(expand, Product) and isinstance(project, Product) and x.device.type == "cpu":
            # Most inputs are so small that no sum can reach what is clamped.
            largest = largest_of(h)
            most = expand.largest_sum(largest)
            most_total = project.largest_sum(most) + largest_of(x)
        hidden = expand.multiply(h, operands[0], largest)
        hidden = requantize(F.leaky_relu_(hidden, SLOPE_NUMERATOR / SLOPE_DENOMINATOR), most)
        return requantize(project.multiply(hidden, operands[1]).add_(x), most_total)


class _Block(nn.Module):
    """A residual block: a 3×3 convolution, then a pair of 1×1 ones."""

    _pair: _Pair

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        v = x.permute(0, 2, 3, 1)
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        operands, spatial = self._pair.operands(), self._spatial_operand()
        ones = self._pair.takes_ones(operands)
        for part in strips(v, taps=self._pair.expansion):
            rows = v[part]
            mixed = self._mix(rows, bordered(v, part), spatial, ones)
            done = self._pair(rows.flatten(0, 1), mixed.flatten(0, 1), operands)
            out[part] = done.view(rows.shape)
        return out.permute(0, 3, 1, 2)

    def _spatial_operand(self) -> Tensor:
        """Weights in the form that `_mix` takes."""
        raise NotImplementedError

    def _mix(self, rows: Tensor, around: Tensor, operand: Tensor, ones: bool) -> Tensor:
        """The pair's h (r, W, C) from image rows (r, W, C) and their surroundings.

        Args:
            ones: whether h may have a column of ones, (r, W, C + 1).
        """
        raise NotImplementedError


class ExactDWConvRB(_Block):
    """A DWConvRB in exact arithmetic."""

    def __init__(self, block: DWConvRB, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        layer = block.depthwise
        assert layer.bias is not None  # the block makes it with one
        self._depthwise = kernels.depthwise(
            layer.weight.flatten(1), layer.bias, f"{name}.depthwise"
        )
        self._pair = _Pair(block.pair, f"{name}.pair", kernels)

    def _spatial_operand(self) -> Tensor:
        return self._depthwise.taps

    def _mix(self, rows: Tensor, around: Tensor, operand: Tensor, ones: bool) -> Tensor:
        return requantize(self._depthwise.sums(around, neighbours, operand))


class ExactPConvRB(_Block):
    """A PConvRB in exact arithmetic."""

    def __init__(self, block: PConvRB, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        layer = block.partial
        # In the order of the neighbours, all channels of one after those of the one before.
        weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
        self._product = kernels.product(weight, layer.bias, f"{name}.partial")
        self._pair = _Pair(block.pair, f"{name}.pair", kernels)

    def _spatial_operand(self) -> Tensor:
        return self._product.operand()

    def _mix(self, rows: Tensor, around: Tensor, operand: Tensor, ones: bool) -> Tensor:
        count, channels = self._product.outputs, rows.shape[2]
        around = around[..., :count].contiguous()
        spatial = requantize(self._product.multiply_patches(around, 3, operand))
        shape, dtype = (*rows.shape[:2], channels + ones), torch.float64 if ones else rows.dtype
        out = torch.empty(shape, dtype=dtype, device=rows.device)
        out[..., :count] = spatial.view(*rows.shape[:2], count)
        out[..., count:channels] = rows[..., count:]
        out[..., channels:] = 1
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

    def __init__(
        self,
        step: ContextStep,
        adaptor: nn.Module,
        name: str,
        kernels: Kernels = ORIGINAL_KERNELS,
    ) -> None:
        super().__init__()
        self.adaptor = adaptor
        self._scale = kernels.step_scale(step.scale, name)

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


def _with_latents(context: Tensor, y_hat: Tensor) -> Tensor:
    """Input of an adaptor. ŷ is not bounded by the grid as activations are."""
    return torch.cat([context, y_hat.clamp(-LIMIT, LIMIT)], dim=1)
