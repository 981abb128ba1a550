"""Weights and layouts that need no file: a rule fills any layout of published key names.

`official_state_dict` draws every tensor from its name, its shape and a salt alone, so two programs
that never share a file hold the same network. `layout_for` spells out the published layouts, and
`reduced_layout` narrow ones that run in a moment.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


def tensor_for(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """Float64 values for one named tensor of a published checkpoint."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{salt}:{name}".encode())))
    draw = rng.standard_normal(shape)
    if name == "scales_hyper":
        return 0.5 + np.abs(draw)
    if name == "means_hyper":
        return 0.3 * draw
    if name.startswith("adaptive_params_list"):
        return 1.0 + 0.1 * draw
    if name.endswith("bias"):
        return 0.02 * draw
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if is_transposed(name, shape):
        fan_in = shape[0] * int(np.prod(shape[2:])) // 4
    return draw * (gain(name) / np.sqrt(max(fan_in, 1)))


def is_transposed(name: str, shape: tuple[int, ...]) -> bool:
    """The layout marks transposed convolutions by an even kernel in a synthesis path."""
    return len(shape) == 4 and shape[2] % 2 == 0 and name.split(".")[0] in ("g_s", "h_s")


def gain(name: str) -> float:
    """Residual branches are damped, the last analysis layers boosted: symbols are not all 0."""
    if re.search(r"\.\d+\.branch\.\d", name):
        return 0.5
    return {"g_a": 1.6, "h_a": 1.6}.get(name.split(".")[0], 1.0)


def official_state_dict(
    layout: str | Path | Mapping[str, Any], salt: str = "public"
) -> dict[str, np.ndarray]:
    """All trainable tensors of a layout, which is given itself or as the path of its file."""
    if not isinstance(layout, Mapping):
        layout = json.loads(Path(layout).read_text())
    return {k: tensor_for(k, tuple(s), salt) for k, s in layout["parameters"].items()}


# ----------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Dims:
    """Widths and depths of one layout; depths count residual blocks."""

    latent: int = 320
    hyper: int = 256
    hyper_middle: int = 256  # between the two resamplings of h_a and of h_s
    ratio: int = 4  # a PConvRB convolves 1/ratio of its channels
    widths: tuple[int, ...] = (96, 192, 384)
    depths: tuple[int, ...] = (2, 2, 4)  # of g_a, from the image inwards
    synthesis_depths: tuple[int, ...] = (2, 2, 4)  # of g_s, likewise from the image inwards
    hyper_depths: tuple[int, int] = (1, 3)  # next to the latents, and in the middle
    adaptor_depths: tuple[int, int, int] = (0, 0, 0)  # per scale; 0 stands for one 1×1
    shared: tuple[int, int, int] = (2, 1, 0)  # before the step scale, after it, after the 1×1
    shared_s3: tuple[int, int, int] = (3, 2, 0)
    attention: bool = True
    four_stages: bool = False  # 1B: blocks follow the fourth resampling too, other names


LARGE = Dims(
    depths=(2, 2, 8),
    synthesis_depths=(2, 2, 8),
    shared=(2, 2, 0),
    shared_s3=(4, 3, 0),
)
ONE_B = Dims(
    latent=512,
    hyper_middle=512,
    ratio=2,
    widths=(192, 384, 768),
    depths=(3, 9, 3, 3),
    synthesis_depths=(3, 3, 9, 3),
    hyper_depths=(4, 9),
    adaptor_depths=(5, 5, 7),
    shared=(5, 3, 2),
    shared_s3=(6, 4, 2),
    attention=False,
    four_stages=True,
)
PUBLISHED = {"base": Dims(), "large": LARGE, "phi": Dims(attention=False), "1b": ONE_B}


