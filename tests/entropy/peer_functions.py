"""The peers' exact operations in int64 NumPy and Python integers, written from EXACT.md alone.

Shares no code with hpcm_scale.entropy.exact. Maps are (H, W, C) int64.
"""

import math
from functools import cache

import mpmath
import numpy as np

from tests.entropy.exact_reference import (
    bounded,
    clamp,
    octave_of_powers,
    over,
    over_power,
    to_integers,
)

Array = np.ndarray


def nearest(value: mpmath.mpf) -> int:
    """The nearest integer, which must not be in doubt."""
    assert abs(value - mpmath.floor(value) - 0.5) > 1e-7
    return int(mpmath.floor(value + 0.5))


@cache
def gelu_drop() -> Array:
    n = [nearest(n * mpmath.erfc(n / (1024 * mpmath.sqrt(2))) / 2) for n in range(4097)]
    return np.array(n)


@cache
def sigmoid_table() -> Array:
    values = (2**15 / (1 + mpmath.exp(mpmath.mpf(-a) / 1024)) for a in range(-12288, 12289))
    return np.array([int(v) if v == int(v) else nearest(v) for v in values])


@cache
def half_tanh_table() -> Array:
    return np.array([nearest(512 * mpmath.tanh(mpmath.mpf(a) / 1024)) for a in range(-4096, 4097)])


