"""Published HPCM checkpoints: their key names mapped onto this project's modules.

The published program names the same layers differently in its two generations (Base, Large and Phi
keep transforms as one list; 1B names every chunk), and lists a scale's adaptors in an order of its
own: the first step of S2 (and of S3) uses the last adaptor of its list, the second the first, ...
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from hpcm_scale.config import HpcmConfig, SharedNetConfig
from hpcm_scale.errors import CheckpointError, ConfigError
from hpcm_scale.models.schedule import schedule_named
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import ModelInfo, save_model

LISTED = 8
"""Tensors an error names of each kind of fault."""

_CONV = ("weight", "bias")

# What published checkpoints hold beside parameters: constants and tables, which export makes anew.
_BUFFERS = re.compile(r"scale_table|(quantized_cdf|cdf_length|offset)_[yz]|entropy_estimation\..*")


def official_names(config: HpcmConfig) -> dict[str, str]:
    """Our parameter name -> the published one, for every parameter of an HPCM of `config`."""
    names = {"z_prior.mean": "means_hyper", "z_prior.scale": "scales_hyper"}
    for ours, theirs in _modules(config):
        join = "_" if ours.endswith((".pair.expand", ".pair.project")) else "."
        names |= {f"{ours}{join}{kind}": f"{theirs}.{kind}" for kind in _CONV}
    scales = schedule_named(config.schedule).scales
    for k in range(sum(len(scale.steps) for scale in scales) - 1):
        names[f"steps.{k}.scale"] = f"adaptive_params_list.{k}"
    return names


def _modules(config: HpcmConfig) -> Iterator[tuple[str, str]]:
    """(our name, published name) of every convolution."""
    chunked = config.outer_kernel == 2  # the 1B generation of the published program
    for transform, stages in _transforms(config):
        position = 0
        for s, kinds in enumerate(stages):
            block = 0
            for i, kind in enumerate(kinds):
                ours = f"{transform}.{s}.{i}"
                if chunked and transform in ("g_a", "g_s"):
                    level = s + 1 if transform == "g_a" else len(stages) - s
                    way = "down" if transform == "g_a" else "up"
                    theirs = f"{transform}.{transform}_" + (
                        f"{way}{level}" if kind == "resample" else f"chunk{level}.{block}"
                    )
                else:
                    theirs = (
                        f"{transform}.{position}" if chunked else f"{transform}.branch.{position}"
                    )
                position += 1
                block += kind == "block"
                yield from [(ours, theirs)] if kind == "resample" else _partial(ours, theirs)
    for ours, theirs, net in (
        ("shared_s12", "y_spatial_prior_s1_s2", config.shared_s12),
        ("shared_s3", "y_spatial_prior_s3", config.shared_s3),
    ):
        yield from _shared(ours, theirs, net)
    yield from _adaptors(config)
    for s, _ in enumerate(schedule_named(config.schedule).scales[1:]):
        yield f"merges.{s}", f"context_net.{s}"
    if config.fusion == "attention":
        for s in range(3):
            for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
                yield f"fusions.{s}.{ours}", f"attn_s{s + 1}.conv_{theirs}"


def _transforms(config: HpcmConfig) -> Iterator[tuple[str, list[list[str]]]]:
    """Each transform's stages as lists of "resample" and "block"."""
    resample, block = ["resample"], ["block"]
    outer, inner = config.hyper_depths
    yield "g_a", [resample + block * depth for depth in config.analysis_depths]
    yield "g_s", [block * depth + resample for depth in reversed(config.synthesis_depths)]
    yield "h_a", [block * outer + resample, block * inner + resample]
    yield "h_s", [resample + block * inner, resample + block * outer]


