"""The peers' scans, norms over slices, Fourier windows and attentions on any grid integers.

Each against the int64 reference, at the edges of its bounds too; and against the network's own
layer in double precision, so that reference and definition are not wrong together.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.channel_attention import ExactChannelAttention, ExactSliceNorm
from hpcm_scale.entropy.exact.frequency_attention import (
    ExactShapedWindowAttention,
    ExactWindowFourier,
)
from hpcm_scale.entropy.exact.kernels import Kernels
from hpcm_scale.entropy.exact.linear_attention import ExactLocalAttention
from hpcm_scale.entropy.exact.scan_blocks import ExactSelectiveScan2d
from hpcm_scale.entropy.exact.window_attention import ExactWindowAttention
from hpcm_scale.errors import CheckpointError, DataError
from hpcm_scale.models.blocks.channel_attention import ChannelAttention, SliceNorm
from hpcm_scale.models.blocks.frequency_attention import ShapedWindowAttention
from hpcm_scale.models.blocks.local_attention import WindowAttention as LocalAttention
from hpcm_scale.models.blocks.selective_scan import SelectiveScan2d
from hpcm_scale.models.blocks.window_attention import WindowAttention
from hpcm_scale.models.blocks.window_fourier import WindowFourier
from tests.entropy.exact_reference import L
from tests.entropy.layouts import strided
from tests.entropy.peer_blocks import Blocks
from tests.entropy.peer_flic import Flic
from tests.entropy.peer_functions import attended, fourier_matrix, logits_of, wide_norm
from tests.entropy.test_exact_functions import grid_integers

SPREADS = st.sampled_from(["usual", "any", "limits"])
ARITHMETICS = st.sampled_from([ORIGINAL, Arithmetic(2)])
LARGEST_BIAS = 3.048e12
"""Just inside |round(b·1024·log2e)| < 2^52."""
LARGEST_SKIP = 1056832.0
"""The largest D, to single precision's last digit, of which L·round(4096·D) is below 2^53."""
LARGEST_GAIN = 16383.999
"""The largest gain of a SliceNorm, which leaves an offset below 2 within the bound."""


def of_spread(rng: np.random.Generator, shape: tuple[int, ...], spread: str) -> np.ndarray:
    """Grid integers: about as a network has them, of every size, or all at the limits."""
    if spread == "usual":
        return np.rint(rng.normal(0, 1024, shape)).astype(np.int64)
    x = grid_integers(rng, shape)
    return np.where(x < 0, -L, L) if spread == "limits" else x


def assert_gives(layer: Callable[[Tensor], Tensor], x: np.ndarray, expected: np.ndarray) -> None:
    """That a layer of (1, ...) gives these integers, whatever the layout of what it is given."""
    t = torch.from_numpy(x.astype(np.float32))[None]
    for given_to in (t, strided(t)):
        with torch.inference_mode():
            found = layer(given_to).numpy().astype(np.int64).reshape(expected.shape)
        assert np.array_equal(found, expected)


def floating(layer: nn.Module, x: np.ndarray, *more: object) -> np.ndarray:
    """What the network's layer makes of (1, ...), in double precision, in grid points."""
    with torch.no_grad():
        return 1024 * layer.double()(torch.from_numpy(x / 1024)[None], *more)[0].numpy()


def filled(layer: nn.Module, rng: np.random.Generator, size: float = 1) -> nn.Module:
    """The layer with weights as spread out as training leaves them, times `size`."""
    with torch.no_grad():
        for parameter in layer.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            values = rng.normal(0, size / fan_in**0.5, parameter.shape)
            parameter.copy_(torch.from_numpy(values))
    return layer.requires_grad_(False)


def parameters(layer: nn.Module, name: str) -> dict[str, np.ndarray]:
    return {f"{name}.{part}": p.numpy().copy() for part, p in layer.named_parameters()}


def wide_in(arithmetic: Arithmetic) -> frozenset[str] | None:
    """As the reference's layers are told."""
    return None if arithmetic.version == 1 else arithmetic.wide


