"""The transforms' layers in float32: arrays (H, W, C) in and out, in strips that stay in cache."""

from typing import Protocol

import numpy as np

from hpcm_scale.numpy_engine.parameters import Parameters
from hpcm_scale.numpy_engine.threads import parallel_for
from hpcm_scale.numpy_engine.windows import bordered, columns, strips

SLOPE = np.float32(0.01)
"""Negative slope of every LeakyReLU."""


class Layer(Protocol):
    """A layer of a transform."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(H, W, C) -> (H', W', C')."""
        ...


class Down:
    """A 2×2 convolution of stride 2, or a 4×4 one with a border of 1: it halves the sides."""

    def __init__(self, p: Parameters, name: str, inputs: int, outputs: int, kernel: int) -> None:
        weight = p.take(f"{name}.weight", outputs, inputs, kernel, kernel)
        self._weight = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, outputs))
        self._bias = p.take(f"{name}.bias", outputs)
        self._kernel = kernel

    def __call__(self, x: np.ndarray) -> np.ndarray:
        h, w, _ = x.shape
        border = self._kernel // 2 - 1
        out = np.empty((h // 2, w // 2, len(self._bias)), np.float32)

        def work(part: slice) -> None:
            rows = slice(2 * part.start, 2 * part.stop)
            taps = columns(bordered(x, rows, border, np.float32), self._kernel, 2)
            np.matmul(taps, self._weight, out=out[part])

        parallel_for(work, strips(h // 2, w // 2, len(self._weight)))
        out += self._bias
        return out


class Up:
    """A 2×2 transposed convolution of stride 2, or a 4×4 one with padding 1: it doubles the sides.

    Computed as a convolution of stride 1 to each of the four positions of a block of outputs. The
    one at row a of its block meets the input d rows on with row a + padding − 2d of the kernel.
    """

    def __init__(self, p: Parameters, name: str, inputs: int, outputs: int, kernel: int) -> None:
        weight = p.take(f"{name}.weight", inputs, outputs, kernel, kernel)
        self._bias = p.take(f"{name}.bias", outputs)
        self._reach = padding = kernel // 2 - 1
        side = 2 * self._reach + 1
        taps = np.zeros((side, side, inputs, 2, 2, outputs), np.float32)
        for a, b, i, j in np.ndindex(2, 2, side, side):
            row = a + padding - 2 * (i - self._reach)
            column = b + padding - 2 * (j - self._reach)
            if 0 <= row < kernel and 0 <= column < kernel:
                taps[i, j, :, a, b] = weight[:, :, row, column]
        self._weight = taps.reshape(side * side * inputs, 4 * outputs)
        self._side, self._outputs = side, outputs

    def __call__(self, x: np.ndarray) -> np.ndarray:
        h, w, _ = x.shape
        out = np.empty((h, 2, w, 2, self._outputs), np.float32)

        def work(part: slice) -> None:
            around = bordered(x, part, self._reach, np.float32)
            taps = columns(around, self._side) if self._reach else around
            blocks = np.matmul(taps, self._weight).reshape(-1, w, 2, 2, self._outputs)
            blocks += self._bias
            out[part] = blocks.transpose(0, 2, 1, 3, 4)

        parallel_for(work, strips(h, w, max(self._weight.shape)))
        return out.reshape(2 * h, 2 * w, self._outputs)


class PConvRB:
    """x + a pair of 1×1 convolutions of x with its first C/r channels convolved 3×3."""

    def __init__(self, p: Parameters, name: str, channels: int, ratio: int, expansion: int) -> None:
        mixed, hidden = channels // ratio, expansion * channels
        weight = p.take(f"{name}.partial.weight", mixed, mixed, 3, 3)
        self._taps = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, mixed))
        self._taps_bias = p.take(f"{name}.partial.bias", mixed)
        name = f"{name}.pair"
        expand = p.take(f"{name}.expand_weight", hidden, channels, 1, 1)
        project = p.take(f"{name}.project_weight", channels, hidden, 1, 1)
        self._expand = np.ascontiguousarray(expand.reshape(hidden, channels).T)
        self._project = np.ascontiguousarray(project.reshape(channels, hidden).T)
        self._expand_bias = p.take(f"{name}.expand_bias", hidden)
        self._project_bias = p.take(f"{name}.project_bias", channels)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        h, w, c = x.shape
        mixed, hidden_channels = self._taps.shape[1], len(self._project)
        out = np.empty_like(x)

        def work(part: slice) -> None:
            rows = x[part]
            taps = columns(bordered(x[..., :mixed], part, 1, np.float32), 3)
            spatial = rows.copy()
            spatial[..., :mixed] = taps @ self._taps
            spatial[..., :mixed] += self._taps_bias
            hidden = spatial.reshape(-1, c) @ self._expand
            hidden += self._expand_bias
            np.maximum(hidden, hidden * SLOPE, out=hidden)
            total = (hidden @ self._project).reshape(rows.shape)
            total += self._project_bias
            np.add(total, rows, out=out[part])

        parallel_for(work, strips(h, w, hidden_channels))
        return out
