"""The exact blocks of the peers, as `peer_functions` are."""

from collections.abc import Callable

import numpy as np

from tests.entropy.exact_reference import ScaledLinear, clamp, over_power, to_integers
from tests.entropy.peer_functions import (
    Array,
    attended,
    fine_power,
    gelu,
    haar,
    inverse_haar,
    leaky_relu,
    linear_attention,
    logits_of,
    multiplied,
    sigmoid,
    signed_over,
    silu,
    step_rise,
    wkv,
)
from tests.entropy.peer_layers import Layers


class Blocks(Layers):
    """The exact blocks of a peer by name."""

    def plain_net(self, name: str, x: Array, places: list[int]) -> Array:
        """3×3 convolutions at some places of a Sequential, GELU between them."""
        for place in places[:-1]:
            x = gelu(self.conv(f"{name}.{place}", x))
        return self.conv(f"{name}.{places[-1]}", x)

    def bottleneck(self, name: str, x: Array, unit: bool) -> Array:
        y = np.maximum(self.linear(f"{name}.branch.0", x), 0)
        y = np.maximum(self.conv(f"{name}.branch.2", y), 0)
        y = clamp(x + self.linear(f"{name}.branch.4", y))
        return np.maximum(y, 0) if unit else y

    def residual_block(self, name: str, x: Array) -> Array:
        y = leaky_relu(self.conv(f"{name}.conv1", x))
        return clamp(leaky_relu(self.conv(f"{name}.conv2", y)) + x)

    def gate(self, name: str, x: Array, refine: Callable[[str, Array], Array]) -> Array:
        u = self.linear(f"{name}.in_conv", x)
        a, b = u, refine(f"{name}.refine", u)
        for unit in range(3):
            a = self.bottleneck(f"{name}.trunk.{unit}", a, unit=True)
            b = self.bottleneck(f"{name}.mask.{unit}", b, unit=True)
        b = sigmoid(self.linear(f"{name}.mask.3", b))
        return self.linear(f"{name}.out_conv", clamp(u + multiplied(a, b, 15)))

    def residual_up(self, name: str, x: Array) -> Array:
        y = self.conv(f"{name}.conv", leaky_relu(self.subpixel(f"{name}.subpel_conv", x)))
        return clamp(self.igdn(f"{name}.igdn", y) + self.subpixel(f"{name}.upsample", x))

    def wavelet_up(self, name: str, x: Array) -> Array:
        y = haar(leaky_relu(self.subpixel(f"{name}.subpel_conv", x)))
        c = y.shape[2] // 4
        low = self.conv(f"{name}.bands.low_freq_conv", y[..., :c])
        high = self.conv(f"{name}.bands.high_freq_conv", y[..., c:])
        low = self.igdn(f"{name}.bands.gdn_low", low)
        high = self.igdn(f"{name}.bands.gdn_high", high)
        y = inverse_haar(np.concatenate([low, high], axis=2))
        return clamp(y + self.subpixel(f"{name}.upsample", x))

    def swin(self, name: str, x: Array, heads: int, side: int, shift: bool) -> Array:
        y = self.norm(f"{name}.ln1", x)
        x = clamp(x + self.window_attention(f"{name}.msa", y, heads, side, shift))
        y = gelu(self.linear(f"{name}.mlp.0", self.norm(f"{name}.ln2", x)))
        return clamp(x + self.linear(f"{name}.mlp.2", y))

    def mixed(self, name: str, x: Array, heads: int, side: int, shift: bool) -> Array:
        y = self.linear(f"{name}.conv1_1", x)
        c, t = np.split(y, 2, axis=2)
        c = clamp(c + self.residual_block(f"{name}.conv_block", c))
        t = self.swin(f"{name}.trans_block", t, heads, side, shift)
        return clamp(x + self.linear(f"{name}.conv1_2", np.concatenate([c, t], axis=2)))

    def gated_net(self, name: str, x: Array) -> Array:
        a, v = np.split(self.linear(f"{name}.fc1", x), 2, axis=2)
        a = gelu(self.depthwise(f"{name}.depthwise", a))
        return self.linear(f"{name}.fc2", multiplied(a, v, 10))

    def attention_stage(self, name: str, x: Array, heads: int, depth: int) -> Array:
        t = x
        for j in range(depth):
            layer = f"{name}.layers.{j}"
            y = self.norm(f"{layer}.ln1", t)
            y = self.window_attention(f"{layer}.msa", y, heads, 4, bool(j % 2))
            t = clamp(self.channel_scale(f"{layer}.res_scale_1", t) + y)
            y = self.gated_net(f"{layer}.mlp", self.norm(f"{layer}.ln2", t))
            t = clamp(self.channel_scale(f"{layer}.res_scale_2", t) + y)
        return clamp(x + self.conv(f"{name}.conv", t))

    def multi_scale(self, name: str, v: Array) -> Array:
        found = [self.linear(f"{name}.start", v)]
        for layer in (f"{name}.layers.{j}" for j in range(3)):
            y = gelu(self.linear(f"{layer}.in_trans", gelu(found[-1])))
            y = gelu(self.depthwise(f"{layer}.dw_conv", y))
            found.append(self.linear(f"{layer}.out_trans", y))
        y = self.linear(f"{name}.proj", np.concatenate(found, axis=2))
        count = np.array(y.shape[2])
        mean = signed_over(y.sum(2, keepdims=True), count)
        seen = np.concatenate([mean, y.max(2, keepdims=True)], axis=2)
        return multiplied(y, sigmoid(self.conv(f"{name}.gate", seen)), 15)

    def dictionary_attention(self, name: str, x: Array, heads: int) -> Array:
        u = self.linear(f"{name}.x_trans", x)
        y = self.multi_scale(f"{name}.msa", self.norm(f"{name}.ln_scale", u))
        u = clamp(y + self.channel_scale(f"{name}.res_scale_1", u))
        entries = clamp(to_integers(self.p["dictionary.entries"], 10))
        values = self.norm(f"{name}.dict_ln", entries)
        keys = self.linear(f"{name}.k", values)
        queries = self.linear(f"{name}.q_trans", self.norm(f"{name}.lnx", u))
        h, w, c = queries.shape
        scale = self.p[f"{name}.scale"].ravel().astype(np.float64)
        out, d = np.empty((h * w, c), np.int64), c // heads
        for head in range(heads):
            part = np.s_[:, head * d : (head + 1) * d]
            factor = int(np.rint(scale[head] * (2**12 * 1.4426950408889634)))
            logits = logits_of(queries.reshape(h * w, c)[part], keys[part], factor)
            out[part] = attended(logits, values[part], np.ones(logits.shape, bool))
        y = self.linear(f"{name}.linear", out.reshape(h, w, c))
        u = clamp(y + self.channel_scale(f"{name}.res_scale_2", u))
        y = self.gated_net(f"{name}.mlp", self.norm(f"{name}.ln_mlp", u))
        u = clamp(y + self.channel_scale(f"{name}.res_scale_3", u))
        return self.linear(f"{name}.output_trans", u)

    def omni_shift(self, name: str, x: Array) -> Array:
        a0, a1, a2, a3 = self.p[f"{name}.alpha"].astype(np.float64)
        k1, k3, k5 = (self.p[f"{name}.kernel{side}"].astype(np.float64) for side in (1, 3, 5))
        kernel = a3 * k5
        kernel[:, :, 1:4, 1:4] += a2 * k3
        kernel[:, :, 2:3, 2:3] += a1 * k1 + a0
        weight = kernel.astype(np.float32).reshape(len(kernel), -1)
        layer = self.made(name, weight, None, depthwise=True)
        h, w, _ = x.shape
        around = np.pad(x, ((2, 2), (2, 2), (0, 0)))
        taps = [around[i : i + h, j : j + w] for i in range(5) for j in range(5)]
        return self.noted(layer.depthwise(np.stack(taps, axis=2)))

    def factor(self, name: str, x: Array) -> Array:
        """A tensor times a parameter of a channel."""
        scale = to_integers(self.p[name], 12)
        if self.wide is None:
            return clamp(over_power(x * scale, 12))
        return ScaledLinear.settle(x.astype(np.float32) * (scale / 2**12).astype(np.float32))

    def pointwise_net(self, name: str, x: Array) -> Array:
        """The gated net of squared ReLU that channel mixing and gates have."""
        hidden = np.maximum(self.linear(f"{name}.key", x), 0)
        value = self.linear(f"{name}.value", multiplied(hidden, hidden, 10))
        return multiplied(value, sigmoid(self.linear(f"{name}.receptance", x)), 15)

    def rwkv(self, name: str, x: Array, published: bool) -> Array:
        s = self.omni_shift(f"{name}.att.omni_shift", self.norm(f"{name}.ln1", x))
        k, u = (
            self.linear(f"{name}.att.{part}", s).reshape(-1, x.shape[2])
            for part in ("key", "value")
        )
        decay, boost = (self.p[f"{name}.att.{part}"] for part in ("decay", "boost"))
        mean = wkv(k, u, decay, boost, published).reshape(x.shape)
        gate = sigmoid(self.linear(f"{name}.att.receptance", s))
        y = self.linear(f"{name}.att.output", multiplied(mean, gate, 15))
        x = clamp(x + self.factor(f"{name}.gamma1", y))
        s = self.omni_shift(f"{name}.ffn.omni_shift", self.norm(f"{name}.ln2", x))
        return clamp(x + self.factor(f"{name}.gamma2", self.pointwise_net(f"{name}.ffn", s)))

    def rwkv_gate(self, name: str, x: Array) -> Array:
        h = self.linear(f"{name}.mix", x)
        return clamp(h + self.pointwise_net(name, self.norm(f"{name}.norm", h)))

    def scan(self, name: str, v: Array) -> Array:
        """The sum of the four scans of a map (H, W, D)."""
        h, w, d = v.shape
        rates = self.p[f"{name}.A_logs"].astype(np.float64) * (1.4426950408889634 * 2**16)
        rates = np.rint(rates).astype(np.int64).reshape(4, d, -1)
        below = -rates % 2**16
        unit = 1.4426950408889634 * 2.0**-4
        rates = np.ldexp(fine_power(below), (rates + below) >> 16) * unit
        skips = to_integers(self.p[f"{name}.Ds"], 12).reshape(4, d)
        places = [(i, j) for i in range(h) for j in range(w)]
        columns = [(i, j) for j in range(w) for i in range(h)]
        total = np.zeros((h, w, d), np.int64)
        states = rates.shape[2]
        for way, order in enumerate((places, columns, places[::-1], columns[::-1])):
            weight = self.p[f"{name}.x_proj_weight"][way]
            projected = self.made(f"{name}.x_proj_weight.{way}", weight, None).settled(v)
            step, b, c = np.split(projected, [weight.shape[0] - 2 * states, -states], axis=2)
            weight = self.p[f"{name}.dt_projs_weight"][way]
            bias = self.p[f"{name}.dt_projs_bias"].reshape(4, d)[way]
            step = self.made(f"{name}.dt_projs_weight.{way}", weight, bias).settled(step)
            delta = 2**10 * np.maximum(step, 0) + step_rise()[np.minimum(np.abs(step), 15360)]
            state = np.zeros((d, states))
            for at in order:
                decay = fine_power(
                    np.rint(delta[at].astype(np.float64)[:, None] * rates[way]).astype(np.int64)
                )
                fresh = (delta[at] * v[at]).astype(np.float64)[:, None] * b[at].astype(np.float64)
                state = state * decay + fresh
                y = state[:, 0] * float(c[at][0])
                for n in range(1, states):
                    y = y + state[:, n] * float(c[at][n])
                y = y * 2.0**-40 + (v[at] * skips[way]) / 2**12
                total[at] += clamp(np.rint(y)).astype(np.int64)
        return clamp(total)

    def state_space(self, name: str, x: Array) -> Array:
        y = self.linear(f"{name}.op.in_proj", self.norm(f"{name}.norm", x))
        v, gate = np.split(y, 2, axis=2)
        y = self.scan(f"{name}.op", silu(self.depthwise(f"{name}.op.conv2d", v)))
        y = multiplied(self.norm(f"{name}.op.out_norm", y), silu(gate), 10)
        return clamp(x + self.linear(f"{name}.op.out_proj", y))

    def projected(self, name: str, x: Array) -> Array:
        return self.depthwise(f"{name}.1", self.linear(f"{name}.0", x))

    def wide_net(self, name: str, x: Array) -> Array:
        x = gelu(self.depthwise(f"{name}.2", gelu(self.linear(f"{name}.0", x))))
        return self.linear(f"{name}.4", x)

    def global_context(self, name: str, x: Array, heads: int) -> Array:
        q, k, v = (
            self.projected(f"{name}.{part}", x).reshape(-1, x.shape[2])
            for part in ("queries", "keys", "values")
        )
        r = self.conv(f"{name}.reprojection", linear_attention(q, k, v, heads).reshape(x.shape))
        return clamp(self.linear(f"{name}.skip", r) + self.wide_net(f"{name}.mlp", r))

    def checkerboard_context(self, name: str, before: Array, anchors: Array, odd: Array) -> Array:
        q = self.projected(f"{name}.queries", np.where(odd[..., None], 0, before))[~odd]
        k = self.projected(f"{name}.keys", np.where(odd[..., None], before, 0))[odd]
        v = self.projected(f"{name}.values", anchors)[odd]
        attended_map = np.zeros_like(before)
        attended_map[~odd] = linear_attention(q, k, v, 2)
        r = self.conv(f"{name}.reprojection", attended_map)
        return clamp(r + self.wide_net(f"{name}.mlp", r))

    def local_context(self, name: str, x: Array, odd: Array) -> Array:
        """(H, W, u) -> (H·W/2, 2u) at the positions not odd, row by row."""
        u = x.shape[2]
        d = u // 2
        qkv = self.linear(f"{name}.qkv_proj", self.norm(f"{name}.norm1", x))
        around = np.pad(qkv, ((2, 2), (2, 2), (0, 0)))
        inside = np.pad(odd, 2)
        table = self.p[f"{name}.attend.relative_position_table"].astype(np.float64)
        table = np.rint(table * (1024 * 1.4426950408889634)).astype(np.int64)
        factor = round(2**12 * 1.4426950408889634 / d**0.5)
        place = [(i, j) for i in range(5) for j in range(5)]
        weight = self.p[f"{name}.fusion.weight"]
        fusion = self.made(
            f"{name}.fusion",
            weight.transpose(0, 2, 3, 1).reshape(len(weight), -1),
            self.p[f"{name}.fusion.bias"],
        )
        rows = []
        for i, j in zip(*np.nonzero(~odd), strict=True):
            window = around[i : i + 5, j : j + 5].reshape(25, 3, d, 2)
            anchor = inside[i : i + 5, j : j + 5].ravel()
            found = np.empty((25, 2, d), np.int64)
            for head in range(2):
                q, k, v = window[..., head].transpose(1, 0, 2)
                logits = logits_of(q, k, factor) + np.array(
                    [[table[(a - m + 4) * 9 + b - n + 4, head] for m, n in place] for a, b in place]
                )
                logits -= np.where(anchor[:, None] & anchor, 0, 147732)
                found[:, head] = attended(logits, v, np.ones((25, 25), bool))
            rows.append(fusion.settled(found.reshape(-1)))
        t = self.linear(f"{name}.proj", np.array(rows))
        y = gelu(self.linear(f"{name}.mlp.0", self.norm(f"{name}.norm2", t)))
        return clamp(t + self.linear(f"{name}.mlp.2", y))