@cache
def powers() -> Array:
    n = np.arange(25 * 1024)
    return np.append(over_power(octave_of_powers()[n % 1024], n // 1024), 0)


@cache
def silu_drop() -> Array:
    n = [nearest(n / (1 + mpmath.exp(mpmath.mpf(n) / 1024))) for n in range(10241)]
    return np.array(n)


@cache
def step_rise() -> Array:
    n = [nearest(2**20 * mpmath.log1p(mpmath.exp(-mpmath.mpf(n) / 1024))) for n in range(15361)]
    return np.array(n)


@cache
def root_of_two(parts: int, most: int) -> Array:
    """2^(30 − n/parts), nearest integers, for n up to `most`."""
    values = [mpmath.mpf(2) ** (30 - mpmath.mpf(n) / parts) for n in range(most + 1)]
    return np.array(
        [np.rint(float(v)) if 2 * v == int(2 * v) else float(nearest(v)) for v in values]
    )


def fine_power(x: Array) -> Array:
    """2^−x of octaves over 2^16, as a product of two tables' integers."""
    x = x.clip(max=31 << 16)
    coarse, fine = (root_of_two(*size) for size in ((256, 31 * 256), (65536, 255)))
    return coarse[x // 256] * fine[x % 256] * 2.0**-60


def silu(x: Array) -> Array:
    return np.maximum(x, 0) - silu_drop()[np.minimum(np.abs(x), 10240)]


def signed_over(x: Array, y: Array) -> Array:
    """round(x / y), halves to even, y > 0."""
    return np.sign(x) * over(np.abs(x), y)


def floor_root(x: Array) -> Array:
    return np.array([math.isqrt(int(v)) for v in x.ravel()]).reshape(x.shape)


def gelu(x: Array) -> Array:
    return np.maximum(x, 0) - gelu_drop()[np.minimum(np.abs(x), 4096)]


def sigmoid(x: Array) -> Array:
    return sigmoid_table()[x.clip(-12288, 12288) + 12288]


def half_tanh(x: Array) -> Array:
    return half_tanh_table()[x.clip(-4096, 4096) + 4096]


def leaky_relu(x: Array) -> Array:
    product = np.rint(x.astype(np.float32) * np.float32(41 / 4096)).astype(np.int64)
    return np.where(x >= 0, x, product)


def multiplied(x: Array, y: Array, bits: int) -> Array:
    return clamp(over_power(bounded(x * y), bits))


def layer_norm(x: Array, gain: Array, offset: Array, epsilon: float = 1e-5) -> Array:
    count = x.shape[-1]
    total = x.sum(-1, keepdims=True)
    squares = (x * x).sum(-1, keepdims=True)
    r = count * squares - total * total + round(2**20 * count**2 * epsilon)
    assert 0 < r.max() < 2**62
    lift = np.where(r < 2**40, 10, 0)
    root = floor_root(r << 2 * lift)
    normal = signed_over(bounded((count * x - total) << (16 + lift)), root)
    assert np.abs(normal).max() < 2**17 * math.sqrt(count)
    scaled = normal * to_integers(gain, 12) + to_integers(offset, 28)
    return clamp(over_power(bounded(scaled), 18))


def wide_norm(x: Array, gain: Array, offset: Array) -> Array:
    """Normalised over all of x (..., C) together."""
    count, values = x.size, [int(v) for v in x.ravel()]
    total = sum(values)
    spread = count * sum(v * v for v in values) - total**2 + round(1e-5 * (1024 * count) ** 2)
    j = max(62 - spread.bit_length(), 0) // 2
    root = math.ldexp(math.isqrt(spread << 2 * j), -j)
    normal = np.rint(np.array([(count * v - total) / root for v in values]) * 2**16)
    scaled = normal.astype(np.int64).reshape(x.shape) * to_integers(gain, 12)
    return clamp(over_power(bounded(scaled + to_integers(offset, 28)), 18))


def fourier_matrix(weight: Array) -> Array:
    """(4, 3, C, 2) fp32 -> (C, 16, 16): what a window becomes, in double precision."""
    matrix = np.zeros((weight.shape[2], 16, 16))
    turn = (1, 1j, -1, -1j)
    for f in range(4):
        for g in range(3):
            for part, unit in enumerate((1, 1j)):
                effect = np.zeros((16, 16))
                for out in range(16):
                    for place in range(16):
                        turns = f * (out // 4 - place // 4) + g * (out % 4 - place % 4)
                        effect[out, place] = (unit * turn[turns % 4]).real * (2 if g == 1 else 1)
                matrix += weight[f, g, :, part].astype(np.float64)[:, None, None] * effect
    return matrix / 16


def inverse_gdn(x: Array, beta: Array, gamma: Array) -> Array:
    least = 2.0**-36
    beta = np.maximum(beta.astype(np.float64), math.sqrt(1e-6 + least)) ** 2 - least
    gamma = np.maximum(gamma.astype(np.float64), 2.0**-18) ** 2 - least
    squares = over_power(x * x, 6)
    out = np.empty_like(x)
    for i, row in enumerate(gamma):
        total = math.fsum(row)
        k = 24 if total == 0 else min(max(15 - math.frexp(total)[1], 0), 24)
        k -= k % 2
        norm = squares @ to_integers(row, k) + int(to_integers(beta[i : i + 1], k + 14)[0])
        assert norm.max() < 2**52
        product = bounded(x[..., i] * floor_root(norm))
        out[..., i] = clamp(over_power(product, k // 2 + 7))
    return out


def haar(x: Array) -> Array:
    a, b, c, d = x[0::2, 0::2], x[0::2, 1::2], x[1::2, 0::2], x[1::2, 1::2]
    bands = [a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]
    return clamp(over_power(np.concatenate(bands, axis=2), 1))


def inverse_haar(x: Array) -> Array:
    low, rows, columns, both = np.split(x, 4, axis=2)
    out = np.empty((2 * low.shape[0], 2 * low.shape[1], low.shape[2]), np.int64)
    out[0::2, 0::2] = low + rows + columns + both
    out[0::2, 1::2] = low + rows - columns - both
    out[1::2, 0::2] = low - rows + columns - both
    out[1::2, 1::2] = low - rows - columns + both
    return clamp(over_power(out, 1))


def attended(logits: Array, values: Array, seen: Array) -> Array:
    """Logits (queries, keys), which keys each query sees, and values (keys, d), settled."""
    drop = np.where(seen, logits, np.iinfo(np.int64).min // 2).max(axis=1, keepdims=True) - logits
    p = np.where(seen, powers()[drop.clip(0, 25 * 1024)], 0)
    alpha = over(p << 15, p.sum(axis=1, keepdims=True))
    return clamp(over_power(bounded(alpha @ values), 15))


def logits_of(q: Array, k: Array, factor: int) -> Array:
    return over_power(factor * over_power(bounded(q @ k.T), 10), 12)


def wkv(k: Array, u: Array, decay: Array, boost: Array, published: bool) -> Array:
    """(T, C) keys and values, (C,) fp32 parameters -> (T, C), token by token."""
    out = np.empty_like(u)
    log2e, tokens = 1.4426950408889634, len(k)
    places = np.arange(tokens)
    keys = over_power(k * round(2**12 * log2e), 12)
    for c in range(k.shape[1]):
        w = int(np.rint(np.float64(decay[c]) * (1024 * log2e * 2**20) / tokens))
        at = over_power(places * w, 20)
        own = keys[:, c] + int(np.rint(np.float64(boost[c]) * (1024 * log2e) / tokens))
        rising, falling = keys[:, c] + at, keys[:, c] - at
        p = powers()[(rising.max() - rising).clip(max=25 * 1024)]
        q = powers()[(falling.max() - falling).clip(max=25 * 1024)]
        growth = 0.0 if tokens <= 32 else -float(mpmath.expm1(mpmath.mpf(float(decay[c])) / tokens))
        length = -(-tokens // 32)
        for t in range(tokens):
            a = t // length * length
            backward = int(over_power(np.array([(t - 1) * w]), 20)[0])
            forward = int(over_power(np.array([(t + 1) * w]), 20)[0])
            if published:
                terms = [
                    (p, places < a, rising.max() - at[t], 1.0),
                    (p, (places >= a) & (places < t), rising.max() - backward, 1.0),
                    (q, places > t, falling.max() + at[t], 1.0),
                    (q, (places > a) & (places <= t), falling.max() + at[t], growth),
                ]
            else:
                terms = [
                    (p, places < t, rising.max() - backward, 1.0),
                    (q, places > t, falling.max() + forward, 1.0),
                ]
            found = [(int(n[s].sum()), int((n * u[:, c])[s].sum()), e, g) for n, s, e, g in terms]
            most = max([int(own[t]), *(int(e) for total, _, e, _ in found if total)])
            mine = float(powers()[min(most - int(own[t]), 25 * 1024)])
            top, bottom = mine * float(u[t, c]) * 2.0**24, mine * 2.0**24
            for total, of_values, exponent, factor in found:
                if total:
                    share = float(powers()[min(most - int(exponent), 25 * 1024)]) * factor
                    top, bottom = top + share * float(of_values), bottom + share * float(total)
            out[t, c] = clamp(np.rint(np.array(top / (bottom or 1.0)))).astype(np.int64)
    return out


def linear_attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    """(n_q, C), (n_k, C), (n_k, C) -> (n_q, C)."""
    out, d = np.empty_like(q), q.shape[1] // heads
    for head in range(heads):
        part = np.s_[:, head * d : (head + 1) * d]
        keys = over_power(5909 * k[part], 12)
        p = powers()[(keys.max(axis=0) - keys).clip(max=25 * 1024)]
        quotient = (p.T @ v[part]).astype(np.float64) / p.sum(axis=0)[:, None].astype(np.float64)
        summary = clamp(np.rint(quotient).astype(np.int64))
        queries = over_power(5909 * q[part], 12)
        out[part] = attended(queries, summary, np.ones(queries.shape, bool))
    return out
