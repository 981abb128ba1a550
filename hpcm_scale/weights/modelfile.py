"""The exported model: one safetensors file, or several and an index, that is the whole codec.

Tensors: the network's parameters under their own names, in float32, and the frozen integer coding
tables under `coding.`. Metadata: format version, model configuration, λ, training record, hash of
the tables, and the identity of it all, which bitstreams carry. Large models may be cut into
`NAME-00001-of-00003.safetensors` and so on with `NAME.safetensors.index.json` in Hugging Face's
layout; the metadata are then in the index and in the first shard.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hpcm_scale.codec.tables import Tables, build_tables
from hpcm_scale.config import ModelConfig, parse
from hpcm_scale.errors import CheckpointError, ConfigError
from hpcm_scale.models.zoo import build
from hpcm_scale.weights.tensorfile import Spec, TensorWriter, placed_beside, split

FORMAT = "hpcm_scale model 1"
"""Value of the metadata key `format`."""
TABLES_PREFIX = "coding."
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says about itself."""

    path: Path
    config: ModelConfig
    lmbda: float | None
    """The rate-distortion weight it was trained for; None if not known."""
    identity: str
    """SHA-256 of configuration, parameters and tables, in hexadecimal; files carry a prefix."""
    tables_hash: str
    """SHA-256 of the coding tables."""
    record: dict[str, Any]
    """The training record."""

    @property
    def label(self) -> str:
        """Name for people: configuration and λ, such as base-0.013."""
        return self.config.name if self.lmbda is None else f"{self.config.name}-{self.lmbda:g}"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to code pictures."""

    info: ModelInfo
    network: nn.Module
    tables: Tables


def save_model(
    path: Path | str,
    state_dict: Mapping[str, Tensor],
    model_config: ModelConfig,
    *,
    lmbda: float | None = None,
    record: Mapping[str, Any] | None = None,
    shard_size: int | None = None,
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
        check: called with the finished model before it replaces what is at `path`, which stays as
            it is if `check` raises.

    Returns:
        what the model says of itself; its path is that of the index if there are shards.

    Raises:
        CheckpointError: if parameters are missing, unknown, misshapen or not finite.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: does not end in {SUFFIX}, which model files do")
    shapes = _shapes(model_config, str(path))
    _check_names(state_dict, shapes, model_config, str(path))
    tables = build_tables(_values(state_dict, "z_prior.scale", shapes, str(path)).flatten())
    arrays = {TABLES_PREFIX + name: array for name, array in tables.arrays().items()}
    specs = {name: Spec(array.shape, array.dtype.name) for name, array in arrays.items()}
    specs |= {name: Spec(shape, "float32") for name, shape in shapes.items()}
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
                        values = _values(state_dict, tensor, shapes, str(path))
                        hashes[tensor] = _hash(values)
                        writer.write(tensor, values)
        metadata["identity"] = _identity(metadata["config"], shapes, hashes, tables)
        with TensorWriter.reopened(folder / names[0], shards[0]) as first:
            first.rewrite_metadata(metadata)
        if len(shards) > 1:
            path = path.with_name(path.stem + INDEX_SUFFIX)
            total = sum(spec.nbytes for spec in specs.values())
            index = {
                "metadata": {"total_size": total, **metadata},
                "weight_map": {
                    tensor: name for name, held in zip(names, shards, strict=True) for tensor in held
                },
            }
            (folder / path.name).write_text(json.dumps(index, indent=1) + "\n")
        if check is not None:
            check(folder / path.name)
    return _info(path, metadata)


def read_info(path: Path | str) -> ModelInfo:
    """What a model file says about itself, without reading its tensors.

    Raises:
        CheckpointError: if it is missing, damaged or not a model file.
    """
    path = Path(path)
    with _opened(path) as stored:
        return _info(path, stored.metadata() or {})


def load_model(path: Path | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model file: parameters stay mapped from the file until moved or written to.

    Raises:
        CheckpointError: if it is missing or not a model file, or if its contents are not those
            its identity was computed from.
    """
    path = Path(path)
    with _opened(path) as stored:
        metadata = stored.metadata() or {}
        info = _info(path, metadata)
        names = list(stored.keys())
        tensors = {n: stored.get_tensor(n) for n in names if not n.startswith(TABLES_PREFIX)}
        arrays = {
            n.removeprefix(TABLES_PREFIX): stored.get_tensor(n).numpy()
            for n in names
            if n.startswith(TABLES_PREFIX)
        }
    try:
        tables = Tables.from_arrays(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if len(tables.z.ranges) != info.config.hyper_channels:
        raise CheckpointError(
            f"{path}: has coding tables for {len(tables.z.ranges)} hyper channels, its network has "
            f"{info.config.hyper_channels}; export the model again"
        )
    _check_parameters(tensors, info.config, str(path))
    # The text as stored: a field added to ModelConfig later must not change the identity.
    identity = _identity(metadata["config"], tensors, tables)
    if identity != info.identity:
        raise CheckpointError(
            f"{path}: is damaged: its contents have identity {identity[:8]}, "
            f"it says {info.identity[:8]}; copy or export it again"
        )
    with init_empty_weights():
        network = build(info.config)
    # Assigned, not copied: on the CPU the parameters stay pages of the file. Putting them in
    # channels_last order would copy them all, and gives the same results no faster.
    network.load_state_dict(tensors, assign=True)
    network = network.to(device)
    return LoadedModel(info, network.eval().requires_grad_(False), tables)


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such model file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a safetensors file ({error})") from None


def _info(path: Path, metadata: Mapping[str, str]) -> ModelInfo:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is not a model of this version (format {metadata.get('format')!r}, expected "
            f"{FORMAT!r}); make one with hpcm-scale export"
        )
    try:
        return ModelInfo(
            path=path,
            config=parse(ModelConfig, json.loads(metadata["config"]), f"{path}: config"),
            lmbda=json.loads(metadata["lmbda"]),
            identity=metadata["identity"],
            tables_hash=metadata["tables_hash"],
            record=json.loads(metadata["record"]),
        )
    except (KeyError, json.JSONDecodeError, ConfigError) as error:
        raise CheckpointError(f"{path}: has damaged metadata ({error})") from None


def _check_parameters(tensors: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    try:
        with init_empty_weights():
            wanted = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    except ConfigError as error:
        raise CheckpointError(f"{source}: holds no network that can be built ({error})") from None
    missing, unknown = sorted(wanted.keys() - tensors), sorted(tensors.keys() - wanted)
    if missing or unknown:
        raise CheckpointError(
            f"{source}: parameters do not fit the model {config.name}: "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, "
                f"the model {config.name} needs {tuple(shape)}"
            )


def _identity(config: str, tensors: Mapping[str, Tensor], tables: Tables) -> str:
    """SHA-256 over the configuration, the hash of every parameter by name, and the tables' hash."""
    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter's lock
        hashes = list(pool.map(_tensor_hash, (tensors[name] for name in names)))
    sha = hashlib.sha256(config.encode())
    for name, digest in zip(names, hashes, strict=True):
        sha.update(f"{name} {tuple(tensors[name].shape)} {digest}\n".encode())
    sha.update(tables.digest().encode())
    return sha.hexdigest()


def _tensor_hash(tensor: Tensor) -> str:
    array = tensor.numpy()
    return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<"))).hexdigest()
