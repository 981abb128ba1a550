"""Model files as they lie on disk: names, descriptions, tensors and tables, without torch.

One safetensors file, or shards and an index beside them (`model_file.py` says what is in them).
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from hpcm_scale.entropy.tables import Tables
from hpcm_scale.errors import CheckpointError, one_line
from hpcm_scale.weights.byte_weights import whole_weights
from hpcm_scale.weights.identity import identity_of
from hpcm_scale.weights.model_info import LONGEST_REASON, ModelInfo, info_of

TABLES_PREFIX = "coding."
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
BUNDLED = Path(__file__).parent.parent / "codec" / "bundled"
"""Folder of the models that come with the package."""
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class StoredModel:
    """Contents of a model file."""

    info: ModelInfo
    config: str
    """The configuration's text as stored: the identity is computed from it."""
    arithmetic: str | None
    """The arithmetic's, likewise; None where the file has none."""
    tensors: dict[str, Any]
    """Parameters and, under `coding.`, tables: torch tensors or arrays."""

    def check_tables(self, tables: Tables) -> None:
        """Raises CheckpointError unless there is a table for every hyper channel."""
        info = self.info
        if len(tables.z.ranges) != info.config.hyper_channels:
            raise CheckpointError(
                f"{info.path}: has coding tables for {len(tables.z.ranges)} hyper channels, its "
                f"network has {info.config.hyper_channels}; export the model again"
            )

    def check_identity(
        self, shapes: Mapping[str, tuple[int, ...]], hashes: Mapping[str, str], tables: Tables
    ) -> None:
        """Raises CheckpointError unless the contents are those that the identity is of.

        Args:
            shapes: of every parameter.
            hashes: `hash_of` every parameter in float32.
        """
        # The text as stored: a field added to ModelConfig later must not change the identity.
        identity = identity_of(self.config, shapes, hashes, tables, self.arithmetic)
        if identity != self.info.identity:
            raise CheckpointError(
                f"{self.info.path}: is damaged: its contents have identity {identity[:8]}, "
                f"it says {self.info.identity[:8]}; copy or export it again"
            )


def read_stored(path: Path | str, framework: Literal["pt", "np"]) -> StoredModel:
    """The contents of a model file, or of one in shards by its index.

    Args:
        framework: as for `stored_tensors`.

    Raises:
        CheckpointError: if it is missing, damaged or not a model file.
    """
    path = Path(path)
    tensors: dict[str, Any] = {}
    if _is_index(path):
        metadata, shards = _read_index(path)
        info = info_of(path, metadata)
        for shard, names in shards.items():
            tensors |= stored_tensors(shard, framework, names)
    else:
        with _opened(path) as stored:
            metadata = stored.metadata() or {}
        info = info_of(path, metadata)
        tensors = stored_tensors(path, framework)
    tensors = whole_weights(tensors, path)
    return StoredModel(info, metadata["config"], metadata.get("arithmetic"), tensors)


def read_info(path: Path | str) -> ModelInfo:
    """Self-description of a model file, or of one in shards by its index.

    Its tensors are not read.

    Raises:
        CheckpointError: if it is missing, damaged or not a model file.
    """
    path = Path(path)
    if _is_index(path):
        return info_of(path, _read_index(path)[0])
    with _opened(path) as stored:
        return info_of(path, stored.metadata() or {})


def tables_of(arrays: Mapping[str, np.ndarray], path: Path) -> Tables:
    """The coding tables among a file's arrays.

    Raises:
        CheckpointError: if they are no tables.
    """
    tables = {}
    for name, array in arrays.items():
        if name.startswith(TABLES_PREFIX):
            if array.dtype not in (np.float32, np.int32):
                raise CheckpointError(
                    f"{path}: {name} is in {array.dtype}, not float32 or int32; "
                    "export the model again"
                )
            tables[name.removeprefix(TABLES_PREFIX)] = array
    try:
        return Tables.from_arrays(tables)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def bundled_model(name: str) -> Path:
    """The file of a model that comes with the package, such as "w0.125-0.013".

    Raises:
        CheckpointError: naming those there are.
    """
    models = models_in(BUNDLED)
    if name not in models:
        raise CheckpointError(f"model: {name!r} is not one of {', '.join(sorted(models))}")
    return models[name]


def files_of(path: Path | str) -> list[Path]:
    """The files that a model consists of: itself, or its index and the shards beside it.

    Raises:
        CheckpointError: if the index is missing or damaged.
    """
    path = Path(path)
    return [path, *_read_index(path)[1]] if _is_index(path) else [path]


def models_in(folder: Path | str) -> dict[str, Path]:
    """The models of a folder, name -> model file or index, without the shards of the latter."""
    found = [*Path(folder).glob("*" + INDEX_SUFFIX), *Path(folder).glob("*" + SUFFIX)]
    return {
        model_name(path.name): path
        for path in sorted(found, key=lambda path: path.name)
        if not _SHARD.fullmatch(path.stem)
    }


def model_name(file_name: str) -> str:
    """A model file's name without what all of them end in."""
    return file_name.removesuffix(".index.json").removesuffix(SUFFIX)


def _is_index(path: Path) -> bool:
    return path.name.endswith(INDEX_SUFFIX)


def _read_index(path: Path) -> tuple[dict[str, Any], dict[Path, list[str]]]:
    """An index's metadata, and the tensors to take from each shard."""
    try:
        index = json.loads(path.read_bytes())
        metadata, weight_map = dict(index["metadata"]), dict(index["weight_map"])
        shards: dict[Path, list[str]] = {}
        for tensor, name in weight_map.items():
            # A path would lead to files that are none of the model's.
            if Path(name).name != name or not name.endswith(SUFFIX):
                raise ValueError(f"weight_map: {name!r} is not the name of a file beside it")
            shards.setdefault(path.with_name(name), []).append(tensor)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such model file") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)[:LONGEST_REASON]}"
        raise CheckpointError(f"{path}: is not the index of a model ({reason})") from None
    return metadata, shards


def stored_tensors(
    path: Path, framework: Literal["pt", "np"], names: Iterable[str] | None = None
) -> dict[str, Any]:
    """The tensors of a safetensors file by those names, or all.

    Args:
        framework: "pt" for torch tensors mapped from the file, "np" for arrays.

    Raises:
        CheckpointError: if one is lacking or of a type that the framework has not.
    """
    with _opened(path, framework) as stored:
        present = list(stored.keys())
        absent = sorted(set(names or ()) - set(present))
        if absent:
            raise CheckpointError(f"{path}: lacks {absent[0][:80]}, which its index says it holds")
        try:
            return {name: stored.get_tensor(name) for name in names or present}
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: holds tensors that cannot be read ({one_line(error)})"
            ) from None


def _opened(path: Path, framework: str = "np") -> safe_open:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such model file")
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a safetensors file ({error})") from None
