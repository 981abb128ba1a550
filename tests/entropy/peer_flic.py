"""FLIC's exact entropy path, as `peer_functions` are."""

import numpy as np

from tests.entropy.exact_reference import Code, Linear, clamp, over_power
from tests.entropy.peer_blocks import Blocks
from tests.entropy.peer_functions import (
    Array,
    attended,
    fourier_matrix,
    gelu,
    half_tanh,
    logits_of,
    wide_norm,
)


class Flic(Blocks):
    """Its blocks by name."""

    def shaped(self, name: str, qkv: Array, heads: int, window: tuple[int, int]) -> Array:
        """(H, W, 3, C) -> (H, W, C), in windows from the top left corner."""
        h, w, _, c = qkv.shape
        if window == (1, 1):
            return qkv[:, :, 2]
        rows, columns = window
        d = c // heads
        table = self.p[f"{name}.relative_position_bias_table"].astype(np.float64)
        table = np.rint(table * (1024 * 1.4426950408889634)).astype(np.int64)
        place = [(i, j) for i in range(rows) for j in range(columns)]
        index = np.array(
            [
                [(i - m + rows - 1) * (2 * columns - 1) + j - n + columns - 1 for m, n in place]
                for i, j in place
            ]
        )
        factor = round(2**12 * 1.4426950408889634 / d**0.5)
        out = np.empty((h, w, c), np.int64)
        for top in range(0, h, rows):
            for left in range(0, w, columns):
                at = np.s_[top : top + rows, left : left + columns]
                for head in range(heads):
                    part = qkv[at][..., head * d : (head + 1) * d].reshape(-1, 3, d)
                    q, k, v = part.transpose(1, 0, 2)
                    logits = logits_of(q, k, factor) + table[index, head]
                    found = attended(logits, v, np.ones(logits.shape, bool))
                    out[at][..., head * d : (head + 1) * d] = found.reshape(rows, columns, d)
        return out

    def fourier(self, name: str, x: Array) -> Array:
        h, w, c = x.shape
        matrix = fourier_matrix(self.p[f"{name}.complex_weight"])
        out = np.empty_like(x)
        for channel in range(c):
            layer = Linear(matrix[channel], np.zeros(16))
            for top in range(0, h, 4):
                for left in range(0, w, 4):
                    at = np.s_[top : top + 4, left : left + 4, channel]
                    out[at] = layer.settled(x[at].reshape(16)).reshape(4, 4)
        return out

    def transformer(self, name: str, x: Array, heads: int, shift: bool, displaced: bool) -> Array:
        t = self.linear(f"{name}.conv1_1", x)
        block = f"{name}.trans_block"
        qkv = self.linear(f"{block}.attention.qkv", self.norm(f"{block}.norm1", t))
        quarters = qkv.reshape(*x.shape[:2], 3, 4, -1)
        found = []
        for i, window in enumerate(((4, 4), (1, 1), (1, 4), (4, 1))):
            back = [side // 2 if shift else 0 for side in window]
            there = [(side + 1) // 2 for side in window] if shift and displaced else back
            rolled = np.roll(quarters[:, :, :, i], [-by for by in there], (0, 1))
            y = self.shaped(f"{block}.attention.attns.{i}", rolled, heads // 4, window)
            found.append(np.roll(y, back, (0, 1)))
        t = clamp(t + self.linear(f"{block}.proj", np.concatenate(found, axis=2)))
        y = gelu(self.linear(f"{block}.ffn.0", self.norm(f"{block}.norm2", t)))
        t = clamp(t + self.fourier(f"{block}.fm", self.linear(f"{block}.ffn.2", y)))
        return clamp(x + self.linear(f"{name}.conv1_2", t))

    # Of one slice of five

    def of_slice(self, name: str, index: int) -> tuple[Array, Array]:
        weight, bias = (np.split(self.p[f"{name}.{part}"], 5) for part in ("weight", "bias"))
        return weight[index], bias[index]

    def slice_conv(self, name: str, x: Array, index: int, depthwise: bool = False) -> Array:
        weight, bias = self.of_slice(name, index)
        layer = self.made(f"{name}.{index}", weight.reshape(len(weight), -1), bias, depthwise)
        h, w, _ = x.shape
        around = np.pad(clamp(x), ((1, 1), (1, 1), (0, 0)))
        taps = np.stack([around[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)
        if depthwise:
            return layer.depthwise(taps.transpose(0, 1, 3, 2))
        return self.noted(layer.settled(taps.reshape(h, w, -1)))

    def slice_linear(self, name: str, x: Array, index: int) -> Array:
        return self.noted(self.made(f"{name}.{index}", *self.of_slice(name, index)).settled(x))

    def projection(self, name: str, u: Array, index: int, heads: int) -> list[Array]:
        """u (windows, 64, C) -> its queries, keys and values, (windows, heads, C/heads, 64)."""
        norm = self.of_slice(f"{name}.norm", index)
        later = self.of_slice(f"{name}.position_norm", index)
        rows = []
        for window in u:
            m = wide_norm(window, *norm)
            y = self.slice_conv(f"{name}.position", m.reshape(8, 8, -1), index, depthwise=True)
            rows.append(clamp(m + gelu(wide_norm(y.reshape(m.shape), *later))))
        m = np.array(rows)
        return [
            self.slice_linear(f"{name}.{part}", m, index)
            .reshape(len(u), 64, -1, heads)
            .transpose(0, 3, 2, 1)
            for part in ("query", "key", "value")
        ]

    def mixing(
        self, name: str, u: Array, index: int, kept: list[list[Array]], dimensions: int
    ) -> Array:
        keys, values = (np.concatenate([part[i] for part in kept], axis=2) for i in (1, 2))
        queries = kept[-1][0]
        factor = round(2**12 * 1.4426950408889634 * dimensions**-0.5)
        out = np.empty_like(queries)
        for window in range(queries.shape[0]):
            for head in range(queries.shape[1]):
                at = window, head
                logits = logits_of(queries[at], keys[at], factor)
                out[at] = attended(logits, values[at], np.ones(logits.shape, bool))
        y = out.transpose(0, 3, 2, 1).reshape(u.shape)
        u = clamp(u + self.slice_linear(f"{name}.proj", y, index))
        y = wide_norm(u, *self.of_slice(f"{name}.norm", index))
        y = gelu(self.slice_linear(f"{name}.fc1", y, index))
        return clamp(u + self.slice_linear(f"{name}.fc2", y, index))


def walk_flic(layers: Flic, config, z_symbols: Array, code: Code) -> Array:
    """As of `peer_walks.WALKS`."""
    z = layers.z_hat(z_symbols)

    def hyper(name: str) -> Array:
        x = layers.residual_up(f"{name}.0.0", z)
        displaced = config.hyper_shift == "published"
        for place in range(2 * config.hyper_depth):
            layer = f"{name}.0.{place + 1}"
            x = layers.transformer(layer, x, config.hyper_heads, bool(place % 2), displaced)
        return layers.subpixel(f"{name}.1.0", x)

    params = np.concatenate([hyper("h_s.mean"), hyper("h_s.scale")], axis=2)
    h, w, _ = params.shape
    unit, heads = config.slice_channels, config.context_heads
    given = np.split(layers.linear("hyper_transform", params), 5, axis=2)
    before = layers.conv("start", params)
    kept: list[list[list[Array]]] = [[] for _ in range(config.context_depth)]
    done = []
    for i in range(5):
        u = layers.slice_conv("lift", before, i).reshape(h // 8, 8, w // 8, 8, -1)
        u = u.transpose(0, 2, 1, 3, 4).reshape(-1, 64, 4 * unit)
        for j, seen in enumerate(kept):
            seen.append(layers.projection(f"layers.{j}.projection", u, i, heads))
            u = layers.mixing(f"layers.{j}.mixing", u, i, seen, 20 * unit // heads)
        context = u.reshape(h // 8, w // 8, 8, 8, -1).transpose(0, 2, 1, 3, 4).reshape(h, w, -1)
        both = [context.reshape(h, w, unit, 4), given[i].reshape(h, w, unit, 2)]
        x = np.concatenate(both, axis=3).reshape(h, w, -1)
        x = gelu(layers.slice_conv("parameter_net.first", x, i))
        x = gelu(layers.slice_conv("parameter_net.second", x, i))
        found = layers.slice_conv("parameter_net.third", x, i).reshape(h, w, unit, 3)
        mean, scale, residual = np.moveaxis(found, 3, 0)
        symbols = code(i, scale.transpose(2, 0, 1), mean.transpose(2, 0, 1)).transpose(1, 2, 0)
        nearest = over_power(mean, 10)
        side = np.where(mean < 1024 * nearest, -1, 1)
        before = clamp(1024 * (symbols.astype(np.int64) * side + nearest))
        done.append(clamp(before + half_tanh(residual)))
    return np.concatenate(done, axis=2)
