"""Checkpoints of other programs: their parameters by name, read without running what they hold.

Takes .safetensors, or what torch.load reads with weights_only (.pth, .pth.tar), in every wrapping
that trainers use. Nothing in a file is executed, and memory is bounded by the file's size.
"""

import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hpcm_scale.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Keys that trainers put a network's parameters under; earlier ones win where several hold equally
many of the parameters wanted."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""Prefixes that DataParallel, torch.compile and trainers give every name, alone or one inside
another."""
DEPTH = 4
"""Dictionaries inside each other that are looked into."""
SAFE_GLOBALS = (np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in "fdiqlILQbB?he"})
"""Plain values beside the parameters (losses as NumPy scalars) that may be read."""


class Parameters(NamedTuple):
    """The parameters of a network, found in a checkpoint."""

    tensors: dict[str, Tensor]
    """Tensors by name, prefixes removed; the checkpoint's other tensors among them."""
    where: str
    """The keys they lie under, such as "ema.model"; "" at the top."""


def read_checkpoint(path: Path | str) -> list[Parameters]:
    """Every dictionary of tensors in a checkpoint, at most `DEPTH` deep.

    Raises:
        CheckpointError: if it cannot be read, holds no tensors, or more than its size.
    """
    path = Path(path)
    found = [p for p in _tensor_dicts(_load(path), "", DEPTH) if p.tensors]
    if not found:
        raise CheckpointError(f"{path}: holds no parameters")
    size = path.stat().st_size
    for parameters in found:
        for name, tensor in parameters.tensors.items():
            # A view of few bytes can claim any shape: what reads it would fill memory.
            if tensor.numel() * tensor.element_size() > size:
                raise CheckpointError(
                    f"{path}: {name} says it is of shape {tuple(tensor.shape)}, more than the "
                    "whole file holds"
                )
    return found


def choose(found: list[Parameters], wanted: Collection[str]) -> Parameters:
    """The dictionary that holds most of the parameters `wanted`; see `WRAPPERS` for equals."""

    def rank(parameters: Parameters) -> tuple[int, int]:
        keys = parameters.where.split(".")
        order = min((WRAPPERS.index(key) for key in keys if key in WRAPPERS), default=-1)
        # An average of the weights, wherever it lies, comes after the weights themselves.
        order = len(WRAPPERS) if "ema" in keys else order
        return -len(parameters.tensors.keys() & set(wanted)), order

    return min(found, key=rank)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mapped = zipfile.is_zipfile(path)  # torch's older format cannot be
        if mapped:
            _check_archive(path)
        with torch.serialization.safe_globals([_numpy_scalar(), *SAFE_GLOBALS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(error)}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read ({reason})") from None
    # Whatever a damaged file makes its reader raise says the same: it is not a checkpoint.
    except Exception as error:  # noqa: BLE001
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        reason = f"{type(error).__name__}: {first[:100]}"
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from None


def _numpy_scalar() -> Any:
    """The function that unpickles a NumPy scalar: it builds a number from bytes, nothing else."""
    return np.float64(0).__reduce__()[0]


def _refusal(error: UnpicklingError) -> str:
    """Why a pickle was not read, without torch's advice to read it all the same."""
    text = str(error)
    for sign in ("GLOBAL ", "function ", "Unsupported global: GLOBAL "):
        _, found, rest = text.partition(sign)
        if found and rest:
            name = rest.split()[0].strip("`'\",.")
            if "." in name:
                return (
                    f"holds an object of {name[:80]} beside its tensors, which reading could "
                    "execute; only tensors and plain values are read. Ask its author for "
                    "safetensors, or save its state_dict alone"
                )
    return "cannot be read as a checkpoint (it is not a pickle of tensors)"


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that unpacks to more than its size: torch stores without packing."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(f"{path}: unpacks to {unpacked} bytes, more than torch would store")


def _tensor_dicts(value: Any, where: str, depth: int) -> Iterator[Parameters]:
    if not isinstance(value, Mapping) or depth == 0:
        return
    tensors = {
        _bare(name): tensor
        for name, tensor in value.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    yield Parameters(tensors, where)
    for key, inner in value.items():
        yield from _tensor_dicts(inner, f"{where}.{key}".lstrip("."), depth - 1)


def _bare(name: str) -> str:
    """`name` without the prefixes that wrappers put before it."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