class _Names(dict):
    """Name to shape, with the modules of the network as methods."""

    def conv(self, name: str, shape: tuple[int, int, int], transposed: bool = False) -> None:
        c_in, c_out, k = shape
        first, second = (c_in, c_out) if transposed else (c_out, c_in)
        self[f"{name}.weight"], self[f"{name}.bias"] = [first, second, k, k], [c_out]

    def pconv_blocks(self, prefix: str, start: int, depth: int, c: int, ratio: int) -> int:
        for i in range(start, start + depth):
            self.conv(f"{prefix}.{i}.branch.0.pconv", (c // ratio, c // ratio, 3))
            self.conv(f"{prefix}.{i}.branch.1", (c, 4 * c, 1))
            self.conv(f"{prefix}.{i}.branch.3", (4 * c, c, 1))
        return start + depth

    def dwconv_blocks(self, prefix: str, start: int, depth: int, c: int) -> int:
        for i in range(start, start + depth):
            self[f"{prefix}.{i}.branch.0.weight"] = [c, 1, 3, 3]
            self[f"{prefix}.{i}.branch.0.bias"] = [c]
            self.conv(f"{prefix}.{i}.branch.1", (c, 2 * c, 1))
            self.conv(f"{prefix}.{i}.branch.3", (2 * c, c, 1))
        return start + depth


def _image_transforms(names: _Names, d: Dims) -> None:
    if d.four_stages:
        channels = (3, *d.widths, d.latent)
        for i in (1, 2, 3, 4):
            names.conv(f"g_a.g_a_down{i}", (channels[i - 1], channels[i], 2))
            names.pconv_blocks(f"g_a.g_a_chunk{i}", 0, d.depths[i - 1], channels[i], d.ratio)
            depth = d.synthesis_depths[i - 1]
            names.pconv_blocks(f"g_s.g_s_chunk{i}", 0, depth, channels[i], d.ratio)
            names.conv(f"g_s.g_s_up{i}", (channels[i], channels[i - 1], 2), transposed=True)
        return
    at, c_in = 0, 3
    for c, depth in zip(d.widths, d.depths, strict=True):
        names.conv(f"g_a.branch.{at}", (c_in, c, 4 if c_in == 3 else 2))
        at, c_in = names.pconv_blocks("g_a.branch", at + 1, depth, c, d.ratio), c
    names.conv(f"g_a.branch.{at}", (c_in, d.latent, 2))
    at, c_in = 0, d.latent
    for c, depth in zip(d.widths[::-1], d.synthesis_depths[::-1], strict=True):
        names.conv(f"g_s.branch.{at}", (c_in, c, 2), transposed=True)
        at, c_in = names.pconv_blocks("g_s.branch", at + 1, depth, c, d.ratio), c
    names.conv(f"g_s.branch.{at}", (c_in, 3, 4), transposed=True)


def _hyper_transforms(names: _Names, d: Dims) -> None:
    dot = "" if d.four_stages else ".branch"
    (outer, inner), middle = d.hyper_depths, d.hyper_middle
    at = names.pconv_blocks(f"h_a{dot}", 0, outer, d.latent, d.ratio)
    names.conv(f"h_a{dot}.{at}", (d.latent, middle, 2))
    at = names.pconv_blocks(f"h_a{dot}", at + 1, inner, middle, d.ratio)
    names.conv(f"h_a{dot}.{at}", (middle, d.hyper, 2))
    names.conv(f"h_s{dot}.0", (d.hyper, middle, 2), transposed=True)
    at = names.pconv_blocks(f"h_s{dot}", 1, inner, middle, d.ratio)
    names.conv(f"h_s{dot}.{at}", (middle, 2 * d.latent, 2), transposed=True)
    names.pconv_blocks(f"h_s{dot}", at + 1, outer, 2 * d.latent, d.ratio)


def _context_model(names: _Names, d: Dims) -> None:
    two, three = 2 * d.latent, 3 * d.latent
    for tag, steps, depth in zip(("s1", "s2", "s3"), (1, 3, 6), d.adaptor_depths, strict=True):
        for i in range(steps):
            if depth:
                names.dwconv_blocks(f"y_spatial_prior_adaptor_list_{tag}.{i}", 0, depth, three)
            else:
                names.conv(f"y_spatial_prior_adaptor_list_{tag}.{i}", (three, three, 1))
    for tag, (before, after, last) in (("s1_s2", d.shared), ("s3", d.shared_s3)):
        net = f"y_spatial_prior_{tag}"
        names.dwconv_blocks(f"{net}.branch_1", 0, before, three)
        at = names.dwconv_blocks(f"{net}.branch_2", 0, after, three)
        names.conv(f"{net}.branch_2.{at}", (three, two, 1))
        names.dwconv_blocks(f"{net}.branch_2", at + 1, last, two)
    names.update({f"adaptive_params_list.{i}": [1, three, 1, 1] for i in range(10)})
    if d.attention:
        for tag in ("s1", "s2", "s3"):
            for part in ("q", "k", "v", "out"):
                names.conv(f"attn_{tag}.conv_{part}", (two, two, 1))
    for i in range(2):
        names.conv(f"context_net.{i}", (two, two, 1))


def layout_for(variant: str, **changes: Any) -> dict[str, Any]:
    """A published layout ("base", "large", "phi" or "1b"), or one with some Dims changed."""
    dims = replace(PUBLISHED[variant], **changes)
    names = _Names()
    names.update({k: [1, dims.hyper, 1, 1] for k in ("means_hyper", "scales_hyper")})
    _image_transforms(names, dims)
    _hyper_transforms(names, dims)
    _context_model(names, dims)
    return {"variant": variant, "parameters": dict(names)}


def reduced_layout(variant: str, **changes: Any) -> dict[str, Any]:
    """A variant at its published depths and a tenth of its widths: a second on one core.

    2 × latent = 64 context channels: 4 heads of 16 fit, the published 32 would be of 2.
    """
    narrow = {"latent": 32, "hyper": 16, "hyper_middle": 24, "widths": (8, 16, 24)}
    return layout_for(variant, **{**narrow, **changes})
