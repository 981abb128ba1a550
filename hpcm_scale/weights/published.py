"""Published checkpoints become model files: which network they hold, and what of them is its."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpcm_scale.config import ModelConfig
from hpcm_scale.errors import CheckpointError, ConfigError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.checkpoint_file import Parameters, choose, read_checkpoint
from hpcm_scale.weights.hpcm_names import official_names
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.model_file import ModelInfo, save_model
from hpcm_scale.weights.peers import PEERS

LISTED = 8
"""Tensors an error names of each kind of fault."""


LAYOUTS: dict[str, PublishedLayout] = {
    "hpcm": PublishedLayout(
        official_names,
        ("base", "large", "phi", "1b"),
        re.compile(r"scale_table|(quantized_cdf|cdf_length|offset)_[yz]|entropy_estimation\..*"),
        {"hyper_alignment": "official"},
        "published weights were trained with the published program's placing of "
        "hyper-parameters (hyper_alignment: official)",
        re.compile(r"adaptive_params_list\.\d+"),
        "the published program did not train or save its step scales before 2026, so printed "
        "results of Base and Large come from scales of 1",
    ),
    **PEERS,
}
"""Layouts by architecture, of those that have published checkpoints."""


@dataclass(frozen=True)
class Imported:
    """A checkpoint that has become a model file."""

    info: ModelInfo
    notes: list[str]
    """Notes for its user: what was chosen, filled in and left out."""


def to_ours(published: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A published checkpoint's parameters under this project's names.

    Raises:
        CheckpointError: listing what is missing, unknown or of another shape.
    """
    return _match(published, config)[0]


def import_published(
    path: Path | str, variant: str | None, target: Path | str, lmbda: float | None = None
) -> Imported:
    """Write a published checkpoint as a model file of this project.

    Args:
        variant: a published variant, such as base, large, phi or 1b, or the path of a variant's
            YAML file; None finds it from the names and shapes of the tensors.
        lmbda: the λ it was trained for, which the checkpoint does not say.

    Raises:
        ConfigError: for a λ that cannot be, an unknown variant, or one that was not published.
        CheckpointError: if the checkpoint cannot be read or is not one of that variant.
    """
    if lmbda is not None and not (math.isfinite(lmbda) and lmbda > 0):
        raise ConfigError(f"--lambda: {lmbda} is not a finite number above 0")
    found = read_checkpoint(path)
    notes = []
    if variant is None:
        config = variant_of(found, str(path))
        notes.append(f"is a {config.name} by its names and shapes")
    else:
        config = _published_config(variant)
    layout = LAYOUTS[config.architecture]
    wanted = set(layout.names(config).values())
    chosen = choose(found, wanted)
    try:
        state, remarks = _match(chosen.tensors, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    equals = [p.where for p in found if p is not chosen and wanted <= p.tensors.keys()]
    if chosen.where:
        beside = f" ({', '.join(repr(w) for w in equals)} not taken)" if equals else ""
        notes.append(f"parameters from '{chosen.where}'{beside}")
    notes += remarks
    if layout.because:
        notes.append(layout.because)
    record = {"imported_from": Path(path).name, "notes": notes}
    return Imported(save_model(target, state, config, lmbda=lmbda, record=record), notes)


def _published_config(variant: str) -> ModelConfig:
    """The configuration of a published variant, as its published weights need it.

    Raises:
        ConfigError: for an unknown variant, or one that was not published.
    """
    layout = LAYOUTS.get(model_config(variant).architecture)
    if layout is None:
        raise ConfigError(f"--variant: {variant} was not published; use {_published_names()}")
    return model_config(variant, overrides=dict(layout.overrides))


def _published_names() -> str:
    return ", ".join(name for layout in LAYOUTS.values() for name in layout.variants)


def variant_of(found: list[Parameters], source: str) -> ModelConfig:
    """The published variant whose names and shapes a checkpoint has.

    Raises:
        CheckpointError: if it is none of them, naming the nearest.
    """
    nearest: tuple[int, ModelConfig, CheckpointError] | None = None
    for layout in LAYOUTS.values():
        for variant in layout.variants:
            config = _published_config(variant)
            wanted = set(layout.names(config).values())
            held = choose(found, wanted).tensors
            try:
                _match(held, config)
            except CheckpointError as error:
                shared = len(held.keys() & wanted)
                if nearest is None or shared > nearest[0]:
                    nearest = (shared, config, error)
            else:
                return config
    assert nearest is not None  # there are layouts
    raise CheckpointError(
        f"{source}: holds none of the published networks ({_published_names()}); "
        f"the nearest: {nearest[2]}"
    )


def _match(
    published: Mapping[str, Tensor], config: ModelConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters under our names, and remarks on what was filled in.

    Raises:
        CheckpointError: listing what is missing, unknown, misshapen or not floating point.
    """
    layout = LAYOUTS[config.architecture]
    names = layout.names(config)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build(config).named_parameters()}
    wanted = set(names.values())
    held = {
        layout.current_name(name): tensor
        for name, tensor in published.items()
        if not layout.ignored.fullmatch(name)
    }
    remarks = []
    if layout.unused is not None:
        unused = [name for name in held if layout.unused.fullmatch(name)]
        held = {name: tensor for name, tensor in held.items() if name not in unused}
        if unused:
            remarks.append(
                f"{len(unused)} tensors that no result depends on are left out: "
                f"{', '.join(unused[:LISTED])}" + ", ..." * (len(unused) > LISTED)
            )
    if layout.ones is not None:
        lacking = {name for name in wanted if layout.ones.fullmatch(name)}
        # All of them and nothing else: a checkpoint of before they were saved, not a damaged one.
        if lacking and wanted - held.keys() == lacking:
            theirs = {names[ours]: shape for ours, shape in shapes.items()}
            dtype = next((t.dtype for t in held.values()), torch.float32)
            held |= {name: torch.ones(theirs[name], dtype=dtype) for name in lacking}
            remarks.append(
                f"{len(lacking)} step scales are not in it and are taken as 1: {layout.ones_mean}"
            )
    faults = {
        "missing": [theirs for theirs in names.values() if theirs not in held],
        "unknown": [theirs for theirs in held if theirs not in wanted],
        "misshapen": [
            f"{theirs} {tuple(held[theirs].shape)} instead of {tuple(shapes[ours])}"
            for ours, theirs in names.items()
            if theirs in held and _sides(held[theirs].shape) != _sides(shapes[ours])
        ],
        "not floating point": [
            f"{theirs} ({str(held[theirs].dtype).removeprefix('torch.')})"
            for theirs in names.values()
            if theirs in held and not held[theirs].is_floating_point()
        ],
    }
    said = [
        f"{len(items)} {kind}: {', '.join(items[:LISTED])}" + (", ..." * (len(items) > LISTED))
        for kind, items in faults.items()
        if items
    ]
    if said:
        raise CheckpointError(f"not a checkpoint of {config.name}: {'; '.join(said)}")
    return {ours: held[theirs].reshape(shapes[ours]) for ours, theirs in names.items()}, remarks


def _sides(shape: torch.Size) -> list[int]:
    """Without sides of 1: a matrix and a 1×1 convolution are one to us."""
    return [side for side in shape if side != 1]