@given(
    seed=st.integers(0, 2**32),
    sides=st.sampled_from([(1, 1), (2, 3), (5, 1), (3, 12)]),  # a chunk has 32 places
    inner=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    spread=SPREADS,
    arithmetic=ARITHMETICS,
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_selective_scan_is_that_of_integers(seed, sides, inner, spread, arithmetic) -> None:
    rng = np.random.default_rng(seed)
    channels, states, rank = inner
    block = filled(SelectiveScan2d(4, channels, states, rank), rng, 2)
    with torch.no_grad():
        block.dt_projs_bias.sub_(3)
        if spread != "usual":
            block.A_logs.copy_(
                torch.from_numpy(rng.choice([-20, -3, 0, 3, 20], block.A_logs.shape))
            )
            block.Ds.copy_(torch.from_numpy(rng.choice([-1, 0, 1], block.Ds.shape) * LARGEST_SKIP))
    x = of_spread(rng, (*sides, channels), spread)
    expected = Blocks(parameters(block, "op"), wide_in(arithmetic)).scan("op", x)
    exact = ExactSelectiveScan2d(block, {}, "op", Kernels(arithmetic))
    assert_gives(exact._scanned, x, expected)
    if spread == "usual" and arithmetic == ORIGINAL:
        with torch.no_grad():
            v = torch.from_numpy(x / 1024)[None]
            true = 1024 * block.double()._scanned(v)[0].numpy()
        # Products of four factors, of which each is right to a few grid points; states stop at L.
        if np.abs(true).max() < 2**20:
            assert (np.abs(expected - true) < 8 + 0.02 * np.abs(true).max()).all()


@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(1, 1, 1), (3, 2, 4), (2, 16, 8), (1, 64, 3)]),
    slices=st.sampled_from([1, 3]),
    dims=st.sampled_from([2, 3]),
    spread=st.sampled_from(["usual", "any", "limits", "equal", "one apart"]),
    largest=st.booleans(),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_slice_norm_is_that_of_integers(seed, shape, slices, dims, spread, largest) -> None:
    rng = np.random.default_rng(seed)
    x = of_spread(rng, shape, spread)
    if spread == "equal":  # no variance but ε
        x[...] = x.flat[0]
    elif spread == "one apart":
        x[...] = L
        x[:, :1, :1] = rng.choice([-L, L - 1])
    norm = filled(SliceNorm(slices * shape[-1], slices), rng, 4)
    if largest:
        norm.weight.copy_(torch.from_numpy(rng.choice([-1, 1], len(norm.weight)) * LARGEST_GAIN))
        norm.bias.copy_(torch.from_numpy(rng.uniform(-1.9, 1.9, len(norm.bias))))
    exact = ExactSliceNorm(norm, "norm")
    for index in range(slices):
        gain, offset = (
            np.split(p, slices)[index] for p in (norm.weight.numpy(), norm.bias.numpy())
        )
        together = [x] if dims == 3 else list(x)
        expected = np.array([wide_norm(part, gain, offset) for part in together]).reshape(shape)
        assert_gives(lambda t, index=index: exact(t, index, dims), x, expected)
        true = floating(norm, x, index, dims).clip(-L, L)
        # Roots of sums below 2^40 have 20 bits fewer than those of others.
        room = 1 + np.abs(gain) * 2e-4 * 1024 * np.sqrt(x.size)
        assert (np.abs(expected - true) < room).all()
        norm.float()


def test_a_slice_norm_of_a_million_values() -> None:
    """As many as are allowed, one of them as far from the others as can be."""
    x = np.full((1 << 14, 64), L)
    x[77, 5] = -L
    norm = SliceNorm(64, 1).requires_grad_(False)
    norm.weight.fill_(LARGEST_GAIN)
    norm.bias.fill_(-1.9)
    exact = ExactSliceNorm(norm, "norm")
    expected = wide_norm(x, norm.weight.numpy(), norm.bias.numpy())
    assert expected[77, 5] == -L
    assert_gives(lambda t: exact(t, 0, 2), x, expected)
    with pytest.raises(DataError, match="1048577 values to normalise together"):
        exact(torch.zeros(1, (1 << 20) + 1, 1), 0, 2)
    norm.weight[3] = 16384
    with pytest.raises(CheckpointError, match=r"norm: its products could reach 2\^53"):
        ExactSliceNorm(norm, "norm")


