"""The exact entropy path in int64 NumPy, written from EXACT.md alone and for clarity alone.

Shares no code with the package: the schedule's tables are read from the page.
Every sum is checked against the bound of 2^53, taking all its terms at their magnitudes.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tests.entropy.exact_page import printed_schedule

L = 127 * 2**14
Code = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(step, σ, μ), (C, h, w) int64 -> symbols."""


def bounded(x: np.ndarray) -> np.ndarray:
    assert np.abs(x).max(initial=0) < 2**53
    return x


def over_power(x: np.ndarray, bits: np.ndarray | int) -> np.ndarray:
    """round(x / 2^bits), halves to even."""
    bits = np.broadcast_to(bits, x.shape)
    down = x >> bits
    twice = 2 * (x - (down << bits)) - (1 << bits)
    return down + ((twice > 0) | ((twice == 0) & (down % 2 == 1)))


def over(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """round(x / y), halves to even, of non-negative numbers."""
    down, rest = np.divmod(x, y)
    return down + ((2 * rest > y) | ((2 * rest == y) & (down % 2 == 1)))


def clamp(x: np.ndarray) -> np.ndarray:
    return x.clip(-L, L)


def to_integers(values: np.ndarray, bits: np.ndarray | int) -> np.ndarray:
    """round(v·2^bits) of fp32 values, halves to even; the product is exact in float64."""
    return np.rint(np.ldexp(values.astype(np.float64), bits)).astype(np.int64)


@cache
def octave_of_powers() -> np.ndarray:
    """round(2^(24 - d/1024)) for d = 0..1023; none is near a half."""
    exact = 2.0 ** (24 - np.arange(1024) / 1024)
    assert np.abs(exact % 1 - 0.5).min() > 1e-6
    return np.rint(exact).astype(np.int64)


class Linear:
    """A linear layer over the last axis of its inputs."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        largest = np.abs(weight).max(axis=1)
        self.k = np.array([24 if m == 0 else min(13 - math.frexp(m)[1], 24) for m in largest])
        self.weight = to_integers(weight, self.k[:, None])
        self.bias = to_integers(bias, self.k + 10)
        assert np.abs(self.weight).max() <= 2**13

    def sum(self, a: np.ndarray) -> np.ndarray:
        """(..., K) -> (..., O) in units of 2^-k grid points."""
        bounded(np.abs(a) @ np.abs(self.weight).T + np.abs(self.bias))
        return a @ self.weight.T + self.bias

    def settled(self, a: np.ndarray) -> np.ndarray:
        return clamp(over_power(self.sum(a), self.k))

    def leaky(self, a: np.ndarray) -> np.ndarray:
        s = self.sum(a)
        bounded(41 * s)
        return clamp(over_power(np.where(s < 0, 41 * s, 4096 * s), self.k + 12))

    def with_residual(self, a: np.ndarray, x: np.ndarray) -> np.ndarray:
        return clamp(over_power(bounded(self.sum(a) + (x << self.k)), self.k))

    def with_attended(self, a: np.ndarray, attended: np.ndarray) -> np.ndarray:
        u = np.maximum(self.k, 15)
        total = bounded((self.sum(a) << u - self.k) + (attended << u - 15))
        return clamp(over_power(total, u))

    def depthwise(self, taps: np.ndarray) -> np.ndarray:
        total = (taps * self.weight.T).sum(axis=2) + self.bias
        return clamp(over_power(bounded(total), self.k))


class ScaledLinear:
    """A linear layer of arithmetic 2: integer sums, then single-precision operations on each."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, most: int) -> None:
        self.scale = np.array([np.float32(np.float64(max(abs(row))) / most) for row in weight])
        self.scale[self.scale == 0] = 1
        ratio = weight.astype(np.float64) / self.scale.astype(np.float64)[:, None]
        self.weight = np.rint(ratio).astype(np.int64)
        assert np.abs(self.weight).max() <= most
        self.bias = np.float32(1024) * bias

    def rounded(self, total: np.ndarray) -> np.ndarray:
        """fl(fl(fl(total)·s) + B)."""
        single = bounded(total).astype(np.float32)
        return single * self.scale + self.bias

    def sum(self, a: np.ndarray) -> np.ndarray:
        return self.rounded(a @ self.weight.T)

    @staticmethod
    def settle(x: np.ndarray) -> np.ndarray:
        return clamp(np.rint(x).astype(np.int64))

    def settled(self, a: np.ndarray) -> np.ndarray:
        return self.settle(self.sum(a))

    def leaky(self, a: np.ndarray) -> np.ndarray:
        s = self.sum(a)
        assert s.dtype == np.float32
        return self.settle(np.where(s < 0, s * np.float32(41 / 4096), s))

    def with_residual(self, a: np.ndarray, x: np.ndarray) -> np.ndarray:
        return self.settle(self.sum(a) + x.astype(np.float32))

    def with_attended(self, a: np.ndarray, attended: np.ndarray) -> np.ndarray:
        return self.settle(self.sum(a).astype(np.float64) + attended / 2**15)

    def depthwise(self, taps: np.ndarray) -> np.ndarray:
        return self.settle(self.rounded((taps * self.weight.T).sum(axis=2)))


def neighbours(x: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (H, W, 9, C), zeros outside."""
    h, w = x.shape[:2]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return np.stack([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=2)


class Reference:
    """The path of one model.

    Args:
        parameters: of the network by name, fp32.
        config: of the network, its fields as attributes.
        wide: in arithmetic 2, the layers whose weights keep 14 bits; None in arithmetic 1.
    """

    def __init__(
        self,
        parameters: dict[str, np.ndarray],
        config: Any,
        wide: frozenset[str] | None = None,
    ) -> None:
        self.p, self.config, self.wide = parameters, config, wide
        self.schedule = printed_schedule(config.schedule)
        self.seen: dict[str, list[np.ndarray]] = defaultdict(list)
        """Outputs (H, W, C) of every layer and block, in the order of its calls."""
        n = np.arange(25 * 1024)
        self.powers = np.append(over_power(octave_of_powers()[n % 1024], n // 1024), 0)
        self.layers: dict[str, Linear | ScaledLinear] = {}

    # Layers, on (H, W, C)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self._of(name).settled(x)
        self.seen[name].append(y)
        return y

    def _of(self, name: str) -> Linear | ScaledLinear:
        return self._layer(name, f"{name}.weight", f"{name}.bias")

    def _layer(self, key: str, weight: str, bias: str) -> Linear | ScaledLinear:
        if key not in self.layers:
            w = self.p[weight]
            self.layers[key] = self._made(key, w.reshape(len(w), -1), self.p[bias])
        return self.layers[key]

    def _made(self, name: str, weight: np.ndarray, bias: np.ndarray) -> Linear | ScaledLinear:
        if self.wide is None or name in self.wide:
            return Linear(weight, bias)
        return ScaledLinear(weight, bias, 2047 if name.endswith(".depthwise") else 127)

    def up(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]  # (I, O, 2, 2)
        y = np.empty((2 * x.shape[0], 2 * x.shape[1], weight.shape[1]), np.int64)
        for i in range(2):
            for j in range(2):
                y[i::2, j::2] = self._made(name, weight[:, :, i, j].T, bias).settled(x)
        self.seen[name].append(y)
        return y

    def pair(self, name: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        first, second = (
            self._layer(
                f"{name}.pair.{part}", f"{name}.pair.{part}_weight", f"{name}.pair.{part}_bias"
            )
            for part in ("expand", "project")
        )
        y = second.with_residual(first.leaky(h), x)
        self.seen[name].append(y)
        return y

    def depthwise_block(self, name: str, x: np.ndarray) -> np.ndarray:
        layer = self._of(f"{name}.depthwise")
        return self.pair(name, x, layer.depthwise(neighbours(x)))

    def partial_block(self, name: str, x: np.ndarray) -> np.ndarray:
        layer = self._of(f"{name}.partial")  # of (O, I, 3, 3)
        mixed = len(layer.weight)
        columns = neighbours(x[..., :mixed]).transpose(0, 1, 3, 2)  # (H, W, I, 9)
        spatial = layer.settled(columns.reshape(*x.shape[:2], -1))
        return self.pair(name, x, np.concatenate([spatial, x[..., mixed:]], axis=2))

    def blocks(self, name: str, x: np.ndarray) -> np.ndarray:
        """A sequence of blocks and layers, whichever its parameters are of."""
        i = 0
        while True:
            part = f"{name}.{i}"
            if f"{part}.depthwise.weight" in self.p:
                x = self.depthwise_block(part, x)
            elif f"{part}.partial.weight" in self.p:
                x = self.partial_block(part, x)
            elif f"{part}.weight" in self.p:
                up = self.p[f"{part}.weight"].shape[-1] == 2
                x = self.up(part, x) if up else self.linear(part, x)
            else:
                return x
            i += 1

    def fusion(self, name: str, psi: np.ndarray, context: np.ndarray, window: int) -> np.ndarray:
        heads = self.config.heads
        q = self._of(f"{name}.query").settled(psi)
        keys = self._of(f"{name}.key").settled(context)
        v = self._of(f"{name}.value").settled(context)
        h, w, c = psi.shape
        d = c // heads
        factor = round(2**12 * math.log2(math.e) / math.sqrt(d))
        attended = np.empty_like(psi)
        for top in range(0, h, window):
            for left in range(0, w, window):
                for head in range(heads):
                    place = np.s_[
                        top : top + window, left : left + window, head * d : (head + 1) * d
                    ]
                    a, b, values = (x[place].reshape(-1, d) for x in (q, keys, v))
                    bounded(np.abs(a) @ np.abs(b).T)
                    logits = over_power(bounded(factor * over_power(a @ b.T, 10)), 12)
                    drop = logits.max(axis=1, keepdims=True) - logits
                    p = self.powers[drop.clip(max=25 * 1024)]
                    alpha = over(p << 15, p.sum(axis=1, keepdims=True))
                    attended[place] = bounded(alpha @ values).reshape(window, window, d)
        y = self._of(f"{name}.out").with_attended(psi, attended)
        self.seen[name].append(y)
        return y

    # The walk

    def step(self, k: int, context: np.ndarray, y_hat: np.ndarray, shared: str) -> np.ndarray:
        """ψ of the step `k` > 0."""
        name = f"steps.{k - 1}"
        x = np.concatenate([context, clamp(y_hat)], axis=2)
        if f"{name}.adaptor.weight" in self.p:
            x = self.linear(f"{name}.adaptor", x)
        else:
            x = self.blocks(f"{name}.adaptor", x)
        x = self.blocks(f"{shared}.before", x)
        scale = to_integers(self.p[f"{name}.scale"].ravel(), 12)
        if self.wide is None:
            x = clamp(over_power(bounded(x * scale), 12))
        else:
            factor = (scale / 2**12).astype(np.float32)
            x = ScaledLinear.settle(x.astype(np.float32) * factor)
        psi = self.blocks(f"{shared}.after", x)
        self.seen[name].append(psi)
        return psi

    def walk(self, z_symbols: np.ndarray, code: Code) -> np.ndarray:
        """ŷ (M, 4h, 4w), over 1024, from z symbols (N, h, w)."""
        mean = clamp(to_integers(self.p["z_prior.mean"].ravel(), 10))
        x = clamp(1024 * z_symbols.astype(np.int64) + mean[:, None, None]).transpose(1, 2, 0)
        params = self.blocks("h_s.1", self.blocks("h_s.0", x))
        scales, config = self.schedule.scales, self.config
        sizes = [params.shape[0] >> (len(scales) - 1 - s) for s in range(len(scales))]
        hierarchical = config.hierarchical
        context = self.kept(params, 0) if hierarchical else params
        m = config.latent_channels
        y_hat = np.zeros((*context.shape[:2], m), np.int64)
        previous, count = 0, len(self.schedule.steps)
        for k, (s, table) in enumerate(self.schedule.steps):
            if s != previous:
                if hierarchical:
                    own = self.kept(params, s)
                    if s == 1 and config.hyper_alignment == "official":
                        own = misplaced(own)
                    context = self.linear(f"merges.{s - 1}", self.inserted(context, own, s))
                    y_hat = self.inserted(y_hat, np.zeros((*own.shape[:2], m), np.int64), s)
                else:
                    context = self.linear(f"merges.{s - 1}", context)
                previous = s
            last = s == len(scales) - 1
            shared = "shared_s3" if last else "shared_s12"
            psi = context if k == 0 else self.step(k, context, y_hat, shared)
            # Where each value of the step lies: its row, column and channel on the grid it runs on.
            rows, columns, channels = self.places(s, table, sizes[s], params.shape, hierarchical)
            sigma, mu = (psi[rows, columns, channels + part * m] for part in range(2))
            symbols = code(k, sigma, mu)
            y_hat[rows, columns, channels] = 1024 * symbols.astype(np.int64) + mu
            if 0 < k < count - 1:
                if config.fusion == "attention":
                    context = self.fusion(f"fusions.{s}", psi, context, config.windows[s])
                elif config.fusion == "psi":
                    context = psi
        return y_hat.transpose(2, 0, 1)

    def places(
        self, s: int, table: tuple, height: int, shape: tuple[int, ...], hierarchical: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(C, h, w) each: row, column and channel of what a step codes, in coding order."""
        m, groups = self.config.latent_channels, self.schedule.scales[s].groups
        width = height * shape[1] // shape[0]
        size, period = m // groups, len(table[0])
        out = np.empty((3, len(table) * size, height, width), np.int64)
        for i in range(height):
            for j in range(width):
                for slot, block in enumerate(table):
                    group = block[i % period][j % period]
                    for c in range(size):
                        channel = group * size + c
                        at = (i, j) if hierarchical else self.on_largest(s, channel, i, j)
                        out[:, slot * size + c, i, j] = (*at, channel)
        return tuple(out)

    def on_largest(self, s: int, channel: int, i: int, j: int) -> tuple[int, int]:
        """Where the grid of scale `s` keeps a channel's position, on the largest grid."""
        for larger in self.schedule.scales[s + 1 :]:
            r, c = larger.kept[channel * len(larger.kept) // self.config.latent_channels]
            i, j = 2 * i + r, 2 * j + c
        return i, j

    def kept(self, params: np.ndarray, s: int) -> np.ndarray:
        """(scale | mean) of the positions that the grid of scale `s` keeps."""
        m, scales = self.config.latent_channels, self.schedule.scales
        factor = 1 << (len(scales) - 1 - s)
        h, w = params.shape[0] // factor, params.shape[1] // factor
        out = np.empty((h, w, 2 * m), np.int64)
        for c in range(2 * m):
            r, q = self.on_largest(s, c % m, 0, 0)
            out[..., c] = params[r::factor, q::factor, c]
        return out

    def inserted(self, small: np.ndarray, large: np.ndarray, s: int) -> np.ndarray:
        """`large`, on the grid of scale `s`, with `small` where it was kept from."""
        kept, m = self.schedule.scales[s].kept, self.config.latent_channels
        out = large.copy()
        for c in range(large.shape[2]):
            r, q = kept[c % m * len(kept) // m]
            out[r::2, q::2, c] = small[..., c]
        return out


def misplaced(params: np.ndarray) -> np.ndarray:
    """The published program's hyper-parameters on S2: read row by row at some positions of each
    channel, written row by row at others."""
    h, w, channels = params.shape
    out = params.copy()
    offset = (np.arange(h)[:, None] % 2) * 2 + np.arange(w) % 2
    for c in range(channels):
        group = c % (channels // 2) * 8 // (channels // 2)
        out[..., c][offset != group // 2] = params[..., c][offset != group // 4]
    return out


def symbols_of(step: int, shape: tuple[int, ...], extreme: bool) -> np.ndarray:
    """Seeded symbols of a step, some of them huge if `extreme`."""
    rng = np.random.default_rng(step)
    symbols = np.rint(rng.laplace(0, 2, shape)).astype(np.int32)
    if extreme:
        places = rng.random(shape) < 0.1
        symbols[places] = rng.integers(-(2**30), 2**30, places.sum())
    return symbols
