"""The peers' exact entropy paths, from symbols of z on, as `peer_functions` are."""

from collections.abc import Callable

import numpy as np

from tests.entropy.exact_reference import Code, clamp
from tests.entropy.peer_blocks import Blocks
from tests.entropy.peer_functions import Array, gelu, half_tanh


def cat(*maps: Array) -> Array:
    return np.concatenate(maps, axis=2)


def walk_stf(layers: Blocks, config, z_symbols: Array, code: Code) -> Array:
    z = layers.z_hat(z_symbols)

    def hyper(name: str) -> Array:
        x = gelu(layers.conv(f"{name}.0", z))
        x = gelu(layers.subpixel(f"{name}.2", x))
        x = gelu(layers.conv(f"{name}.4", x))
        x = gelu(layers.subpixel(f"{name}.6", x))
        return layers.conv(f"{name}.8", x)

    mean, scale = hyper("h_s.mean.0"), hyper("h_s.scale.0")
    done: list[Array] = []
    for i in range(12):
        before = done[: config.support]
        contexts = [cat(mean, *before), cat(scale, *before)]
        done.append(layers.slice(i, code, contexts, contexts[0], 4))
    return cat(*done)


def walk_weconvene(layers: Blocks, config, z_symbols: Array, code: Code) -> Array:
    z = layers.z_hat(z_symbols)

    def blocks(name: str, x: Array, places: range) -> Array:
        for place in places:
            x = layers.residual_block(f"{name}.{place}", x)
        return x

    def hyper(name: str) -> Array:
        x = layers.wavelet_up(f"{name}.0.0", z)
        x = blocks(f"{name}.0", x, range(1, config.depth + 1))
        return layers.subpixel(f"{name}.1.0", x)

    def refine(name: str, u: Array) -> Array:
        return blocks(name, u, range(2))

    mean, scale = hyper("h_s.mean"), hyper("h_s.scale")
    done: list[Array] = []
    for i in range(10):
        contexts = [
            layers.gate(f"{kind}_gates.{i}", cat(given, *done), refine)
            for kind, given in (("mean", mean), ("scale", scale))
        ]
        low = done[:5] if i >= 5 else []
        done.append(layers.slice(i, code, contexts, cat(*low, contexts[0]), 2))
    return cat(*done)


def walk_gated(layers: Blocks, config, hyper: Callable[[str], Array], code: Code) -> Array:
    """Slices whose gates refine by two Swin layers."""

    def refine(name: str, u: Array) -> Array:
        u = layers.swin(f"{name}.0", u, config.context_heads, 8, False)
        return layers.swin(f"{name}.1", u, config.context_heads, 8, True)

    mean, scale = hyper("h_s.mean"), hyper("h_s.scale")
    done: list[Array] = []
    for i in range(5):
        contexts = [
            layers.gate(f"{kind}_gates.{i}", cat(given, *done), refine)
            for kind, given in (("mean", mean), ("scale", scale))
        ]
        done.append(layers.slice(i, code, contexts, contexts[0], len(config.net_widths)))
    return cat(*done)


def walk_tcm(layers: Blocks, config, z_symbols: Array, code: Code) -> Array:
    z = layers.z_hat(z_symbols)

    def hyper(name: str) -> Array:
        x = layers.residual_up(f"{name}.0.0", z)
        for place in range(2 * config.depth):
            shift = bool(place % 2)
            x = layers.mixed(f"{name}.0.{place + 1}", x, config.hyper_heads, 4, shift)
        return layers.subpixel(f"{name}.1.0", x)

    return walk_gated(layers, config, hyper, code)


def walk_mambavc(layers: Blocks, config, z_symbols: Array, code: Code) -> Array:
    z = layers.z_hat(z_symbols)

    def hyper(name: str) -> Array:
        x = layers.deconv(f"{name}.0.0", z, 2)
        for place in range(config.hyper_depth):
            x = layers.state_space(f"{name}.0.{place + 1}", x)
        return layers.deconv(f"{name}.1.0", x, 2)

    return walk_gated(layers, config, hyper, code)


def walk_dcae(layers: Blocks, config, z_symbols: Array, code: Code) -> Array:
    z = layers.z_hat(z_symbols)

    def hyper(name: str) -> Array:
        x = layers.deconv(f"{name}.0.0", z, 2)
        x = layers.attention_stage(f"{name}.0.1", x, config.hyper_heads, config.hyper_depth)
        for place in range(config.residual_depth):
            x = layers.bottleneck(f"{name}.1.0.{place}", x, unit=False)
        return layers.deconv(f"{name}.1.0.{config.residual_depth}", x, 2)

    mean, scale = hyper("h_s.mean"), hyper("h_s.scale")
    done: list[Array] = []
    slices = len([name for name in layers.p if name.endswith(".x_trans.weight")])
    for i in range(slices):
        query = cat(scale, mean, *done)
        found = layers.dictionary_attention(f"attentions.{i}", query, config.dictionary_heads)
        context = cat(query, found)
        done.append(layers.slice(i, code, [context, context], context, len(config.net_widths)))
    return cat(*done)