@given(
    seed=st.integers(0, 2**32),
    windows=st.sampled_from([(1, 1), (2, 3)]),
    log_size=st.one_of(st.floats(-30, 10), st.just(13)),
    spread=SPREADS,
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_fourier_of_windows_is_that_of_integers(seed, windows, log_size, spread) -> None:
    rng = np.random.default_rng(seed)
    layer = WindowFourier(3, 4).requires_grad_(False)
    weight = rng.normal(0, 1, layer.complex_weight.shape) * rng.choice([0, 1], (3, 1))
    largest = np.abs(fourier_matrix(weight)).max() or 1
    # At 13, the largest entry of the matrix is just below 2^13, the largest a layer may have.
    layer.complex_weight.copy_(torch.from_numpy(weight / largest * 2.0**log_size * (1 - 1e-6)))
    x = of_spread(rng, (4 * windows[0], 4 * windows[1], 3), spread)
    expected = Flic(parameters(layer, "fm")).fourier("fm", x)
    assert_gives(ExactWindowFourier(layer, "fm"), x, expected)
    matrix = np.abs(fourier_matrix(layer.complex_weight.numpy())).max(axis=(1, 2))
    true = floating(layer, x).clip(-L, L)
    # Weights of 14 bits, or multiples of 2^-24.
    error = np.maximum(matrix * 2.0**-13, 2.0**-25)
    assert (np.abs(expected - true) <= 0.51 + 16 * error * np.abs(x).max()).all()


def test_too_large_weights_of_frequencies_are_refused() -> None:
    layer = WindowFourier(3, 4).requires_grad_(False)
    layer.complex_weight[..., 1, 0] = 8192
    with pytest.raises(CheckpointError, match=r"fm.complex_weight: has a weight of 8192"):
        ExactWindowFourier(layer, "fm")
    with pytest.raises(CheckpointError, match=r"fm: windows of 8"):
        ExactWindowFourier(WindowFourier(3, 8), "fm")


@given(
    seed=st.integers(0, 2**32),
    channels=st.sampled_from([1, 3, 8]),
    slices=st.sampled_from([1, 2, 5]),
    spread=SPREADS,
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_attention_between_channels_is_that_of_integers(seed, channels, slices, spread) -> None:
    rng = np.random.default_rng(seed)
    dimensions = 5 * channels
    # (slices, 3, n, heads, C/heads, p)
    x = of_spread(rng, (slices, 3, 2, 2, channels, 64), spread)
    keys, values = (np.concatenate(list(x[:, part]), axis=-2) for part in (1, 2))
    factor = round(2**12 * 1.4426950408889634 * dimensions**-0.5)
    seen = np.ones((channels, slices * channels), bool)
    expected = np.array(
        [
            [attended(logits_of(q, k, factor), v, seen) for q, k, v in zip(*by_head, strict=True)]
            for by_head in zip(x[-1, 0], keys, values, strict=True)
        ]
    )
    attention = ChannelAttention(dimensions)
    exact = ExactChannelAttention(attention, {}, "attention", Kernels(ORIGINAL))
    tensors = [torch.from_numpy(part.astype(np.float32))[:, None] for part in x]
    for layout in (lambda t: t, strided):
        found = exact(*(layout(t) for t in tensors))[0].numpy()
        assert np.array_equal(found.astype(np.int64), expected)
    if spread == "usual":
        true = 1024 * attention(*(t.double() / 1024 for t in tensors))[0].numpy()
        # Logits are right to their factor's 13 bits.
        assert np.abs(expected - true).max() < 1 + 0.01 * np.abs(x).max()


@given(
    seed=st.integers(0, 2**32),
    side=st.sampled_from([2, 4]),
    heads=st.sampled_from([1, 2]),
    shifted=st.booleans(),
    spread=SPREADS,
    arithmetic=ARITHMETICS,
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_window_attention_is_that_of_integers(
    seed, side, heads, shifted, spread, arithmetic
) -> None:
    rng = np.random.default_rng(seed)
    attention = filled(WindowAttention(4, heads, side, shifted), rng, 1 if spread == "usual" else 4)
    if spread == "limits":
        signs = rng.choice([-1, 0, 1], attention.table.shape)
        attention.table.copy_(torch.from_numpy(signs * LARGEST_BIAS))
    x = of_spread(rng, (2 * side, 3 * side, 4), spread)
    reference = Blocks(parameters(attention, "msa"), wide_in(arithmetic))
    expected = reference.window_attention("msa", x, heads, side, shifted)
    if spread == "limits":
        assert reference.largest == L
    assert_gives(ExactWindowAttention(attention, "msa", Kernels(arithmetic)), x, expected)
    if spread == "usual" and arithmetic == ORIGINAL:
        assert np.abs(expected - floating(attention, x)).max() < 8 + 0.01 * np.abs(expected).max()


@given(
    seed=st.integers(0, 2**32),
    window=st.sampled_from([(1, 1), (4, 4), (1, 4), (4, 1)]),
    heads=st.sampled_from([1, 2]),
    rolled=st.sampled_from([((0, 0), (0, 0)), ((2, 2), (2, 2)), ((1, 2), (0, 2))]),
    spread=SPREADS,
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_windows_of_four_shapes_are_attended_as_integers(
    seed, window, heads, rolled, spread
) -> None:
    rng = np.random.default_rng(seed)
    attention = filled(ShapedWindowAttention(heads, window, *rolled), rng)
    table = attention.relative_position_bias_table
    if spread == "limits" and table is not None:
        table.copy_(torch.from_numpy(rng.choice([-1, 0, 1], table.shape) * LARGEST_BIAS))
    x = of_spread(rng, (4, 8, 3, 2 * heads), spread)
    there, back = rolled
    shifted = np.roll(x, [-by for by in there], (0, 1))
    reference = Flic(parameters(attention, "attns"))
    if window == (1, 1):
        expected = shifted[:, :, 2]
    else:
        expected = reference.shaped("attns", shifted, heads, window)
    expected = np.roll(expected, back, (0, 1))
    assert_gives(ExactShapedWindowAttention(attention, "attns"), x, expected)
    if spread == "usual":
        assert np.abs(expected - floating(attention, x)).max() < 1 + 0.01 * np.abs(x).max()


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 3]),
    parity=st.sampled_from([0, 1]),
    spread=SPREADS,
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_windows_around_positions_are_attended_as_integers(seed, size, parity, spread) -> None:
    rng = np.random.default_rng(seed)
    attention = filled(LocalAttention(parity), rng)
    if spread == "limits":
        table = attention.relative_position_table
        table.copy_(torch.from_numpy(rng.choice([-1, 0, 1], table.shape) * LARGEST_BIAS))
    h, w = 4, 6
    x = of_spread(rng, (h, w, 6 * size), spread)
    table = attention.relative_position_table.numpy().astype(np.float64)
    bias = np.rint(table * (1024 * 1.4426950408889634)).astype(np.int64)
    factor = round(2**12 * 1.4426950408889634 / size**0.5)
    anchors = (np.arange(h)[:, None] + np.arange(w)) % 2 == parity
    around, inside = np.pad(x, ((2, 2), (2, 2), (0, 0))), np.pad(anchors, 2)
    place = [(i, j) for i in range(5) for j in range(5)]
    index = np.array([[(a - m + 4) * 9 + b - n + 4 for m, n in place] for a, b in place])
    expected = []
    for i, j in zip(*np.nonzero(~anchors), strict=True):
        window = around[i : i + 5, j : j + 5].reshape(25, 3, size, 2)
        anchor = inside[i : i + 5, j : j + 5].ravel()
        less = np.where(anchor[:, None] & anchor, 0, 147732)
        by_head = [
            attended(logits_of(q, k, factor) + bias[index, head] - less, v, np.ones((25, 25), bool))
            for head, (q, k, v) in enumerate(window.transpose(3, 1, 0, 2))
        ]
        expected.append(np.concatenate(by_head, axis=1))
    exact = ExactLocalAttention(attention, "attend")
    assert_gives(exact, x.transpose(2, 0, 1), np.array(expected))
    if spread == "usual":
        with torch.no_grad():
            t = torch.from_numpy(x / 1024).permute(2, 0, 1)[None]
            true = 1024 * attention.double()(t).numpy()
        assert np.abs(np.array(expected) - true).max() < 1 + 0.01 * np.abs(x).max()
