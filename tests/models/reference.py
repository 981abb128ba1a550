"""A plain float64 reading of the HPCM network, the yardstick for the package's own network.

It works on a dictionary of tensors in the key names of the published checkpoints, on whole grids
and with boolean masks, and shares no code with the package: when the two agree, both have read the
specification in the same way. Depths and widths come from the tensors, so a narrow network with
the published key names runs here as well as the published ones.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 1.5
# The published program keeps its bounds in single precision, whatever the network's precision.
SCALE_BOUND = float(np.float32(0.12))
LIKELIHOOD_BOUND = float(np.float32(1e-9))

# How the context of the next step is made from this step's parameters.
FUSION = {"base": "attention", "large": "attention", "phi": "psi", "1b": "psi", "no_fusion": "none"}

# (row, column) offsets: the position each channel group keeps of every 2×2 block.
S2_IN_Y = [(0, 0), (1, 1), (0, 1), (1, 0), (0, 0), (1, 1), (0, 1), (1, 0)]
S1_IN_S2 = [(0, 0), (0, 1), (1, 0), (1, 1)]

# The positions of a 2×2 block and, per step of S2, the one coded by each of 4 channel groups.
P = [(0, 0), (0, 1), (1, 0), (1, 1)]
S2_STEPS = [[3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]]

# The pairs of positions of a 4×4 block and, per step of S3, the pair coded by each of 8 groups.
Q = [
    [(0, 0), (2, 2)],
    [(0, 2), (2, 0)],
    [(1, 1), (3, 3)],
    [(1, 3), (3, 1)],
    [(0, 1), (2, 3)],
    [(0, 3), (2, 1)],
    [(1, 0), (3, 2)],
    [(1, 2), (3, 0)],
]
S3_STEPS = [
    [2, 4, 6, 0, 3, 5, 7, 1],
    [3, 5, 7, 1, 2, 4, 6, 0],
    [4, 6, 0, 2, 5, 7, 1, 3],
    [5, 7, 1, 3, 4, 6, 0, 2],
    [6, 0, 2, 4, 7, 1, 3, 5],
    [7, 1, 3, 5, 6, 0, 2, 4],
]


@dataclass
class Result:
    """Everything one forward pass decides; the lists have one entry per coding step."""

    y: Tensor
    y_hat: Tensor
    z_symbols: Tensor  # (B, N, h, w), int64
    y_symbols: list[Tensor]  # (B, M/2, M/4 or M/8, h, w), int64
    scales: list[Tensor]  # the shape of y_symbols; as predicted, before the lower bound
    means: list[Tensor]
    bits_y: Tensor  # (B,)
    bits_z: Tensor  # (B,)
    bits_y_steps: list[Tensor]  # (B,) each
    x_hat: Tensor


def symbols_sha256(symbols: Tensor) -> str:
    """Hash of a dense symbol tensor: row-major little-endian int32."""
    return hashlib.sha256(symbols.detach().cpu().numpy().astype("<i4").tobytes()).hexdigest()


# ---------------------------------------------------------------------------------- transforms


def _get(state: dict[str, Tensor], name: str) -> Tensor:
    return state[name].double()


def _conv(state: dict[str, Tensor], name: str, x: Tensor, transposed: bool = False) -> Tensor:
    """1×1, or a resampling by two: the kernel size alone says which, and with what padding."""
    weight, bias = _get(state, f"{name}.weight"), _get(state, f"{name}.bias")
    stride, padding = {1: (1, 0), 2: (2, 0), 4: (2, 1)}[weight.shape[-1]]
    conv = F.conv_transpose2d if transposed and stride == 2 else F.conv2d
    return conv(x, weight, bias, stride=stride, padding=padding)


def _residual_block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """PConvRB or DWConvRB: they differ in their 3×3 convolution."""
    if f"{name}.branch.0.pconv.weight" in state:
        weight = _get(state, f"{name}.branch.0.pconv.weight")
        bias = _get(state, f"{name}.branch.0.pconv.bias")
        first = weight.shape[1]
        f = torch.cat([F.conv2d(x[:, :first], weight, bias, padding=1), x[:, first:]], dim=1)
    else:
        weight = _get(state, f"{name}.branch.0.weight")
        bias = _get(state, f"{name}.branch.0.bias")
        f = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    f = F.leaky_relu(_conv(state, f"{name}.branch.1", f), 0.01)
    return x + _conv(state, f"{name}.branch.3", f)


def _children(state: dict[str, Tensor], prefix: str) -> list[str]:
    """The numbered modules below a prefix, in order; none when the prefix has no such keys."""
    tails = [key[len(prefix) + 1 :] for key in state if key.startswith(f"{prefix}.")]
    numbers = sorted({int(tail.split(".")[0]) for tail in tails if tail[0].isdigit()})
    return [f"{prefix}.{number}" for number in numbers]


def _run(state: dict[str, Tensor], names: list[str], x: Tensor, transposed: bool = False) -> Tensor:
    for name in names:
        if f"{name}.branch.3.weight" in state:
            x = _residual_block(state, name, x)
        else:
            x = _conv(state, name, x, transposed)
    return x


def _transform(state: dict[str, Tensor], part: str, x: Tensor) -> Tensor:
    """g_a, g_s, h_a or h_s; the 1B checkpoint names its stages in another way than the others."""
    if part == "g_a" and "g_a.g_a_down1.weight" in state:
        names = []
        for i in (1, 2, 3, 4):
            names += [f"g_a.g_a_down{i}", *_children(state, f"g_a.g_a_chunk{i}")]
    elif part == "g_s" and "g_s.g_s_up1.weight" in state:
        names = []
        for i in (4, 3, 2, 1):
            names += [*_children(state, f"g_s.g_s_chunk{i}"), f"g_s.g_s_up{i}"]
    else:
        names = _children(state, f"{part}.branch") or _children(state, part)
    return _run(state, names, x, transposed=part in ("g_s", "h_s"))


# ----------------------------------------------------------------------------------- schedule


def _at(offsets: list[tuple[int, int]], period: int, h: int, w: int) -> Tensor:
    """(h, w) mask of the positions at the given offsets in a block of period × period."""
    rows, columns = torch.arange(h)[:, None] % period, torch.arange(w)[None, :] % period
    mask = torch.zeros(h, w, dtype=torch.bool)
    for row, column in offsets:
        mask |= (rows == row) & (columns == column)
    return mask


def _per_group(masks: list[Tensor], channels: int) -> Tensor:
    """(channels, h, w) mask from one (h, w) mask per group of consecutive channels."""
    return torch.stack(masks).repeat_interleave(channels // len(masks), dim=0)


def kept(offsets: list[tuple[int, int]], channels: int, h: int, w: int) -> Tensor:
    """The mask of the positions a smaller scale keeps of a grid of h × w."""
    return _per_group([_at([offset], 2, h, w) for offset in offsets], channels)


def step_masks(channels: int, h: int, w: int) -> list[list[Tensor]]:
    """Per scale and step, the (channels, h', w') mask coded; h × w is the grid of S3."""
    even = _at([(0, 0), (1, 1)], 2, h // 4, w // 4)
    s1 = [_per_group([even, ~even], channels), _per_group([~even, even], channels)]
    s2 = [_per_group([_at([P[p]], 2, h // 2, w // 2) for p in row], channels) for row in S2_STEPS]
    s3 = [_per_group([_at(Q[q], 4, h, w) for q in row], channels) for row in S3_STEPS]
    return [s1, s2, s3]


def _take(x: Tensor, mask: Tensor) -> Tensor:
    """The kept positions as a grid of half the size; two halves of channels share one mask."""
    mask = mask.repeat(x.shape[1] // mask.shape[0], 1, 1)
    return x[:, mask].reshape(x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2)


def _put(small: Tensor, mask: Tensor, background: Tensor) -> Tensor:
    """The inverse of _take, over a background of the larger grid."""
    out = background.clone()
    mask = mask.repeat(small.shape[1] // mask.shape[0], 1, 1)
    out[:, mask] = small.reshape(small.shape[0], -1)
    return out


def _dense(x: Tensor, mask: Tensor, groups: int) -> Tensor:
    """The one active channel group of every position."""
    return torch.where(mask, x, 0).unflatten(1, (groups, -1)).sum(dim=1)


def misplaced(params: Tensor) -> Tensor:
    """What the published program reads at the S2 positions that are not in S1.

    It selects with one mask and writes with another, each with as many positions per channel.
    """
    channels, (h, w) = params.shape[1] // 2, params.shape[2:]
    read = ~kept([(0, 0)] * 4 + [(0, 1)] * 4, channels, h, w).repeat(2, 1, 1)
    written = ~kept(S1_IN_S2, channels, h, w).repeat(2, 1, 1)
    out = params.clone()
    out[:, written] = params[:, read]
    return out


# --------------------------------------------------------------------------------- the network


def _attention(
    state: dict[str, Tensor], name: str, psi: Tensor, context: Tensor, heads: int, window: int
) -> Tensor:
    """Cross-attention inside windows: ψ asks, the context answers."""
    _, c, h, w = psi.shape
    if h % window or w % window:
        raise ValueError(f"{name}: a grid of {h} x {w} does not divide into windows of {window}")
    query = _conv(state, f"{name}.conv_q", psi).unflatten(1, (heads, -1))
    key = _conv(state, f"{name}.conv_k", context).unflatten(1, (heads, -1))
    value = _conv(state, f"{name}.conv_v", context).unflatten(1, (heads, -1))
    out = torch.empty_like(query)
    for top in range(0, h, window):
        for left in range(0, w, window):
            tile = (..., slice(top, top + window), slice(left, left + window))
            q, k, v = (part[tile].flatten(-2) for part in (query, key, value))  # (B, heads, d, n)
            weights = torch.softmax(q.mT @ k / math.sqrt(c // heads), dim=-1)
            out[tile] = (v @ weights.mT).unflatten(-1, (window, window))
    return out.flatten(1, 2) + _conv(state, f"{name}.conv_out", psi)


def likelihood(symbols: Tensor, scale: Tensor) -> Tensor:
    """Mass of the generalised Gaussian on the unit interval around each symbol, both bounds on."""
    scale = scale.clamp(min=SCALE_BOUND)

    def cdf(x: Tensor) -> Tensor:
        v = x / scale
        power = torch.full_like(v, 1 / BETA)
        return (1 + v.sign() * torch.special.gammainc(power, v.abs() ** BETA)) / 2

    return (cdf(symbols + 0.5) - cdf(symbols - 0.5)).clamp(min=LIKELIHOOD_BOUND)


def _bits(symbols: Tensor, scale: Tensor) -> Tensor:
    return -likelihood(symbols, scale).log2().sum(dim=(1, 2, 3))


@torch.no_grad()
def encode(
    state: dict[str, Tensor],
    variant: str,
    x: Tensor,
    hyper_alignment: str = "official",
    heads: int = 32,
    windows: tuple[int, int, int] = (4, 8, 8),
) -> Result:
    """Code images x (B, 3, H, W) in 0..1, with H and W multiples of 64 (and of the windows)."""
    fusion = FUSION[variant]
    if hyper_alignment not in ("official", "aligned"):
        raise ValueError(f"hyper_alignment is {hyper_alignment!r}: use 'official' or 'aligned'")
    y = _transform(state, "g_a", x.double())
    z = _transform(state, "h_a", y)
    z_mean, z_scale = _get(state, "means_hyper"), _get(state, "scales_hyper")
    z_symbols = torch.round(z - z_mean)
    params = _transform(state, "h_s", z_symbols + z_mean)

    _, m, h, w = y.shape
    s2_in_y = kept(S2_IN_Y, m, h, w)
    s1_in_s2 = kept(S1_IN_S2, m, h // 2, w // 2)
    y_s2, params_s2 = _take(y, s2_in_y), _take(params, s2_in_y)
    y_s1, params_s1 = _take(y_s2, s1_in_s2), _take(params_s2, s1_in_s2)
    background_s2 = misplaced(params_s2) if hyper_alignment == "official" else params_s2

    # Per scale: its latents; what fills the positions the smaller scale lacks, and which positions
    # that scale gives; its name among the adaptors and attentions; its shared net.
    scales = [
        (y_s1, params_s1, None, "s1", "y_spatial_prior_s1_s2"),
        (y_s2, background_s2, s1_in_s2, "s2", "y_spatial_prior_s1_s2"),
        (y, params, s2_in_y, "s3", "y_spatial_prior_s3"),
    ]
    context, y_hat = params_s1, torch.zeros_like(y_s1)
    y_symbols, y_scales, y_means = [], [], []
    for index, (target, background, inner, tag, net) in enumerate(scales):
        if inner is not None:
            context = _conv(state, f"context_net.{index - 1}", _put(context, inner, background))
            y_hat = _put(y_hat, inner, torch.zeros_like(target))
        adaptors = _children(state, f"y_spatial_prior_adaptor_list_{tag}")
        masks = step_masks(m, h, w)[index]
        for position, mask in enumerate(masks):
            step = len(y_symbols)
            if step == 0:
                psi = context
            else:
                # The published adaptor lists are rotated by one in S2 and S3: a scale's first step
                # has the last adaptor, which -1 means; S1 starts without one, and has one only.
                adaptor = adaptors[position - 1]
                psi = torch.cat([context, y_hat], dim=1)
                psi = _run(state, _children(state, adaptor) or [adaptor], psi)
                psi = _run(state, _children(state, f"{net}.branch_1"), psi)
                psi = psi * _get(state, f"adaptive_params_list.{step - 1}")
                psi = _run(state, _children(state, f"{net}.branch_2"), psi)
            scale, mean = psi.chunk(2, dim=1)
            symbols = torch.round(target - mean)
            y_hat = torch.where(mask, symbols + mean, y_hat)
            groups = (2, 4, 8)[index]
            y_symbols.append(_dense(symbols, mask, groups))
            y_scales.append(_dense(scale, mask, groups))
            y_means.append(_dense(mean, mask, groups))
            if step == 0 or fusion == "none":
                continue
            if fusion == "psi":
                context = psi
            else:
                context = _attention(state, f"attn_{tag}", psi, context, heads, windows[index])

    bits_y_steps = [_bits(s, scale) for s, scale in zip(y_symbols, y_scales, strict=True)]
    return Result(
        y=y,
        y_hat=y_hat,
        z_symbols=z_symbols.long(),
        y_symbols=[s.long() for s in y_symbols],
        scales=y_scales,
        means=y_means,
        bits_y=torch.stack(bits_y_steps).sum(dim=0),
        bits_z=_bits(z_symbols, z_scale.expand_as(z_symbols)),
        bits_y_steps=bits_y_steps,
        x_hat=_transform(state, "g_s", y_hat),
    )
