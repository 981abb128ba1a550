"""The entropy path's layers in exact arithmetic: grid arrays (H, W, C) in and out (EXACT.md).

Grid arrays hold integers in float32; `exact_product` says how a layer multiplies them.
"""

import numpy as np

from hpcm_scale.entropy.exact.grid import GRID, LIMIT
from hpcm_scale.entropy.exact.integer_weights import (
    NOTHING,
    SCALE_BITS,
    SLOPE_DENOMINATOR,
    SLOPE_NUMERATOR,
    Addend,
    IntegerWeights,
    integer_scale,
)
from hpcm_scale.entropy.exact.scaled_weights import TAP_WEIGHT, ScaledWeights
from hpcm_scale.entropy.exact.softmax import (
    LARGEST_DROP,
    WEIGHT_BITS,
    attended_addend,
    logit_factor,
    powers_of_two,
)
from hpcm_scale.numpy_engine.exact_product import NarrowProduct, Product, product, requantize
from hpcm_scale.numpy_engine.parameters import Parameters
from hpcm_scale.numpy_engine.threads import parallel_for
from hpcm_scale.numpy_engine.windows import bordered, columns, strips

_SLOPE = SLOPE_NUMERATOR / SLOPE_DENOMINATOR


class Depthwise:
    """A depthwise 3×3 convolution of grid integers, in the model's arithmetic."""

    def __init__(self, p: Parameters, name: str, channels: int) -> None:
        kernel = p.take(f"{name}.weight", channels, 1, 3, 3).reshape(channels, 9)
        bias = p.take(f"{name}.bias", channels)
        self._unit: np.ndarray | None = None
        if p.arithmetic.is_narrow(name):
            scaled = ScaledWeights(kernel, bias, name, most=TAP_WEIGHT)
            self._taps, self._bias = scaled.weight.T.astype(np.float64), scaled.bias
            self._unit = scaled.unit
        else:
            integers = IntegerWeights(kernel, bias, name)
            unit = np.ldexp(1.0, -integers.shift)
            self._taps, self._bias = (integers.weight * unit[:, None]).T, integers.bias * unit

    def __call__(self, x: np.ndarray, part: slice) -> np.ndarray:
        """(r, W, C), requantized, of some rows of x (H, W, C)."""
        around = bordered(x, part, 1, np.float64)
        r, w = part.stop - part.start, x.shape[1]
        out = around[:r, :w] * self._taps[0]
        term = np.empty_like(out)
        for tap in range(1, 9):
            i, j = divmod(tap, 3)
            np.multiply(around[i : i + r, j : j + w], self._taps[tap], out=term)
            out += term
        if self._unit is not None:
            out = out.astype(np.float32)
            out *= self._unit
        out += self._bias
        return requantize(out)


class Linear:
    """A 1×1 convolution in exact arithmetic."""

    def __init__(self, p: Parameters, name: str, inputs: int, outputs: int) -> None:
        weight = p.take(f"{name}.weight", outputs, inputs, 1, 1).reshape(outputs, inputs)
        self._product = product(p, weight, p.take(f"{name}.bias", outputs), name)
        self._channels = inputs + outputs

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(H, W, I) -> (H, W, O)."""
        h, w, c = x.shape
        out = np.empty((h, w, self._product.outputs), np.float32)
        operand = self._product.operand()

        def work(part: slice) -> None:
            rows = requantize(self._product.multiply(x[part].reshape(-1, c), operand))
            out[part] = rows.reshape(-1, w, self._product.outputs)

        parallel_for(work, strips(h, w, self._channels))
        return out


class Up:
    """A 2×2 transposed convolution of stride 2."""

    def __init__(self, p: Parameters, name: str, inputs: int, outputs: int) -> None:
        weight = p.take(f"{name}.weight", inputs, outputs, 2, 2)
        bias = p.take(f"{name}.bias", outputs)
        by_place = weight.transpose(2, 3, 1, 0).reshape(4 * outputs, inputs)
        self._product = product(p, by_place, np.tile(bias, 4), name)
        self._outputs = outputs

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(h, w, I) -> (2h, 2w, O)."""
        h, w, c = x.shape
        out = np.empty((h, 2, w, 2, self._outputs), np.float32)
        operand = self._product.operand()

        def work(part: slice) -> None:
            rows = requantize(self._product.multiply(x[part].reshape(-1, c), operand))
            out[part] = rows.reshape(-1, w, 2, 2, self._outputs).transpose(0, 2, 1, 3, 4)

        parallel_for(work, strips(h, w, 5 * self._outputs))
        return out.reshape(2 * h, 2 * w, self._outputs)


