"""Small peers whose parameters and symbols a rule gives, the same wherever and whenever."""

import zlib
from typing import Any

import numpy as np
import torch

from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.zoo import build, model_config

CONFIGS: dict[str, dict[str, Any]] = {
    "stf": {
        "latent_channels": 24,
        "hyper_channels": 4,
        "width": 3,
        "heads": 1,
        "depths": [1, 1, 1, 1],
        "hyper_widths": [6, 5, 7],
        "net_widths": [5, 4, 6, 3],
        "support": 4,
    },
    "weconvene": {
        "latent_channels": 20,
        "hyper_channels": 3,
        "width": 4,
        "depth": 1,
        "context_width": 6,
        "net_widths": [5, 4],
    },
    "tcm": {
        "latent_channels": 10,
        "hyper_channels": 3,
        "width": 4,
        "heads": [2, 2, 2],
        "hyper_heads": 2,
        "context_width": 6,
        "context_heads": 2,
        "net_widths": [5, 4],
    },
    "dcae": {
        "latent_channels": 10,
        "hyper_channels": 3,
        "widths": [4, 4, 4],
        "heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "residual_depth": 1,
        "hyper_width": 6,
        "hyper_heads": 2,
        "hyper_depth": 2,
        "entries": 6,
        "dictionary_width": 8,
        "dictionary_heads": 2,
        "net_widths": [5, 4],
    },
    "lalic": {
        "latent_channels": 8,
        "hyper_channels": 3,
        "groups": [2, 2, 4],
        "widths": [4, 4, 4],
        "depths": [1, 1, 1],
        "hyper_width": 4,
        "hyper_depth": 2,
        "expansion": 2,
        "context_width": 6,
        "context_depth": 1,
        "context_expansion": 2,
        "least_parameter_width": 6,
    },
    "mambavc": {
        "latent_channels": 10,
        "hyper_channels": 3,
        "width": 4,
        "depths": [1, 1, 1],
        "hyper_depth": 2,
        "expansion": 2,
        "states": 3,
        "rank": 2,
        "context_width": 6,
        "context_heads": 2,
        "net_widths": [5, 4],
    },
    "mlicpp": {
        "latent_channels": 12,
        "hyper_channels": 3,
        "slices": 3,
        "width": 4,
    },
    "flic": {
        "latent_channels": 20,
        "hyper_channels": 3,
        "widths": [4, 4, 4],
        "heads": [4, 4, 4],
        "hyper_width": 8,
        "hyper_heads": 4,
        "context_depth": 2,
        "context_heads": 2,
    },
}
GRID = (2, 4)
"""Sides of z: of latents two windows of TCM's contexts and of DCAE's hyper nets."""


def raw(name: str, count: int) -> np.ndarray:
    """`count` numbers evenly spread in [-1, 1), multiples of 2^-20, that only `name` decides."""
    source = np.random.PCG64(zlib.crc32(name.encode()))  # a bit generator's stream never changes
    return (source.random_raw(count) >> np.uint64(43)).astype(np.float64) / 2**20 - 1


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights as spread out as training leaves them, gains and divisors around 1."""
    values = raw(name, int(np.prod(shape))).reshape(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "gamma":
        return (np.abs(values) / len(values) + np.eye(len(values)) / 2).astype(np.float32)
    if last in ("beta", "scale", "gamma1", "gamma2") or (last == "weight" and len(shape) == 1):
        return (1 + values / 2).astype(np.float32)
    if last == "dt_projs_bias":  # steps of about 0.02
        return (values - 4).astype(np.float32)
    if len(shape) == 1 or last.endswith("table") or last in ("entries", "A_logs"):
        return values.astype(np.float32)
    if last == "quantiles":
        return (np.sort(4 * values, axis=-1)).astype(np.float32)
    fan_in = int(np.prod(shape)) // max(shape[0], 1)
    return (values * 2 / max(fan_in, 1) ** 0.5).astype(np.float32)


def network(variant: str) -> CodecNetwork:
    """The variant's small network, its parameters by the rule but for the density of z."""
    return of_rule(variant, CONFIGS[variant])


def of_rule(variant: str, overrides: dict[str, Any]) -> CodecNetwork:
    """A network of the variant, as `network`."""
    made = build(model_config(variant, overrides=overrides))
    state = {
        name: torch.from_numpy(parameter(f"{variant}.{name}", tuple(values.shape)))
        for name, values in made.state_dict().items()
        if not name.startswith("z_prior.") or name == "z_prior.quantiles"
    }
    made.load_state_dict(state, strict=False)
    return made.eval().requires_grad_(False)


def symbols(name: str, shape: tuple[int, ...], extreme: bool = False) -> np.ndarray:
    """Symbols of up to 9, most of them small; or now and then up to 2^30."""
    values = raw(f"{name} symbols", int(np.prod(shape)))
    out = np.rint(9 * values**5)
    if extreme:
        places = np.abs(raw(f"{name} places", len(values))) < 0.1
        out[places] = np.rint(values[places] * 2**30)
    return out.astype(np.int32).reshape(shape)
