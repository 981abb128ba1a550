"""Parameters and arithmetic of a network by part, counted from the built model."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hpcm_scale.config import ModelConfig
from hpcm_scale.models.codec_network import CodecNetwork, noise_shapes
from hpcm_scale.models.hpcm import HPCM
from hpcm_scale.models.zoo import build

PARTS = ("transform", "hyper", "context")
"""Parts that parameters and arithmetic are counted by."""
SIDE = 256
"""Side of the image whose arithmetic is counted, in pixels."""


def part_of(name: str) -> str:
    """The part of a parameter or module, from its qualified name."""
    head = name.split(".")[0]
    parts = {"g_a": "transform", "g_s": "transform", "gains": "transform"}
    parts |= {"h_a": "hyper", "h_s": "hyper", "z_prior": "hyper"}
    return parts.get(head, "context")


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Parameters by part, and "total"."""
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, parameter in network.named_parameters():
        # ZeRO-3 leaves a partitioned parameter empty and keeps its size beside it.
        counts[part_of(name)] += getattr(parameter, "ds_numel", parameter.numel())
    return {"total": sum(counts.values())} | counts


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of products and convolutions: two to a multiply-accumulate."""

    forward: float
    """Operations of one forward pass of one image."""
    train: float
    """Those of its forward and backward: each product of the forward has two in the backward.

    Three times the forward, because torch's counter takes a depthwise weight gradient for a dense
    one. What activation checkpointing recomputes is not counted.
    """
    modules: dict[str, float]
    """Forward, by qualified module name; a module called by another counts in both."""


def count_flops(config: ModelConfig, side: int = SIDE) -> Flops:
    """Count one square image of `side` pixels by torch's FLOP counter, on the meta device.

    Bias additions, activations, resampling of grids and the density are not counted, as is usual.
    """
    # Building a network draws from torch's generator, which the caller keeps as it was.
    with torch.device("meta"), torch.random.fork_rng([]):
        network = build(config)
        x = torch.empty(1, 3, side, side).contiguous(memory_format=torch.channels_last)
        y, z = noise_shapes(config, 1, side, side)
        noise: tuple[Tensor, Tensor] = (torch.empty(y), torch.empty(z))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, noise)
    total = float(counter.get_total_flops())
    root = type(network).__name__
    modules = {
        name.removeprefix(f"{root}."): float(sum(counts.values()))
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(f"{root}.")
    }
    return Flops(total, 3 * total, modules)


def _context_rows(network: CodecNetwork) -> dict[str, str]:
    """The row that each module of the context model, "steps.3" say, belongs to."""
    if not isinstance(network, HPCM):
        rows = {}
        for name, child in network.named_children():
            if part_of(name) == "context":
                # A list has no forward of its own, its members do.
                lists = isinstance(child, nn.ModuleList)
                members = [f"{name}.{i}" for i in range(len(child))] if lists else [name]
                rows |= dict.fromkeys(members, name.replace("_", " "))
        return rows
    rows = {"shared_s12": "shared net S1, S2", "shared_s3": "shared net S3"}
    scales = network.partition.step_scales
    for s in range(network.scales):
        members = [f"steps.{k}" for k, scale in enumerate(scales[1:]) if scale == s]
        members += [f"fusions.{s}"] + ([f"merges.{s - 1}"] if s else [])
        rows |= dict.fromkeys(members, f"context S{s + 1}")
    return rows


@dataclass(frozen=True)
class Share:
    """One part of a network in the complexity table."""

    part: str
    parameters: int
    kmacs_per_pixel: float


def complexity_table(config: ModelConfig) -> list[Share]:
    """Parameters and thousands of multiply-accumulates per pixel, part by part, then their sum.

    A shared net's parameters have a row of their own; its arithmetic counts in the scales that
    call it. What the published program computes although nothing reads it has a row too: with it
    the sum is what the papers count.
    """
    # Building a network draws from torch's generator, which the caller keeps as it was.
    with torch.device("meta"), torch.random.fork_rng([]):
        network = build(config)
    flops = count_flops(config, SIDE)
    rows = {"g_a": "g_a", "g_s": "g_s", "h_a": "h_a", "h_s": "h_s", "z_prior": "z prior"}
    rows |= {} if network.gains is None else {"gains": "gains"}
    rows |= _context_rows(network)
    parameters, kmacs = dict.fromkeys(rows.values(), 0), dict.fromkeys(rows.values(), 0.0)
    for name, parameter in network.named_parameters():
        head, rest = name.split(".", 1)
        parameters[rows.get(head) or rows[f"{head}.{rest.split('.')[0]}"]] += parameter.numel()
    for module, row in rows.items():
        if not module.startswith("shared"):
            kmacs[row] += flops.modules.get(module, 0.0) / 2e3 / SIDE**2
    shares = [Share(row, parameters[row], kmacs[row]) for row in parameters]
    shares.append(Share("sum", sum(parameters.values()), flops.forward / 2e3 / SIDE**2))
    unread = _unread(network, flops) / 2e3 / SIDE**2
    dead = network.published_dead_parameters
    if unread or dead:
        total = shares[-1]
        shares.append(Share("only in the published program, read by nothing", dead, unread))
        shares.append(
            Share("as the papers count", total.parameters + dead, total.kmacs_per_pixel + unread)
        )
    return shares


def _unread(network: CodecNetwork, flops: Flops) -> float:
    """Operations of the published program whose results nothing reads, and which are not ours."""
    if isinstance(network, HPCM) and network.config.fusion == "attention":
        scales = network.partition.step_scales
        # The fusion after the last step. That of the last scale ran once a step but the last.
        return flops.modules[f"fusions.{scales[-1]}"] / (scales.count(scales[-1]) - 1)
    return sum(
        (times - 1) * count
        for pattern, times in network.published_calls.items()
        for module, count in flops.modules.items()
        if re.fullmatch(pattern, module)
    )