def _partial(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.partial", f"{theirs}.branch.0.pconv"
    yield f"{ours}.pair.expand", f"{theirs}.branch.1"
    yield f"{ours}.pair.project", f"{theirs}.branch.3"


def _depthwise(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.depthwise", f"{theirs}.branch.0"
    yield f"{ours}.pair.expand", f"{theirs}.branch.1"
    yield f"{ours}.pair.project", f"{theirs}.branch.3"


def _shared(ours: str, theirs: str, net: SharedNetConfig) -> Iterator[tuple[str, str]]:
    for i in range(net.before):
        yield from _depthwise(f"{ours}.before.{i}", f"{theirs}.branch_1.{i}")
    for i in range(net.after + 1 + net.out):
        if i == net.after:
            yield f"{ours}.after.{i}", f"{theirs}.branch_2.{i}"
        else:
            yield from _depthwise(f"{ours}.after.{i}", f"{theirs}.branch_2.{i}")


def _adaptors(config: HpcmConfig) -> Iterator[tuple[str, str]]:
    step = 0
    for s, scale in enumerate(schedule_named(config.schedule).scales):
        count = len(scale.steps) - (s == 0)
        for i in range(count):
            # S1 has no adaptor for its first step, so its list is in order.
            theirs = f"y_spatial_prior_adaptor_list_s{s + 1}.{(i - 1) % count if s else i}"
            depth = config.adaptor_depths[s]
            if depth == 0:
                yield f"steps.{step}.adaptor", theirs
            for j in range(depth):
                yield from _depthwise(f"steps.{step}.adaptor.{j}", f"{theirs}.{j}")
            step += 1


def read_published(path: Path | str) -> dict[str, Tensor]:
    """The parameters of a published checkpoint under their own names, without its coding tables.

    Takes .safetensors, or what torch.load reads with weights_only (.pth, .pth.tar); a state dict
    itself or under "state_dict" or "model"; with or without DataParallel's "module." prefix.

    Raises:
        CheckpointError: if it cannot be read or holds no parameters.
    """
    try:
        if Path(path).suffix == ".safetensors":
            loaded = load_file(path)
        else:
            mapped = zipfile.is_zipfile(path)  # torch's older format cannot be
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in ("state_dict", "model") if key in loaded), loaded)
    state = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {
        str(name).removeprefix("module."): tensor
        for name, tensor in state
        if isinstance(tensor, Tensor)
    }
    parameters = {name: t for name, t in tensors.items() if not _BUFFERS.fullmatch(name)}
    if not parameters:
        raise CheckpointError(f"{path}: holds no parameters")
    return parameters


def to_ours(published: dict[str, Tensor], config: HpcmConfig) -> dict[str, Tensor]:
    """A published checkpoint's parameters under this project's names.

    Raises:
        CheckpointError: listing what is missing, unknown or of another shape.
    """
    names = official_names(config)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build(config).named_parameters()}
    wanted = set(names.values())
    missing = [theirs for theirs in names.values() if theirs not in published]
    extra = [theirs for theirs in published if theirs not in wanted]
    misshapen = [
        f"{theirs} {tuple(published[theirs].shape)} instead of {tuple(shapes[ours])}"
        for ours, theirs in names.items()
        if theirs in published and published[theirs].shape != shapes[ours]
    ]
    faults = [
        f"{len(items)} {kind}: {', '.join(items[:LISTED])}" + (", ..." * (len(items) > LISTED))
        for kind, items in (("missing", missing), ("unknown", extra), ("misshapen", misshapen))
        if items
    ]
    if faults:
        raise CheckpointError(f"not a checkpoint of {config.name}: {'; '.join(faults)}")
    return {ours: published[theirs] for ours, theirs in names.items()}


def import_published(
    path: Path | str, variant: str, target: Path | str, lmbda: float | None = None
) -> ModelInfo:
    """Write a published checkpoint as a model file of this project.

    Args:
        variant: base, large, phi or 1b.
        lmbda: the λ it was trained for, which the checkpoint does not say.

    Raises:
        ConfigError: for an unknown variant, or one that is not an HPCM.
        CheckpointError: if the checkpoint cannot be read or is not one of that variant.
    """
    if model_config(variant).architecture != "hpcm":
        raise ConfigError(f"--variant: {variant} was not published; use base, large, phi or 1b")
    # Published weights were trained with the published program's misplacement.
    config = model_config(variant, overrides={"hyper_alignment": "official"})
    try:
        state = to_ours(read_published(path), config)
    except CheckpointError as error:
        message = str(error)
        prefix = "" if message.startswith(str(path)) else f"{path}: "
        raise CheckpointError(prefix + message) from None
    record = {"imported_from": Path(path).name}
    return save_model(target, state, config, lmbda=lmbda, record=record)
