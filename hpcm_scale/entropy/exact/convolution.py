"""Convolutions of any odd kernel in exact arithmetic: grid tensors (B, C, H, W) in and out.

Their input may be latents, which the grid does not bound: it is clamped to the grid first.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.entropy.exact.grid import LIMIT, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.neighbourhoods import bordered, neighbours, strips
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.checkerboard_context import CheckerboardConv


class _Taps(nn.Module):
    """Products of every position's neighbourhood with weights.

    Args:
        weight: (O, taps, taps, I).
        bias: (O,); None for none.
        name: of the layer, for errors.
        kernels: of the model's arithmetic.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, name: str, kernels: Kernels) -> None:
        super().__init__()
        self._reach = weight.shape[1] // 2
        # In the order of the neighbours, all channels of one after those of the one before.
        self._product = kernels.product(weight.flatten(1), bias, name)

    def _sums(self, v: Tensor) -> Tensor:
        """(B, H, W, I) -> (B, H, W, O), requantized."""
        out = v.new_empty(*v.shape[:3], self._product.outputs)
        operand = self._product.operand()
        for part in strips(v, taps=(2 * self._reach + 1) ** 2):
            around = self._around(v, part)
            sums = self._product.multiply_patches(around, 2 * self._reach + 1, operand)
            out[part] = requantize(sums).view(out[part].shape)
        return out

    def _around(self, v: Tensor, part: tuple[int, slice]) -> Tensor:
        return bordered(v, part, self._reach).clamp_(-LIMIT, LIMIT)


class ExactConv(_Taps):
    """A convolution of stride 1 that keeps the sides."""

    def __init__(self, layer: nn.Conv2d, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        _check_form(layer, name, groups=1)
        super().__init__(layer.weight.permute(0, 2, 3, 1), layer.bias, name, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        return self._sums(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ExactDepthwiseConv(nn.Module):
    """A depthwise convolution of stride 1 that keeps the sides; of activations, never latents."""

    def __init__(self, layer: nn.Conv2d, name: str, kernels: Kernels = ORIGINAL_KERNELS) -> None:
        super().__init__()
        _check_form(layer, name, layer.in_channels)
        assert layer.bias is not None  # no network has one without
        self._reach = layer.kernel_size[0] // 2
        self._depthwise = kernels.depthwise(layer.weight.flatten(1), layer.bias, name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        v = x.permute(0, 2, 3, 1)
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        views = partial(neighbours, reach=self._reach)
        for part in strips(v):
            around = bordered(v, part, self._reach)
            out[part] = requantize(self._depthwise.sums(around, views, self._depthwise.taps))
        return out.permute(0, 3, 1, 2)


def exact_conv(
    layer: nn.Conv2d, name: str, kernels: Kernels = ORIGINAL_KERNELS
) -> ExactConv | ExactDepthwiseConv:
    """The exact counterpart of a convolution, dense or depthwise."""
    return (ExactConv if layer.groups == 1 else ExactDepthwiseConv)(layer, name, kernels)


def _check_form(layer: nn.Conv2d, name: str, groups: int) -> None:
    """Refuse a convolution that changes the sides or has other groups."""
    side = layer.kernel_size[0]
    form = (layer.kernel_size, layer.stride, layer.padding, layer.groups, layer.dilation)
    same = ((side, side), (1, 1), (side // 2,) * 2, groups, (1, 1))
    if form != same or side % 2 == 0 or (groups > 1 and layer.out_channels != groups):
        raise CheckpointError(f"{name}: {layer} has no exact arithmetic")


class ExactSubpixelConv(ExactConv):
    """`SubpixelConv` in exact arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, h, w) -> (B, O, 2h, 2w)."""
        return F.pixel_shuffle(super().forward(x), 2)


class ExactDeconv(_Taps):
    """A transposed convolution that multiplies the sides by its stride."""

    def __init__(
        self, layer: nn.ConvTranspose2d, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        side, stride = layer.kernel_size[0], layer.stride[0]
        padding = side // 2
        form = (layer.kernel_size, layer.padding, layer.output_padding, layer.groups)
        if form != ((side, side), (padding,) * 2, (stride - 1,) * 2, 1) or side % 2 == 0:
            raise CheckpointError(f"{name}: {layer} has no exact arithmetic")
        assert layer.bias is not None  # no network has one without
        # As a convolution of stride 1 to every position of a block of outputs: the one at row a
        # of its block meets the input d rows on with row a + padding − stride·d of the kernel.
        reach = (padding + stride - 1) // stride
        taps = range(-reach, reach + 1)
        inputs, outputs = layer.in_channels, layer.out_channels
        weight = layer.weight.new_zeros(
            stride, stride, outputs, len(taps), len(taps), inputs, requires_grad=False
        )
        kernel = layer.weight.detach().permute(2, 3, 1, 0)  # (rows, columns, O, I)
        for a in range(stride):
            for b in range(stride):
                for down in taps:
                    for right in taps:
                        row = a + padding - stride * down
                        column = b + padding - stride * right
                        if 0 <= row < side and 0 <= column < side:
                            weight[a, b, :, down + reach, right + reach] = kernel[row, column]
        super().__init__(weight.flatten(0, 2), layer.bias.repeat(stride**2), name, kernels)
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, h, w) -> (B, O, stride·h, stride·w)."""
        b, _, h, w = x.shape
        s = self._stride
        blocks = self._sums(x.permute(0, 2, 3, 1)).view(b, h, w, s, s, -1).transpose(2, 3)
        return blocks.reshape(b, s * h, s * w, -1).permute(0, 3, 1, 2)


class ExactCheckerboardConv(_Taps):
    """`CheckerboardConv` in exact arithmetic."""

    def __init__(
        self, layer: CheckerboardConv, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        assert layer.bias is not None  # the class is made with one
        super().__init__(layer.weight.permute(0, 2, 3, 1), layer.bias, name, kernels)
        self._anchors = layer.anchors

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W/2)."""
        v = x.permute(0, 2, 3, 1)
        b, h, w, _ = v.shape
        out = v.new_empty(b, h, w // 2, self._product.outputs)
        operand = self._product.operand()
        for i, rows in strips(v, multiple=2, taps=(2 * self._reach + 1) ** 2):
            views = list(neighbours(self._around(v, (i, rows)), self._reach))
            for row in range(2):
                column = (1 - self._anchors - row) % 2
                columns = torch.cat([view[row::2, column::2] for view in views], dim=-1)
                settled = requantize(self._product.multiply(columns.flatten(0, 1), operand))
                out[i, rows.start + row : rows.stop : 2] = settled.view(*columns.shape[:2], -1)
        return out.permute(0, 3, 1, 2)
