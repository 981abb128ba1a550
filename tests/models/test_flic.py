"""FLIC's blocks against their definitions, and its transformer against one pass over all slices."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.errors import ConfigError
from hpcm_scale.models.blocks.channel_attention import (
    ChannelLayer,
    SliceConv,
    from_windows,
    to_windows,
)
from hpcm_scale.models.blocks.frequency_attention import FrequencyAttention
from hpcm_scale.models.blocks.window_fourier import WindowFourier
from hpcm_scale.models.zoo import model_config


def filled(module: nn.Module) -> Any:
    """`module` in float64, no parameter at the value it starts with."""
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


@pytest.mark.parametrize("k", [2, 4, 16])
def test_window_fourier_is_its_definition(k):
    fourier = filled(WindowFourier(3, k))
    x = torch.randn(1, 2 * k, k, 3, dtype=torch.float64)
    place = torch.arange(k, dtype=torch.float64)
    turn = torch.exp(-2j * math.pi * place[:, None] * place / k) / math.sqrt(k)  # symmetric
    half = k // 2 + 1
    weight = torch.view_as_complex(fourier.complex_weight.detach().contiguous())
    for top in (0, k):
        window = x[0, top : top + k].to(torch.complex128)  # (k, k, 3)
        bins = torch.einsum("ur,rsc,sv->uvc", turn, window, turn)[:, :half] * weight
        rows = torch.einsum("ru,uvc->rvc", turn.conj(), bins)
        # A real signal's other bins are these mirrored; the first and last are real.
        kept = torch.cat([rows[:, :1].real, rows[:, 1 : half - 1], rows[:, half - 1 :].real], 1)
        mirrored = rows[:, 1 : half - 1].flip(1).conj()
        full = torch.cat([kept, mirrored], dim=1)
        expected = torch.einsum("rvc,vs->rsc", full, turn.conj())
        assert expected.imag.abs().max() < 1e-12
        found = fourier(x)[0, top : top + k]
        assert torch.allclose(found, expected.real, atol=1e-12)


def test_window_fourier_starts_as_the_identity():
    x = torch.randn(2, 8, 16, 5)
    assert torch.allclose(WindowFourier(5, 4)(x), x, atol=1e-6)


def attended(
    attention: Any, t: Tensor, j: int, window: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """Quarter j, position by position, on a map already (H, W, C)."""
    h, w, c = t.shape
    inner = attention.attns[j]
    quarter = c // 4
    q, k, v = (
        part[..., j * quarter : (j + 1) * quarter] for part in attention.qkv(t).chunk(3, dim=-1)
    )
    size = quarter // inner.heads
    out = torch.zeros(h, w, quarter, dtype=t.dtype)

    def place(row: int, column: int) -> tuple[int, int]:
        return (row + shift[0]) % h, (column + shift[1]) % w

    for row in range(h):
        for column in range(w):
            first = row // window[0] * window[0], column // window[1] * window[1]
            for head in range(inner.heads):
                part = slice(head * size, (head + 1) * size)
                logits, values = [], []
                for r in range(first[0], first[0] + window[0]):
                    for s in range(first[1], first[1] + window[1]):
                        entry = (row - r + window[0] - 1) * (2 * window[1] - 1)
                        entry += column - s + window[1] - 1
                        table = inner.relative_position_bias_table
                        bias = 0.0 if table is None else table[entry, head]
                        product = q[place(row, column)][part] @ k[place(r, s)][part]
                        logits.append(product / math.sqrt(size) + bias)
                        values.append(v[place(r, s)][part])
                weights = torch.stack(logits).softmax(0)
                out[(*place(row, column), part)] = weights @ torch.stack(values)
    return out


@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_frequency_attention_is_its_definition(shifted, displaced):
    attention = filled(FrequencyAttention(16, 8, 2, shifted, displaced))
    t = torch.randn(1, 8, 4, 16, dtype=torch.float64)
    with torch.no_grad():
        found = attention(t)[0].chunk(4, dim=-1)
        shapes = ((4, 4), (1, 1), (1, 4), (4, 1))
        for j, window in enumerate(shapes):
            # A side of one position is rolled in by one; the result then stays a place too far on.
            roll = [-(-side // 2) if displaced else side // 2 for side in window]
            rolled = roll if shifted else [0, 0]
            expected = attended(attention, t[0], j, window, (rolled[0], rolled[1]))
            if shifted and displaced:
                left = [a - side // 2 for a, side in zip(rolled, window, strict=True)]
                expected = expected.roll((-left[0], -left[1]), dims=(0, 1))
            assert torch.allclose(found[j], expected, atol=1e-12)


def at_once(layers: Any, u: Tensor, slices: int, heads: int) -> Tensor:
    """All slices in one pass, by grouped convolutions and a mask: (1, C, H, W) stays."""
    channels = u.shape[1]

    def norm(x: Tensor, by: Any) -> Tensor:
        return F.group_norm(x, slices, by.weight, by.bias)

    def pointwise(x: Tensor, by: Any) -> Tensor:
        return F.conv2d(x, by.weight[..., None, None], by.bias, groups=slices)

    for layer in layers:
        ask, mix = layer.projection, layer.mixing
        out = torch.empty_like(u)
        for top in range(0, u.shape[2], 8):
            for left in range(0, u.shape[3], 8):
                window = u[:, :, top : top + 8, left : left + 8]
                m = norm(window, ask.norm)
                conv = F.conv2d(
                    m, ask.position.weight, ask.position.bias, padding=1, groups=channels
                )
                m = m + F.gelu(norm(conv, ask.position_norm))
                q, k, v = (
                    pointwise(m, net).view(-1, heads, 64).transpose(0, 1)
                    for net in (ask.query, ask.key, ask.value)
                )
                dimension = torch.arange(channels // heads) * heads * slices // channels
                later = dimension[None, :] > dimension[:, None]
                logits = q @ k.transpose(1, 2) / math.sqrt(channels // heads)
                probabilities = logits.masked_fill(later, -math.inf).softmax(-1)
                attended = (probabilities @ v).transpose(0, 1).reshape(1, channels, 8, 8)
                out[:, :, top : top + 8, left : left + 8] = pointwise(attended, mix.proj)
        u = u + out
        u = u + pointwise(F.gelu(pointwise(norm(u, mix.norm), mix.fc1)), mix.fc2)
    return u


def test_slice_by_slice_is_one_pass_over_all():
    slices, heads, channels = 5, 4, 80
    layers = filled(nn.ModuleList(ChannelLayer(channels, slices, heads) for _ in range(3)))
    u = torch.randn(1, channels, 16, 24, dtype=torch.float64)
    kept: list[list[Tensor]] = [[] for _ in layers]
    found = []
    with torch.no_grad():
        for index, part in enumerate(u.chunk(slices, dim=1)):
            x = to_windows(part)
            for layer, before in zip(layers, kept, strict=True):
                before.append(layer.projection(x, index))
                x = layer.mixing(x, index, *before)
            found.append(from_windows(x, 24))
        expected = at_once(layers, u, slices, heads)
    assert torch.allclose(torch.cat(found, dim=1), expected, rtol=1e-10, atol=1e-12)


def test_a_slices_convolution_is_its_group():
    conv = filled(SliceConv(10, 20, 5))
    x = torch.randn(2, 10, 6, 7, dtype=torch.float64)
    parts = [conv(part, i) for i, part in enumerate(x.chunk(5, dim=1))]
    assert torch.allclose(torch.cat(parts, dim=1), nn.Conv2d.forward(conv, x))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"latent_channels": 328}, "latent_channels: 328 is not a multiple of 20"),
        ({"heads": [8, 16, 30]}, "heads: 30 for 256 channels"),
        ({"context_heads": 24}, "context_heads: 24 does not divide 256"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        model_config("flic", overrides=overrides)
