"""The peers' exact operations on any grid integers, against Python's integers, and their bounds."""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpcm_scale.entropy.exact.attention import softmax_weights
from hpcm_scale.entropy.exact.functions import (
    ExactGelu,
    HalfTanh,
    Sigmoid,
    Silu,
    activation,
    gated,
    leaky_relu,
)
from hpcm_scale.entropy.exact.linear_attention import exact_linear_attention
from hpcm_scale.entropy.exact.normalisation import ExactInverseGDN, ExactLayerNorm, floor_root
from hpcm_scale.entropy.exact.parameters import calibrated
from hpcm_scale.entropy.exact.peer_blocks import ExactWaveletConv
from hpcm_scale.entropy.exact.softmax import powers_of_two
from hpcm_scale.entropy.exact.wkv import exact_wkv
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.gdn import GDN
from tests.entropy import peer_functions as reference
from tests.entropy.exact_reference import L
from tests.entropy.peer_models import network

FLIC_BLOCK, FLIC_TABLE = "h_s.scale.0.2.trans_block", "relative_position_bias_table"
EDGES = [-L, -L + 1, -12289, -4097, -4096, -1, 0, 1, 2, 4095, 4096, 12288, 12289, L - 1, L]


def grid_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of every size, some at the edges."""
    size = np.exp2(rng.uniform(0, 21, shape))
    values = np.rint(rng.uniform(-1, 1, shape) * size).astype(np.int64).clip(-L, L)
    edges = rng.choice(EDGES, shape)
    return np.where(rng.random(shape) < 0.2, edges, values)


def maps(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, list[Tensor]]:
    """(2, 4, C) integers and the same as (1, C, 2, 4) tensors in two layouts."""
    x = grid_integers(rng, (2, 4, channels))
    tensor = torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]
    layouts = (torch.channels_last, torch.contiguous_format)
    return x, [tensor.contiguous(memory_format=layout) for layout in layouts]


def as_integers(x: Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy().astype(np.int64)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_functions_of_one_value_are_the_nearest_integers(seed: int) -> None:
    x, tensors = maps(np.random.default_rng(seed), 16)
    exact = {
        ExactGelu(nn.GELU(), "layer"): lambda v: 512 * v * mpmath.erfc(-v / mpmath.sqrt(2)),
        Silu(): lambda v: 1024 * v / (1 + mpmath.exp(-v)),
        HalfTanh(): lambda v: 512 * mpmath.tanh(v),
        Sigmoid(): lambda v: 2**15 / (1 + mpmath.exp(-v)),
    }
    for function, true in exact.items():
        first, second = (as_integers(function(tensor)) for tensor in tensors)
        assert np.array_equal(first, second)
        for a, found in zip(x.ravel().tolist(), first.ravel().tolist(), strict=True):
            assert abs(found - true(mpmath.mpf(a) / 1024)) <= 0.5, (function, a)
    for tensor in tensors:
        assert np.array_equal(as_integers(leaky_relu(tensor)), reference.leaky_relu(x))


@given(seed=st.integers(0, 2**32), bits=st.sampled_from([10, 15]))
@settings(max_examples=30, deadline=None)
def test_products_of_two_tensors_are_exact(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    (x, _), (y, _) = maps(rng, 8), maps(rng, 8)
    exact = gated(torch.from_numpy(x).float(), torch.from_numpy(y).float(), bits)
    assert np.array_equal(exact.numpy().astype(np.int64), reference.multiplied(x, y, bits))


@given(root=st.integers(0, 2**31 - 1), apart=st.integers(-2, 2))
@settings(max_examples=300, deadline=None)
def test_roots_are_those_of_integers(root: int, apart: int) -> None:
    values = [v for v in (root * root + apart, 2**62 - 1 - root) if 0 <= v < 2**62]
    assert floor_root(torch.tensor(values)).tolist() == [math.isqrt(v) for v in values]


@given(
    seed=st.integers(0, 2**32),
    channels=st.sampled_from([1, 2, 3, 8, 31, 192, 1024]),
    spread=st.sampled_from(["any", "equal", "one apart", "extremes"]),
)
@settings(max_examples=80, deadline=None)
def test_layer_norm_is_that_of_integers(seed: int, channels: int, spread: str) -> None:
    rng = np.random.default_rng(seed)
    x, _ = maps(rng, channels)
    if spread == "equal":  # no variance but ε
        x[...] = x[..., :1]
    elif spread == "one apart":
        x[...] = L
        x[..., :1] = rng.choice([-L, L - 1])
    elif spread == "extremes":
        x = np.where(x < 0, -L, L)
    norm = nn.LayerNorm(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(rng.normal(0, 4, channels)))
        norm.bias.copy_(torch.from_numpy(rng.normal(0, 4, channels)))
    gain, offset = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    expected = reference.layer_norm(x, gain, offset)
    t = torch.from_numpy(x.astype(np.float32))[None]
    strided = t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    exact = ExactLayerNorm(norm, "layer")
    for tensor in (t, strided):
        assert np.array_equal(exact(tensor)[0].numpy().astype(np.int64), expected)
    # And it is the network's LayerNorm, to the grid and the digits of the root.
    floating = 1024 * norm.double()(t.double() / 1024).detach().numpy()[0]
    room = 1 + np.abs(gain) * 2e-3 * 1024 * math.sqrt(channels)
    assert (np.abs(expected - floating.clip(-L, L)) < room).all()


@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 3, 8, 40]))
@settings(max_examples=60, deadline=None)
def test_inverse_gdn_is_that_of_integers(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    x, tensors = maps(rng, channels)
    gdn = GDN(channels, inverse=True)
    with torch.no_grad():
        size = 2.0 ** rng.uniform(-20, 3)
        gamma = rng.uniform(-0.2, 1, (channels, channels)) * size
        gamma[rng.random(channels) < 0.2] = 0
        gdn.gamma.copy_(torch.from_numpy(gamma))
        gdn.beta.copy_(torch.from_numpy(rng.uniform(-1, 1, channels) * 2.0 ** rng.uniform(-9, 3)))
    beta, gamma = gdn.beta.detach().numpy(), gdn.gamma.detach().numpy()
    expected = reference.inverse_gdn(x, beta, gamma)
    exact = ExactInverseGDN(gdn, "layer")
    for tensor in tensors:
        assert np.array_equal(as_integers(exact(tensor)), expected)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_inverse_gdn_is_the_network_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(np.rint(rng.normal(0, 4000, (1, 24, 4, 4))).astype(np.float32))
    gdn = GDN(24, inverse=True)
    with torch.no_grad():
        gdn.gamma.add_(torch.from_numpy(rng.normal(0, 0.1, (24, 24))))
    floating = 1024 * gdn(x / 1024)
    room = 1 + 1e-3 * floating.abs()
    assert ((ExactInverseGDN(gdn, "layer")(x) - floating).abs() < room).all()


@given(seed=st.integers(0, 2**32), keys=st.sampled_from([1, 2, 16, 64, 128]))
@settings(max_examples=60, deadline=None)
def test_softmax_is_that_of_integers(seed: int, keys: int) -> None:
    rng = np.random.default_rng(seed)
    logits = np.rint(rng.normal(0, 2.0 ** rng.uniform(0, 40), (5, keys))).astype(np.int64)
    seen = rng.random(logits.shape) < 0.7
    seen[:, 0] = True
    # One value a key, so that what is attended is the key's weight.
    values = np.eye(keys, dtype=np.int64) * (1 << 15)
    given_logits = torch.from_numpy(logits).double()
    given_logits.masked_fill_(torch.from_numpy(~seen), -torch.inf)
    weights = softmax_weights(given_logits, torch.from_numpy(powers_of_two().copy()))
    assert np.array_equal(
        weights.numpy().astype(np.int64), reference.attended(logits, values, seen)
    )
    assert abs(float(weights.sum()) / 5 - 2**15) <= keys / 2


@given(
    seed=st.integers(0, 2**32),
    tokens=st.sampled_from([1, 2, 5, 31, 32, 33, 100]),
    published=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_wkv_is_that_of_integers(seed: int, tokens: int, published: bool) -> None:
    rng = np.random.default_rng(seed)
    k, u = (grid_integers(rng, (tokens, 3)) for _ in range(2))
    if rng.random() < 0.5:
        k //= 1 << 10
    decay, boost = (rng.normal(0, 4, (2, 3)) * rng.choice([1, 100])).astype(np.float32)
    keys, values = (torch.from_numpy(x).float().expand(2, -1, -1) for x in (k, u))
    rates = (torch.from_numpy(x).double() for x in (decay, boost))
    found = exact_wkv(keys, values, *rates, published, torch.from_numpy(powers_of_two().copy()))
    expected = reference.wkv(k, u, decay, boost, published)
    for image in found.numpy().astype(np.int64):
        assert np.array_equal(image, expected)


@given(
    seed=st.integers(0, 2**32),
    counts=st.tuples(st.sampled_from([1, 3, 40]), st.sampled_from([1, 7, 600])),
    spread=st.sampled_from([1, 1 << 10]),
)
@settings(max_examples=30, deadline=None)
def test_linear_attention_is_that_of_integers(seed: int, counts: tuple[int, int], spread) -> None:
    rng = np.random.default_rng(seed)
    q = grid_integers(rng, (counts[0], 6)) // spread
    k, v = (grid_integers(rng, (counts[1], 6)) // by for by in (spread, 1))
    tensors = (torch.from_numpy(x.T.astype(np.float32))[None] for x in (q, k, v))
    powers = torch.from_numpy(powers_of_two().copy())
    found = exact_linear_attention(*tensors, 2, powers)[0].numpy().astype(np.int64)
    assert np.array_equal(found.T, reference.linear_attention(q, k, v, 2))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_wavelets_are_halved_sums_of_integers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, tensors = maps(rng, 4)
    nothing = {
        part: nn.Identity() for part in ("low_freq_conv", "gdn_low", "high_freq_conv", "gdn_high")
    }
    bands = ExactWaveletConv(nn.Identity(), nothing, "layer", None)  # pyright: ignore[reportArgumentType] has no products
    for tensor in tensors:
        assert np.array_equal(as_integers(bands(tensor)), reference.inverse_haar(reference.haar(x)))


@pytest.mark.parametrize(
    ("variant", "parameter", "value", "said"),
    [
        ("stf", "h_s.mean.0.2.weight", 1e31, "h_s.mean.0.2: its sums"),
        ("weconvene", "h_s.scale.0.0.bands.gdn_low.gamma", 3e4, "gdn_low: its squares"),
        ("weconvene", "h_s.scale.0.0.bands.gdn_high.beta", 1e7, "gdn_high: its squares"),
        ("tcm", "mean_gates.1.refine.0.ln1.weight", 1e10, r"refine.0.ln1: its products"),
        ("tcm", "h_s.mean.0.2.trans_block.msa.table", -1e13, "msa.table: is up to"),
        ("lalic", "h_s.0.1.att.decay", 2001, "h_s.0.1.att.decay: is up to 2001"),
        ("lalic", "h_s.0.1.gamma2", 1e10, "h_s.0.1.gamma2.scale: is up to"),
        ("mambavc", "h_s.mean.0.2.op.A_logs", 21, "op.A_logs: is up to 21"),
        ("mambavc", "h_s.mean.0.2.op.Ds", -1e10, "op.Ds.scale: is up to"),
        ("dcae", "attentions.2.scale", 1e6, "attentions.2.scale: logits"),
        ("dcae", "h_s.mean.0.1.layers.0.res_scale_2.scale", 1e10, "res_scale_2.scale: is up to"),
        ("mlicpp", "local_contexts.0.attend.relative_position_table", -1e13, "table: is up to"),
        ("mlicpp", "local_contexts.1.norm2.weight", 1e10, "contexts.1.norm2: its products"),
        ("mlicpp", "local_contexts.2.fusion.weight", 1e31, "local_contexts.2.fusion: its sums"),
        ("mlicpp", "global_contexts.1.skip.bias", 1e37, "global_contexts.1.skip: its sums"),
        ("flic", "h_s.mean.0.0.igdn.gamma", 3e4, "h_s.mean.0.0.igdn: its squares"),
        ("flic", f"{FLIC_BLOCK}.attention.attns.2.{FLIC_TABLE}", -1e13, "table: is up to"),
        ("flic", f"{FLIC_BLOCK}.norm1.weight", 1e10, "trans_block.norm1: its products"),
        ("flic", "layers.0.projection.position_norm.weight", 16384, "position_norm: its products"),
        ("flic", "layers.1.mixing.fc1.weight", 1e31, "layers.1.mixing.fc1.0: its sums"),
        ("flic", "lift.bias", 1e37, "lift.4: its sums"),
    ],
)
def test_what_could_leave_the_bounds_is_refused(variant, parameter, value, said) -> None:
    made = network(variant)
    large = made.get_parameter(parameter)
    large[(0,) * (large.dim() - 1)][-1] = value
    with pytest.raises(CheckpointError, match=said):
        calibrated(made)


def test_layers_of_other_forms_are_refused() -> None:
    for layer, message in (
        (lambda: ExactLayerNorm(nn.LayerNorm(1025), "a.b"), "a.b: normalises 1025 channels"),
        (lambda: ExactLayerNorm(nn.LayerNorm(8, eps=1e-12), "a.b"), "no exact arithmetic"),
        (lambda: ExactInverseGDN(GDN(3), "a.b"), "a.b: a GDN that divides"),
        (lambda: ExactGelu(nn.GELU("tanh"), "a.b"), "a.b: GELU"),
        (lambda: activation(F.silu, "a.b"), "a.b: "),
    ):
        with pytest.raises(CheckpointError, match=message):
            layer()
