"""The weights in a run's checkpoint, put together one parameter at a time from pieces on disk.

DeepSpeed flattens the fp32 master weights and spreads them over ranks. Its stages 1 and 2 cut the
concatenation of all parameters into one partition a rank, so a parameter may cross a cut; stage 3
cuts every parameter into equal parts, the last one padded, and a rank's parts follow each other in
sub-groups. Sub-groups that live on disks have files of their own (nvme_state.py). A moving
average kept by the run is stored by the run itself, as named pieces.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hpcm_scale.errors import CheckpointError

EMA_FILES = "ema-*.safetensors"
_OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
# DeepSpeed's keys: in the optimizer's state, and of the shapes in the model's.
_PARTITIONS, _SUB_GROUPS = "single_partition_of_fp32_groups", "fp32_flat_groups"

MASTER = "fp32"
"""The master weights in the file of a swapped sub-group."""

Shapes = Mapping[str, tuple[int, ...]]


def swapped_file(rank: int, group: int) -> str:
    """The file in a checkpoint of a sub-group of a rank that lives on disk between steps."""
    return f"swapped-{rank:05d}-{group:05d}.safetensors"


class PiecedWeights(Mapping[str, Tensor]):
    """Parameters by name; each is put together when it is asked for.

    Args:
        shapes: of the parameters.
        pieces: of each, 1-D, one after the other: views of mapped files.
    """

    def __init__(self, shapes: Shapes, pieces: Mapping[str, Sequence[Tensor]]) -> None:
        self._shapes, self._pieces = shapes, pieces

    def __getitem__(self, name: str) -> Tensor:
        pieces = self._pieces[name]
        whole = pieces[0] if len(pieces) == 1 else torch.cat([*pieces])
        return whole.view(self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def master_weights(folder: Path) -> PiecedWeights:
    """The fp32 master weights of a DeepSpeed checkpoint of any ZeRO stage and number of ranks.

    DeepSpeed's files are pickles, which run what is in them: read only checkpoints of runs that
    you trust. This is the one place where such files are read.

    Raises:
        CheckpointError: if files are missing, cannot be read or do not hold all of the weights.
    """
    ranks = sorted(
        (int(match[1]), path)
        for path in folder.glob("*_optim_states.pt")
        if (match := _OPTIMIZER_FILE.fullmatch(path.name))
    )
    model_files = sorted(folder.glob("*mp_rank_00_model_states.pt"))
    if not model_files:
        raise CheckpointError(f"{folder}: holds no weights (no *_model_states.pt)")
    if not ranks:  # stage 0: every rank has all, and one writes it
        return _stage_0(_load(model_files[0]), folder)
    # As in the shards of stage 3, rank 0's file names the parameters in the order of flattening.
    model_file = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    model = _load(model_file if model_file in model_files else model_files[0])
    states = [_load(path)["optimizer_state_dict"] for _, path in ranks]
    try:
        _check_ranks([rank for rank, _ in ranks], states[0]["partition_count"], folder)
        groups = [
            {name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]
        ]
        return _from_partitions(states, groups, folder)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{folder}: is not laid out as DeepSpeed does ({reason})") from None


def _check_ranks(ranks: list[int], saved_by: int | list[int], folder: Path) -> None:
    """
    Raises:
        CheckpointError: unless there is a file of every rank.
    """
    world = max(saved_by) if isinstance(saved_by, list) else saved_by
    if ranks != list(range(world)):
        raise CheckpointError(
            f"{folder}: has the optimizer states of ranks {ranks}, was saved by {world}; "
            "copy the missing files"
        )


def _from_partitions(
    states: list[dict[str, Any]], groups: list[dict[str, tuple[int, ...]]], folder: Path
) -> PiecedWeights:
    """The weights that the optimizer states of all ranks hold, in any stage that spreads them.

    Args:
        states: by rank.
        groups: shapes by name, of each of the optimizer's groups of parameters.
    """
    shapes = {name: shape for group in groups for name, shape in group.items()}
    if _SUB_GROUPS in states[0]:
        flats = [
            [
                flat if flat.numel() else _swapped(folder / swapped_file(rank, i))
                for i, flat in enumerate(state[_SUB_GROUPS])
            ]
            for rank, state in enumerate(states)
        ]
        return PiecedWeights(shapes, _stage_3(flats, shapes, folder))
    paddings = states[0].get("param_alignment_paddings") or [None] * len(groups)
    pieces: dict[str, list[Tensor]] = {}
    for i, group in enumerate(groups):
        partitions = [state[_PARTITIONS][i] for state in states]
        pieces |= _stages_1_and_2(partitions, group, paddings[i], folder)
    return PiecedWeights(shapes, pieces)


def ema_weights(folder: Path, shapes: Shapes) -> PiecedWeights:
    """The moving average of the weights that a checkpoint holds, for a network of `shapes`.

    Raises:
        CheckpointError: if it holds none, or files or pieces are missing or overlap.
    """
    files = sorted(folder.glob(EMA_FILES))
    if not files:
        raise CheckpointError(f"{folder}: holds no moving average; use --weights raw")
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                starts = json.loads(metadata["starts"])
                for name in stored.keys():  # noqa: SIM118  not a mapping
                    found.setdefault(name, []).append((starts[name], stored.get_tensor(name)))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path}: cannot be read ({reason})") from None
    pieces = {}
    for name, parts in found.items():
        parts.sort(key=lambda part: part[0])
        end = 0
        for start, piece in parts:
            if start != end:
                raise CheckpointError(
                    f"{folder}: {EMA_FILES}: the next piece of {name} after its {end} values "
                    f"starts at {start}; a file is missing or of another checkpoint"
                )
            end += piece.numel()
        if name in shapes and end != prod(shapes[name]):
            raise CheckpointError(
                f"{folder}: {EMA_FILES}: {name} has {end} values of {prod(shapes[name])}; "
                "a file is missing"
            )
        pieces[name] = [piece for _, piece in parts]
    return PiecedWeights(shapes, pieces)


def _stage_0(state: dict[str, Any], folder: Path) -> PiecedWeights:
    """The weights of a state that holds all of them."""
    weights = state["module"]
    groups = (state["optimizer"] or {}).get("fp32_groups")
    if groups is not None:  # bf16: the network's are rounded, the optimizer's are not
        masters = [tensor for group in groups for tensor in group]
        if [t.shape for t in masters] != [t.shape for t in weights.values()]:
            raise CheckpointError(f"{folder}: master weights and network do not fit each other")
        weights = dict(zip(weights, masters, strict=True))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return PiecedWeights(shapes, {n: [t.detach().reshape(-1)] for n, t in weights.items()})


def _stages_1_and_2(
    partitions: list[Tensor],
    shapes: Shapes,
    paddings: Sequence[int] | None,
    folder: Path,
) -> dict[str, list[Tensor]]:
    """Pieces of one group of parameters from the partition of every rank."""
    pieces, at = {}, 0
    for i, (name, shape) in enumerate(shapes.items()):
        pieces[name] = _cut(partitions, at, at + prod(shape), folder)
        at += prod(shape) + (paddings[i] if paddings else 0)
    return pieces


def _stage_3(
    sub_groups: list[list[Tensor]], shapes: Shapes, folder: Path
) -> dict[str, list[Tensor]]:
    """Pieces of all parameters from the sub-groups of every rank."""
    world = len(sub_groups)
    pieces, at = {}, 0
    for name, shape in shapes.items():
        left, share = prod(shape), ceil(prod(shape) / world)
        pieces[name] = []
        for flat in sub_groups:
            pieces[name] += _cut(flat, at, at + min(share, left), folder)
            left -= min(share, left)
        at += share
    if at != sum(group.numel() for group in sub_groups[0]):
        raise CheckpointError(f"{folder}: its weights do not fill its partitions; it is damaged")
    return pieces


def _cut(flats: Sequence[Tensor], start: int, stop: int, folder: Path) -> list[Tensor]:
    """Views of start...stop of the concatenation of `flats`."""
    views, at = [], 0
    for flat in flats:
        low, high = max(start - at, 0), min(stop - at, flat.numel())
        if low < high:
            views.append(flat.detach()[low:high])
        at += flat.numel()
    if at < stop:
        raise CheckpointError(f"{folder}: its partitions are shorter than its weights")
    return views


def _swapped(path: Path) -> Tensor:
    """The master weights of a sub-group from its own file, mapped."""
    try:
        with safe_open(path, framework="pt") as stored:
            return stored.get_tensor(MASTER)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _load(path: Path) -> Any:
    """A pickle of DeepSpeed's, its tensors mapped from the file."""
    try:
        mapped = zipfile.is_zipfile(path)  # torch's older format cannot be
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        ImportError,
        UnpicklingError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read ({reason})") from None
