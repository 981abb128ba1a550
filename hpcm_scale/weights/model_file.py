"""The exported model: one safetensors file, or several and an index, that is the whole codec.

Tensors: the network's parameters under their own names, in float32 or, rounded to half of its
size, float16, and the frozen integer coding tables under `coding.`. Metadata: `model_info.py`.
Large models may be cut into
`NAME-00001-of-00003.safetensors` and so on with `NAME.safetensors.index.json` in Hugging Face's
layout; the metadata are then in the index and in the first shard.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hpcm_scale.config import ModelConfig
from hpcm_scale.entropy.exact.parameters import check_exact
from hpcm_scale.entropy.tables import Tables
from hpcm_scale.errors import CheckpointError, one_line
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.weights.model_info import FORMAT, LONGEST_REASON, ModelInfo, info_of
from hpcm_scale.weights.parameters import (
    Extent,
    Rounded,
    build_on_meta,
    check_names,
    hash_of,
    identity_of,
    parameter_shapes,
    values_of,
)
from hpcm_scale.weights.safetensors_writer import (
    TensorSpec,
    TensorWriter,
    placed_beside,
    rewrite_metadata,
    split,
)

TABLES_PREFIX = "coding."
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
BUNDLED = Path(__file__).parent.parent / "codec" / "bundled"
"""Folder of the models that come with the package."""
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to code pictures."""

    info: ModelInfo
    network: CodecNetwork
    tables: Tables


def save_model(
    path: Path | str,
    state_dict: Mapping[str, Tensor],
    model_config: ModelConfig,
    *,
    lmbda: float | None = None,
    record: Mapping[str, Any] | None = None,
    shard_size: int | None = None,
    half: bool = False,
    check: Callable[[Path], None] | None = None,
) -> ModelInfo:
    """Write a network's parameters as a model file, freezing its coding tables.

    Each parameter is taken from `state_dict` once, written and let go: a mapping that makes them
    when asked needs memory for one at a time.

    Args:
        path: the file to write, `.safetensors`; replaced when all is written.
        state_dict: every parameter of the network of `model_config`, on any device, in any dtype.
        lmbda: the rate-distortion weight of the training.
        record: what a reader should know of the training, as JSON values.
        shard_size: bytes of tensors a file may hold; a model of more is written as shards with an
            index beside them.
        half: round the parameters to float16, which loading turns back into float32.
        check: called with the finished model before it replaces what is at `path`, which stays as
            it is if `check` raises.

    Returns:
        what the model says of itself; its path is that of the index if there are shards.

    Raises:
        CheckpointError: if parameters are missing, unknown, misshapen or not finite, or so large
            that exact arithmetic could overflow.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: does not end in {SUFFIX}, which model files do")
    shapes = parameter_shapes(model_config, str(path))
    check_names(state_dict, shapes, model_config, str(path))
    if half:
        state_dict = Rounded(state_dict)
    tables = _tables_for(state_dict, model_config, shapes, str(path))
    arrays = {TABLES_PREFIX + name: array for name, array in tables.arrays().items()}
    specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()}
    dtype = "float16" if half else "float32"
    specs |= {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}
    metadata = {
        "format": FORMAT,
        "config": model_config.model_dump_json(),
        "lmbda": json.dumps(lmbda),
        "record": json.dumps(dict(record or {})),
        "tables_hash": tables.digest(),
        "identity": "0" * 64,  # known once every parameter has been written
    }
    shards = split(specs, shard_size)
    names = [path.name]
    if len(shards) > 1:
        names = [f"{path.stem}-{i + 1:05}-of-{len(shards):05}{SUFFIX}" for i in range(len(shards))]
    hashes = {}
    with placed_beside(path) as folder:
        for i, (name, held) in enumerate(zip(names, shards, strict=True)):
            with TensorWriter(folder / name, held, {} if i else metadata) as writer:
                for tensor in held:
                    if tensor in arrays:
                        writer.write(tensor, arrays[tensor])
                    else:
                        values = values_of(state_dict, tensor, shapes, str(path))
                        hashes[tensor] = hash_of(values)
                        writer.write(tensor, values.astype(dtype, copy=False))
        _check_exact(model_config, [folder / name for name in names], str(path))
        metadata["identity"] = identity_of(metadata["config"], shapes, hashes, tables)
        rewrite_metadata(folder / names[0], shards[0], metadata)
        if len(shards) > 1:
            path = path.with_name(path.stem + INDEX_SUFFIX)
            total = sum(spec.nbytes for spec in specs.values())
            index = {
                "metadata": {"total_size": total, **metadata},
                "weight_map": {
                    tensor: name
                    for name, held in zip(names, shards, strict=True)
                    for tensor in held
                },
            }
            (folder / path.name).write_text(json.dumps(index, indent=1) + "\n")
        if check is not None:
            check(folder / path.name)
    return info_of(path, metadata)


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


def load_model(path: Path | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model file, or one in shards by its index.

    Parameters stay mapped from the file until moved or written to.

    Raises:
        CheckpointError: if it is missing or not a model file, its configuration needs more
            parameters than it has, they are not finite, or its contents are not those its
            identity was computed from.
    """
    path = Path(path)
    if _is_index(path):
        metadata, shards = _read_index(path)
        info = info_of(path, metadata)
        stored_tensors: dict[str, Tensor] = {}
        for shard, names in shards.items():
            stored_tensors |= _stored_tensors(shard, names)
    else:
        with _opened(path) as stored:
            metadata = stored.metadata() or {}
        info = info_of(path, metadata)
        stored_tensors = _stored_tensors(path)
    tensors = _parameters(stored_tensors)
    tables = _tables(stored_tensors, path)
    if len(tables.z.ranges) != info.config.hyper_channels:
        raise CheckpointError(
            f"{path}: has coding tables for {len(tables.z.ranges)} hyper channels, its network has "
            f"{info.config.hyper_channels}; export the model again"
        )
    shapes = parameter_shapes(info.config, str(path), Extent.of(tensors))
    check_names(tensors, shapes, info.config, str(path))
    for name in shapes:
        if tensors[name].dtype != torch.float32:
            raise CheckpointError(f"{path}: {name} is not in float32; export the model again")

    def hashed(name: str) -> str:
        return hash_of(values_of(tensors, name, shapes, str(path)))

    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter's lock
        hashes = dict(zip(shapes, pool.map(hashed, shapes), strict=True))
    # The text as stored: a field added to ModelConfig later must not change the identity.
    identity = identity_of(metadata["config"], shapes, hashes, tables)
    if identity != info.identity:
        raise CheckpointError(
            f"{path}: is damaged: its contents have identity {identity[:8]}, "
            f"it says {info.identity[:8]}; copy or export it again"
        )
    network = build_on_meta(info.config, str(path))
    # Assigned, not copied: on the CPU the parameters stay pages of the file. Putting them in
    # channels_last order would copy them all, and gives the same results no faster.
    network.load_state_dict(tensors, assign=True)
    network = network.to(device)
    return LoadedModel(info, network.eval().requires_grad_(False), tables)


