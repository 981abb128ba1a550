"""The exact layers of a peer by name, as `peer_functions` are."""

import numpy as np

from tests.entropy.exact_reference import Code, Linear, ScaledLinear, clamp, to_integers
from tests.entropy.peer_functions import (
    Array,
    attended,
    half_tanh,
    inverse_gdn,
    layer_norm,
    logits_of,
)


class Layers:
    """A network's layers by name.

    Args:
        parameters: of the network, fp32.
        wide: in arithmetic 2, the layers whose weights keep 14 bits; None in arithmetic 1.
    """

    def __init__(self, parameters: dict[str, Array], wide: frozenset[str] | None = None) -> None:
        self.p, self.wide = parameters, wide
        self.largest = 0
        """Magnitude of the layers' outputs so far."""

    def made(self, name: str, weight: Array, bias: Array | None, depthwise: bool = False):
        bias = np.zeros(len(weight), np.float32) if bias is None else bias
        if self.wide is None or name in self.wide:
            return Linear(weight, bias)
        return ScaledLinear(weight, bias, 2047 if depthwise else 127)

    def noted(self, y: Array) -> Array:
        self.largest = max(self.largest, int(np.abs(y).max()))
        return y

    def linear(self, name: str, x: Array) -> Array:
        weight = self.p[f"{name}.weight"]
        layer = self.made(name, weight.reshape(len(weight), -1), self.p.get(f"{name}.bias"))
        return self.noted(layer.settled(x))

    def taps(self, name: str, x: Array) -> Array:
        """(H, W, C) -> (H, W, C, k²), clamped, zeros outside."""
        k = self.p[f"{name}.weight"].shape[-1]
        h, w, _ = x.shape
        around = np.pad(clamp(x), ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        taps = [around[i : i + h, j : j + w] for i in range(k) for j in range(k)]
        return np.stack(taps, axis=-1)

    def conv(self, name: str, x: Array) -> Array:
        weight, bias = self.p[f"{name}.weight"], self.p.get(f"{name}.bias")
        layer = self.made(name, weight.reshape(len(weight), -1), bias)
        return self.noted(layer.settled(self.taps(name, x).reshape(*x.shape[:2], -1)))

    def depthwise(self, name: str, x: Array) -> Array:
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
        layer = self.made(name, weight.reshape(len(weight), -1), bias, depthwise=True)
        return self.noted(layer.depthwise(self.taps(name, x).transpose(0, 1, 3, 2)))

    def subpixel(self, name: str, x: Array) -> Array:
        h, w, _ = x.shape
        y = self.conv(name, x).reshape(h, w, -1, 2, 2).transpose(0, 3, 1, 4, 2)
        return y.reshape(2 * h, 2 * w, -1)

    def deconv(self, name: str, x: Array, stride: int) -> Array:
        """Every output by its definition: input i adds row r of the kernel at s·i − p + r."""
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]  # (I, O, k, k)
        k = weight.shape[-1]
        h, w, _ = x.shape
        x, p = clamp(x), k // 2
        out = np.zeros((stride * h, stride * w, weight.shape[1]), np.int64)
        for a in range(stride):
            for b in range(stride):
                meets = [
                    (r, c)
                    for r in range(k)
                    for c in range(k)
                    if (a + p - r) % stride == 0 and (b + p - c) % stride == 0
                ]
                kernel = np.concatenate([weight[:, :, r, c].T for r, c in meets], 1)
                layer = self.made(name, kernel, bias)
                for i in range(h):
                    for j in range(w):
                        seen = []
                        for r, c in meets:
                            row = i + (a + p - r) // stride
                            column = j + (b + p - c) // stride
                            inside = 0 <= row < h and 0 <= column < w
                            seen.append(x[row, column] if inside else np.zeros_like(x[0, 0]))
                        out[stride * i + a, stride * j + b] = layer.settled(np.concatenate(seen))
        return self.noted(out)

    def norm(self, name: str, x: Array) -> Array:
        return layer_norm(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def igdn(self, name: str, x: Array) -> Array:
        return self.noted(inverse_gdn(x, self.p[f"{name}.beta"], self.p[f"{name}.gamma"]))

    def channel_scale(self, name: str, x: Array) -> Array:
        return self.factor(f"{name}.scale", x)

    def window_attention(self, name: str, x: Array, heads: int, side: int, shift: bool) -> Array:
        h, w, c = x.shape
        d, by = c // heads, side // 2 if shift else 0
        qkv = np.roll(self.linear(f"{name}.embedding_layer", x), (-by, -by), (0, 1))
        factor = round(2**12 * 1.4426950408889634 / d**0.5)
        table = self.p[f"{name}.table"].astype(np.float64) * (1024 * 1.4426950408889634)
        bias = np.rint(table).astype(np.int64)
        place = [(i, j) for i in range(side) for j in range(side)]
        out = np.empty((h, w, c), np.int64)
        for top in range(0, h, side):
            for left in range(0, w, side):
                window = np.s_[top : top + side, left : left + side]

                def region(i: int, j: int, top: int = top, left: int = left) -> tuple:
                    """Which part of the rolled map a place of the window is from."""
                    return (top + i >= h - by, left + j >= w - by)

                seen = np.array([[region(*a) == region(*b) for b in place] for a in place])
                for head in range(heads):
                    q, k, v = (
                        qkv[window][..., part * c + head * d : part * c + (head + 1) * d].reshape(
                            -1, d
                        )
                        for part in range(3)
                    )
                    logits = logits_of(q, k, factor) + np.array(
                        [
                            [bias[head, i - m + side - 1, j - n + side - 1] for m, n in place]
                            for i, j in place
                        ]
                    )
                    out[window][..., head * d : (head + 1) * d] = attended(logits, v, seen).reshape(
                        side, side, d
                    )
        return self.linear(f"{name}.linear", np.roll(out, (by, by), (0, 1)))

    def z_hat(self, z_symbols: Array) -> Array:
        """Symbols (N, h, w) -> ẑ (h, w, N)."""
        median = clamp(to_integers(self.p["z_prior.quantiles"][:, 0, 1], 10))
        return clamp(1024 * z_symbols.astype(np.int64) + median[:, None, None]).transpose(1, 2, 0)

    def slice(self, i: int, code: Code, contexts: list[Array], read: Array, nets: int) -> Array:
        """ŷ of slice `i`, from contexts of mean and scale and what the residual net reads."""
        places = list(range(0, 2 * nets + 1, 2))
        mean, scale = (
            self.plain_net(f"{kind}_nets.{i}", context, places)
            for kind, context in zip(("mean", "scale"), contexts, strict=True)
        )
        symbols = code(i, scale.transpose(2, 0, 1), mean.transpose(2, 0, 1))
        u = clamp(1024 * symbols.astype(np.int64).transpose(1, 2, 0) + mean)
        r = self.plain_net(f"residual_nets.{i}", np.concatenate([read, u], axis=2), places)
        return clamp(u + half_tanh(r))