def walk_lalic(layers: Blocks, config, z_symbols: Array, code: Code) -> Array:
    published = config.wkv == "published"
    x = layers.deconv("h_s.0.0", layers.z_hat(z_symbols), 2)
    for place in range(config.hyper_depth):
        x = layers.rwkv(f"h_s.0.{place + 1}", x, published)
    params = layers.deconv("h_s.1.0", x, 2)
    h, w, _ = params.shape
    even = (np.arange(h)[:, None] + np.arange(w)) % 2 == 0
    done: list[Array] = []
    for k, count in enumerate(config.groups):
        known = [params]
        if k:
            name = f"channel_contexts.{k - 1}"
            x = layers.conv(f"{name}.0", cat(*done))
            for place in range(config.context_depth):
                x = layers.rwkv(f"{name}.{place + 1}", x, published)
            known = [layers.linear(f"{name}.{config.context_depth + 1}", x), params]
        current = np.zeros((h, w, count), np.int64)
        local = np.zeros((h, w, 2 * count), np.int64)
        for step, place in ((2 * k, even), (2 * k + 1, ~even)):
            x = cat(local, *known)
            for gate in range(3):
                x = layers.rwkv_gate(f"parameter_nets.{k}.{gate}", x)
            both = x[place]
            symbols = code(step, *both.T.reshape(2, count, h, w // 2))
            values = symbols.astype(np.int64).reshape(count, -1).T * 1024 + both[:, count:]
            current[place] = values
            local = layers.conv(f"local_contexts.{k}", current)
        done.append(current)
    return cat(*done)


def walk_mlicpp(layers: Blocks, config, z_symbols: Array, code: Code) -> Array:
    x = layers.z_hat(z_symbols)
    for stage in range(2):
        x = gelu(layers.conv(f"h_s.{stage}.0", x))
        x = gelu(layers.subpixel(f"h_s.{stage}.2", x))
    params = layers.conv("h_s.2.0", x)
    h, w, _ = params.shape
    odd = (np.arange(h)[:, None] + np.arange(w)) % 2 == 1
    features = params[..., config.latent_channels :]
    unit = config.slice_channels
    done: list[Array] = []

    def net(name: str, x: Array, layers_of: Callable[[str, Array], Array], count: int) -> Array:
        for place in range(count - 1):
            x = gelu(layers_of(f"{name}.{2 * place}", x))
        return layers_of(f"{name}.{2 * count - 2}", x)

    def coded(step: int, both: Array, place: Array) -> Array:
        """Values of the positions `place` on a whole map, from (n, 2u)."""
        symbols = code(step, *both.T.reshape(2, unit, h, w // 2))
        out = np.zeros((h, w, unit), np.int64)
        out[place] = symbols.astype(np.int64).reshape(unit, -1).T * 1024 + both[:, unit:]
        return clamp(out)

    def residual(kind: str, i: int, known: Array) -> Array:
        depth = 4 if config.release == "2023" else 3
        inputs = cat(features, *done, known)
        return half_tanh(net(f"{kind}_residuals.{i}.net", inputs, layers.conv, depth))

    for i in range(config.slices):
        found = [params]
        if i:
            before = cat(*done)
            channels = net(f"channel_contexts.{i - 1}", before, layers.conv, 3)
            found = [layers.global_context(f"global_contexts.{i - 1}", before, i), channels, params]
        known = cat(*found)
        both = net(f"anchor_nets.{i}", known[odd][None], layers.linear, 4)[0]
        anchors = coded(2 * i, both, odd)
        anchors = np.where(odd[..., None], clamp(anchors + residual("anchor", i, anchors)), 0)
        contexts = [layers.local_context(f"local_contexts.{i}", anchors, odd)]
        if i:
            name = f"checkerboard_contexts.{i - 1}"
            contexts.append(layers.checkerboard_context(name, done[-1], anchors, odd)[~odd])
        inputs = np.concatenate([*contexts, known[~odd]], axis=1)
        both = net(f"other_nets.{i}", inputs[None], layers.linear, 4)[0]
        others = coded(2 * i + 1, both, ~odd)
        r = residual("other", i, anchors + others)
        done.append(anchors + np.where(odd[..., None], 0, clamp(others + r)))
    return cat(*done)


WALKS = {
    "stf": walk_stf,
    "weconvene": walk_weconvene,
    "tcm": walk_tcm,
    "dcae": walk_dcae,
    "lalic": walk_lalic,
    "mambavc": walk_mambavc,
    "mlicpp": walk_mlicpp,
}
"""(layers, config, z symbols (N, h, w), code) -> what g_s reads (h, w, M), over 1024."""