class _Block:
    """A residual block: a spatial convolution, then x plus a pair of 1×1 ones with LeakyReLU."""

    def __init__(self, p: Parameters, name: str, channels: int, expansion: int) -> None:
        hidden = expansion * channels
        name = f"{name}.pair"
        expand = p.take(f"{name}.expand_weight", hidden, channels, 1, 1)
        project = p.take(f"{name}.project_weight", channels, hidden, 1, 1)
        self._expand = product(
            p,
            expand.reshape(hidden, channels),
            p.take(f"{name}.expand_bias", hidden),
            f"{name}.expand",
            sloped=True,
        )
        self._project = product(
            p,
            project.reshape(channels, hidden),
            p.take(f"{name}.project_bias", channels),
            f"{name}.project",
            Addend(LIMIT),
        )
        self._hidden = hidden

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(H, W, C) stays."""
        h, w, c = x.shape
        out = np.empty_like(x)
        expand, project = self._expand.operand(), self._project.operand()
        spatial = self._spatial_operand()

        def work(part: slice) -> None:
            mixed = self._mix(x, part, spatial).reshape(-1, c)
            hidden = self._expand.multiply(mixed, expand)
            # LeakyReLU, for the slope is between 0 and 1; its products are exact.
            np.maximum(hidden, hidden * hidden.dtype.type(_SLOPE), out=hidden)
            total = self._project.multiply(requantize(hidden), project)
            total += x[part].reshape(-1, c)
            out[part] = requantize(total).reshape(-1, w, c)

        parallel_for(work, strips(h, w, self._hidden))
        return out

    def _spatial_operand(self) -> np.ndarray | None:
        """Weights in the form that `_mix` takes, where it takes any."""
        return None

    def _mix(self, x: np.ndarray, part: slice, operand: np.ndarray | None) -> np.ndarray:
        """The pair's h (r, W, C) of some rows of x."""
        raise NotImplementedError


class DWConvRB(_Block):
    """A residual block with a depthwise 3×3 convolution."""

    def __init__(self, p: Parameters, name: str, channels: int) -> None:
        super().__init__(p, name, channels, 2)
        self._depthwise = Depthwise(p, f"{name}.depthwise", channels)

    def _mix(self, x: np.ndarray, part: slice, operand: np.ndarray | None) -> np.ndarray:
        return self._depthwise(x, part)


class PConvRB(_Block):
    """A residual block with a 3×3 convolution of the first C/r channels."""

    def __init__(self, p: Parameters, name: str, channels: int, ratio: int, expansion: int) -> None:
        super().__init__(p, name, channels, expansion)
        mixed = channels // ratio
        weight = p.take(f"{name}.partial.weight", mixed, mixed, 3, 3)
        taps = weight.transpose(0, 2, 3, 1).reshape(mixed, 9 * mixed)
        bias = p.take(f"{name}.partial.bias", mixed)
        self._product = product(p, taps, bias, f"{name}.partial")

    def _spatial_operand(self) -> np.ndarray:
        return self._product.operand()

    def _mix(self, x: np.ndarray, part: slice, operand: np.ndarray | None) -> np.ndarray:
        assert operand is not None  # `_spatial_operand` gave it
        count = self._product.outputs
        out = x[part].astype(np.float64)
        taps = columns(bordered(x[..., :count], part, 1, np.float64), 3)
        spatial = requantize(self._product.multiply(taps.reshape(-1, taps.shape[2]), operand))
        out[..., :count] = spatial.reshape(*out.shape[:2], count)
        return out


class Sequence(list):
    """Layers one after the other."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(H, W, C) -> what the last gives."""
        for layer in self:
            x = layer(x)
        return x


class SharedNet:
    """The net that all steps of a scale share: blocks, a step's own scale, blocks, 1×1, blocks.

    Args:
        channels: up to the 1×1 convolution to 2M.
    """

    def __init__(
        self, p: Parameters, name: str, m: int, channels: int, before: int, after: int, out: int
    ) -> None:
        self._before = Sequence(DWConvRB(p, f"{name}.before.{i}", channels) for i in range(before))
        self._after = Sequence(DWConvRB(p, f"{name}.after.{i}", channels) for i in range(after))
        self._after.append(Linear(p, f"{name}.after.{after}", channels, 2 * m))
        self._after += [DWConvRB(p, f"{name}.after.{after + 1 + i}", 2 * m) for i in range(out)]

    def __call__(self, x: np.ndarray, step_scale: np.ndarray) -> np.ndarray:
        """(h, w, channels) -> ψ (h, w, 2M)."""
        scaled = requantize(self._before(x) * step_scale)
        return self._after(scaled.astype(np.float32))