def _tables_for(
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> Tables:
    """The coding tables of a network: of its parameters, only those of the z prior are taken."""
    # Coding reads tables and makes none: SciPy is a tenth of what a small picture costs.
    from hpcm_scale.entropy.table_building import build_tables

    network = build_on_meta(config, source)
    prior = {
        name: torch.from_numpy(values_of(state_dict, name, shapes, source))
        for name in shapes
        if name.startswith("z_prior.")
    }
    network.load_state_dict(prior, strict=False, assign=True)
    try:
        return build_tables(network)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _check_exact(config: ModelConfig, files: list[Path], source: str) -> None:
    """Refuse parameters, as written to `files`, with which exact arithmetic could overflow."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _stored_tensors(file)
    network = build_on_meta(config, source)
    network.load_state_dict(_parameters(tensors), assign=True)
    try:
        check_exact(network)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _parameters(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's parameters among a file's tensors, in float32."""
    return {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in stored.items()
        if not name.startswith(TABLES_PREFIX)
    }


def _tables(stored: Mapping[str, Tensor], path: Path) -> Tables:
    """The coding tables among a file's tensors."""
    arrays = {}
    for name, tensor in stored.items():
        if name.startswith(TABLES_PREFIX):
            if tensor.dtype not in (torch.float32, torch.int32):
                raise CheckpointError(
                    f"{path}: {name} is in {tensor.dtype}, not float32 or int32; "
                    "export the model again"
                )
            arrays[name.removeprefix(TABLES_PREFIX)] = tensor.numpy()
    try:
        return Tables.from_arrays(arrays)
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


def _stored_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file by those names, or all, mapped from it."""
    with _opened(path) as stored:
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


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such model file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a safetensors file ({error})") from None
