"""FLIC's hyper transformer in exact arithmetic: windows of four shapes, modulated by frequency."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.attention import softmax_weights
from hpcm_scale.entropy.exact.composite import Composite
from hpcm_scale.entropy.exact.functions import added
from hpcm_scale.entropy.exact.grid import GRID, requantize
from hpcm_scale.entropy.exact.integer_weights import IntegerWeights
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.softmax import WEIGHT_BITS, logit_factor, powers_of_two
from hpcm_scale.entropy.exact.window_attention import integer_bias
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.frequency_attention import (
    FrequencyAttention,
    FrequencyAwareTransformer,
    FrequencyBlock,
    ShapedWindowAttention,
)
from hpcm_scale.models.blocks.window_fourier import WindowFourier

SIDE = 4
"""Side of the windows whose Fourier transform has no factors but 0, ±1 and ±i."""


class ExactShapedWindowAttention(nn.Module):
    """A ShapedWindowAttention, a row of windows at a time."""

    def __init__(
        self, attention: ShapedWindowAttention, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        super().__init__()
        self._name = name
        self._heads, self._window = attention.heads, attention.window
        self._rolled, self._back = attention.rolled, attention.back
        table = attention.relative_position_bias_table
        self._bias = self._powers = None
        if table is not None:
            bias = attention.bias(table)
            self._bias = integer_bias(bias, f"{name}.relative_position_bias_table")
            self._powers = torch.from_numpy(powers_of_two().copy()).to(bias.device)

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3, C) -> (B, H, W, C)."""
        if any(self._rolled):
            qkv = qkv.roll(self._rolled, dims=(1, 2))
        out = qkv[..., 2, :]
        if self._bias is not None and self._powers is not None:
            out = self._attended(qkv, self._bias, self._powers)
        return out.roll(self._back, dims=(1, 2)) if any(self._back) else out

    def _attended(self, qkv: Tensor, bias: Tensor, powers: Tensor) -> Tensor:
        b, h, w, _, c = qkv.shape
        rows, columns = self._window
        size = c // self._heads
        factor = logit_factor(size, self._name)
        parts = qkv.reshape(b, h // rows, rows, w // columns, columns, 3, self._heads, size)
        # (B, window rows, 3, window columns, heads, rows·columns, size)
        parts = parts.permute(0, 1, 5, 3, 6, 2, 4, 7).flatten(5, 6)
        out = qkv.new_empty(b, h // rows, rows, w // columns, columns, c)
        for i in range(b):
            for row in range(h // rows):
                q, k, v = parts[i, row].double().unbind()
                logits = (q @ k.transpose(-1, -2)).mul_(1 / GRID).round_().mul_(factor).round_()
                weights = softmax_weights(logits.add_(bias), powers)
                attended = requantize((weights @ v).mul_(2.0**-WEIGHT_BITS))
                attended = attended.unflatten(2, self._window).permute(2, 0, 3, 1, 4)
                out[i, row] = attended.flatten(3)
        return out.view(b, h, w, c)


class ExactFrequencyAttention(Composite):
    """`FrequencyAttention` in exact arithmetic."""

    qkv: nn.Module
    attns: nn.ModuleList

    def forward(self, t: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        qkv = self.qkv(t).unflatten(-1, (3, len(self.attns), -1))
        return torch.cat([attend(qkv[..., i, :]) for i, attend in enumerate(self.attns)], dim=-1)


class ExactWindowFourier(nn.Module):
    """A WindowFourier of 4×4 windows: of each channel a 16×16 matrix of integers."""

    def __init__(
        self, layer: WindowFourier, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        super().__init__()
        if layer.side != SIDE:
            raise CheckpointError(f"{name}: windows of {layer.side} have no exact arithmetic")
        weight = layer.complex_weight.detach().double().cpu().numpy()
        places = SIDE**2
        # (4, 3, 2, 16, 16): what each part of each bin's weight adds to the matrix, sixteenths.
        windows = np.eye(places).reshape(places, SIDE, SIDE)
        bins = np.fft.fft(np.fft.rfft(windows, axis=2), axis=1)
        matrix = np.zeros((weight.shape[2], places, places))
        for row in range(SIDE):
            for column in range(SIDE // 2 + 1):
                for part, unit in enumerate((1, 1j)):
                    alone = np.zeros_like(bins)
                    alone[:, row, column] = bins[:, row, column] * unit
                    back = np.fft.irfft(np.fft.ifft(alone, axis=1), n=SIDE, axis=2)
                    effect = np.rint(places * back.reshape(places, places).T)
                    matrix += weight[row, column, :, part, None, None] * effect
        matrix /= places
        integers = IntegerWeights(
            matrix.reshape(-1, places), np.zeros(matrix.size // places), f"{name}.complex_weight"
        )
        scaled = np.ldexp(integers.weight, -integers.shift[:, None])
        device = layer.complex_weight.device
        self._matrix = torch.from_numpy(scaled).to(device).view(-1, places, places)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        b, h, w, c = x.shape
        windows = x.reshape(b, h // SIDE, SIDE, w // SIDE, SIDE, c).permute(5, 2, 4, 0, 1, 3)
        out = requantize(self._matrix @ windows.reshape(c, SIDE**2, -1).double()).float()
        out = out.view(c, SIDE, SIDE, b, h // SIDE, w // SIDE).permute(3, 4, 1, 5, 2, 0)
        return out.reshape(b, h, w, c)


class ExactFrequencyBlock(Composite):
    """`FrequencyBlock` in exact arithmetic."""

    norm1: nn.Module
    attention: nn.Module
    proj: nn.Module
    norm2: nn.Module
    ffn: nn.Module
    fm: nn.Module

    def forward(self, t: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        t = added(t, self.proj(self.attention(self.norm1(t))))
        return added(t, self.fm(self.ffn(self.norm2(t))))


class ExactFrequencyAwareTransformer(Composite):
    """`FrequencyAwareTransformer` in exact arithmetic."""

    conv1_1: nn.Module
    trans_block: nn.Module
    conv1_2: nn.Module

    def forward(self, v: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        t = self.trans_block(self.conv1_1(v).permute(0, 2, 3, 1))
        return added(v, self.conv1_2(t.permute(0, 3, 1, 2)))


LAYERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    ShapedWindowAttention: ExactShapedWindowAttention,
    WindowFourier: ExactWindowFourier,
}
COMPOSITES: dict[type[nn.Module], Callable[..., Composite]] = {
    FrequencyAttention: ExactFrequencyAttention,
    FrequencyBlock: ExactFrequencyBlock,
    FrequencyAwareTransformer: ExactFrequencyAwareTransformer,
}
"""The exact counterparts of these layers and blocks."""