class ContextStep:
    """A step's adaptor and its scale on the shared net's middle."""

    def __init__(self, p: Parameters, name: str, m: int, channels: int, depth: int) -> None:
        adaptor = f"{name}.adaptor"
        self._adaptor = (
            Sequence(DWConvRB(p, f"{adaptor}.{i}", channels) for i in range(depth))
            if depth
            else Linear(p, adaptor, 3 * m, channels)
        )
        scale = p.take(f"{name}.scale", 1, channels, 1, 1)
        self._scale = integer_scale(scale, name) / (1 << SCALE_BITS)
        if p.arithmetic.version > 1:  # a product with it is rounded to float32 once
            self._scale = self._scale.astype(np.float32)

    def __call__(self, context: np.ndarray, y_hat: np.ndarray, shared: SharedNet) -> np.ndarray:
        """ψ (h, w, 2M) from the context (h, w, 2M) and the latents so far (h, w, M)."""
        # ŷ is not bounded by the grid as activations are.
        joined = np.concatenate([context, y_hat.clip(-LIMIT, LIMIT)], axis=2)
        return shared(self._adaptor(joined), self._scale)


class WindowFusion:
    """Attention of ψ over the context in windows, plus a projection of ψ."""

    def __init__(self, p: Parameters, name: str, channels: int, heads: int, window: int) -> None:
        self._heads, self._window = heads, window
        self._factor = logit_factor(channels // heads, name)

        def projection(part: str, addend: Addend = NOTHING) -> Product | NarrowProduct:
            layer = f"{name}.{part}"
            weight = p.take(f"{layer}.weight", channels, channels, 1, 1)
            bias = p.take(f"{layer}.bias", channels)
            return product(p, weight.reshape(channels, channels), bias, layer, addend)

        self._query, self._key, self._value = map(projection, ("query", "key", "value"))
        self._out = projection("out", attended_addend(window))

    def __call__(self, psi: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(h, w, 2M) twice -> (h, w, 2M); h and w multiples of the window."""
        h, w, c = psi.shape
        s, heads = self._window, self._heads
        layers = (self._query, self._key, self._value, self._out)
        operands = [layer.operand() for layer in layers]
        out = np.empty_like(psi)

        def work(block: slice) -> None:
            part = slice(s * block.start, s * block.stop)
            rows, read = psi[part].reshape(-1, c), context[part].reshape(-1, c)
            query, key, value = (
                self._windows(requantize(layer.multiply(x, operand)).astype(np.float64), w)
                for layer, x, operand in zip(layers, (rows, read, read), operands, strict=False)
            )
            # (windows, heads, s·s, d) back to (r, w, 2M)
            attended = self._weights(query, key) @ value
            attended = attended.reshape(-1, w // s, heads, s, s, c // heads)
            attended = attended.transpose(0, 3, 1, 4, 2, 5).reshape(-1, c)
            total = self._out.multiply(rows, operands[-1]).astype(np.float64, copy=False)
            total += attended * 2.0**-WEIGHT_BITS
            out[part] = requantize(total).reshape(-1, w, c)

        parallel_for(work, strips(h // s, w, s * max(c, heads * s * s)))
        return out

    def _weights(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Attention weights over the keys, integers over 2^15."""
        logits = query @ key.swapaxes(-1, -2)
        logits *= 1 / GRID
        np.rint(logits, out=logits)
        logits *= self._factor
        np.rint(logits, out=logits)
        drop = logits.max(-1, keepdims=True) - logits
        np.minimum(drop, LARGEST_DROP, out=drop)
        powers = powers_of_two()[drop.astype(np.int32)]
        total = powers.sum(-1, keepdims=True)
        # Correctly rounded, the quotient falls on a half only if it is one: both are integers
        # below 2^40.
        powers *= 1 << WEIGHT_BITS
        powers /= total
        return np.rint(powers, out=powers)

    def _windows(self, rows: np.ndarray, width: int) -> np.ndarray:
        """(r·w, 2M) -> (windows, heads, s·s, d)."""
        s = self._window
        size = rows.shape[1] // self._heads
        x = rows.reshape(-1, s, width // s, s, self._heads, size)
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, self._heads, s * s, size)
