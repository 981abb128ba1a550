"""The exported model: one safetensors file, or several and an index, that is the whole codec.

Tensors: the network's parameters under their own names, in float32 or, rounded, float16 or bytes
(`byte_weights.py`), and the frozen integer coding tables under `coding.`. Metadata:
`model_info.py`. Large models may be cut into
`NAME-00001-of-00003.safetensors` and so on with `NAME.safetensors.index.json` in Hugging Face's
layout; the metadata are then in the index and in the first shard.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.config import ModelConfig
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.parameters import byte_weights, calibrated, check_exact
from hpcm_scale.entropy.tables import Tables
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.weights.byte_weights import UNIT_SUFFIX, whole_weights
from hpcm_scale.weights.identity import hash_of, identity_of
from hpcm_scale.weights.model_info import FORMAT, ModelInfo, info_of
from hpcm_scale.weights.parameters import (
    Extent,
    InBytes,
    Rounded,
    build_on_meta,
    check_names,
    parameter_shapes,
    shapes_of,
    values_of,
)
from hpcm_scale.weights.safetensors_writer import (
    TensorSpec,
    TensorWriter,
    placed_beside,
    rewrite_metadata,
    split,
)
from hpcm_scale.weights.stored_model import (
    INDEX_SUFFIX,
    SUFFIX,
    TABLES_PREFIX,
    read_stored,
    stored_tensors,
    tables_of,
)


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
    in_bytes: bool = False,
    check: Callable[[Path], None] | None = None,
    arithmetic: Arithmetic | None = None,
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
        in_bytes: round to float16, and the weights that the exact path takes as bytes to those; the
            network is in memory for it.
        check: called with the finished model before it replaces what is at `path`, which stays as
            it is if `check` raises.
        arithmetic: of the exact entropy path; None for what suits the parameters.

    Returns:
        what the model says of itself; its path is that of the index if there are shards.

    Raises:
        CheckpointError: if parameters are missing, unknown, misshapen or not finite, or so large
            that exact arithmetic could overflow; or if no weights are bytes and `in_bytes`.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: does not end in {SUFFIX}, which model files do")
    shapes = parameter_shapes(model_config, str(path))
    check_names(state_dict, shapes, model_config, str(path))
    rounded = Rounded(state_dict) if half or in_bytes else state_dict
    in_int8: set[str] = set()
    if in_bytes:
        tensors = {n: torch.from_numpy(values_of(rounded, n, shapes, str(path))) for n in shapes}
        arithmetic = _checked_arithmetic(model_config, tensors, str(path), arithmetic)
        if model_config.architecture == "hpcm":
            in_int8 = byte_weights(shapes, arithmetic)
        if not in_int8:
            raise CheckpointError(
                f"{path}: {model_config.name} has no weights that coding takes as bytes; HPCM "
                "networks have; round it to float16 instead"
            )
    parameters = InBytes(rounded, in_int8)
    tables = _tables_for(parameters, model_config, shapes, str(path))
    arrays = {TABLES_PREFIX + name: array for name, array in tables.arrays().items()}
    specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()}
    dtype = "float16" if half or in_bytes else "float32"
    for name, shape in shapes.items():
        specs[name] = TensorSpec(shape, "int8" if name in in_int8 else dtype)
        if name in in_int8:
            specs[name + UNIT_SUFFIX] = TensorSpec(shape[:1], "float32")
    # The widest types first: all lie at multiples of their size, as mapped tensors must.
    specs = dict(sorted(specs.items(), key=lambda spec: -np.dtype(spec[1].dtype).itemsize))
    metadata = {
        "format": FORMAT,
        "config": model_config.model_dump_json(),
        "lmbda": json.dumps(lmbda),
        "record": json.dumps(dict(record or {})),
        "tables_hash": tables.digest(),
        "identity": "0" * 64,  # known once every parameter has been written
        # So is which layers are wide: no more than there are parameters.
        "arithmetic": json.dumps(Arithmetic(2, frozenset(shapes)).to_json()),
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
                        continue
                    if tensor.endswith(UNIT_SUFFIX):
                        writer.write(tensor, parameters.units(tensor.removesuffix(UNIT_SUFFIX)))
                        continue
                    values = values_of(parameters, tensor, shapes, str(path))
                    hashes[tensor] = hash_of(values)
                    if tensor in in_int8:
                        writer.write(tensor, parameters.integers(tensor))
                    else:
                        writer.write(tensor, values.astype(dtype, copy=False))
        written: dict[str, Tensor] = {}
        for name in names:
            written |= stored_tensors(folder / name, "pt")
        stored = _parameters(whole_weights(written, path))
        arithmetic = _checked_arithmetic(model_config, stored, str(path), arithmetic)
        del metadata["arithmetic"]
        if arithmetic != ORIGINAL:
            metadata["arithmetic"] = json.dumps(arithmetic.to_json())
        metadata["identity"] = identity_of(
            metadata["config"], shapes, hashes, tables, metadata.get("arithmetic")
        )
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


def load_model(path: Path | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model file, or one in shards by its index.

    Parameters stay mapped from the file until moved or written to.

    Raises:
        CheckpointError: if it is missing or not a model file, its configuration needs more
            parameters than it has, they are not finite, or its contents are not those its
            identity was computed from.
    """
    path = Path(path)
    stored = read_stored(path, "pt")
    info = stored.info
    tensors = _parameters(stored.tensors)
    tables = tables_of(_tables(stored.tensors, path), path)
    stored.check_tables(tables)
    network = build_on_meta(info.config, str(path), Extent.of(tensors))
    shapes = shapes_of(network)
    check_names(tensors, shapes, info.config, str(path))
    for name in shapes:
        if tensors[name].dtype != torch.float32:
            raise CheckpointError(f"{path}: {name} is not in float32; export the model again")

    def hashed(name: str) -> str:
        return hash_of(values_of(tensors, name, shapes, str(path)))

    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter's lock
        hashes = dict(zip(shapes, pool.map(hashed, shapes), strict=True))
    stored.check_identity(shapes, hashes, tables)
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


def _checked_arithmetic(
    config: ModelConfig,
    parameters: Mapping[str, Tensor],
    source: str,
    arithmetic: Arithmetic | None,
) -> Arithmetic:
    """The arithmetic for parameters as a file holds them, if none is given.

    Raises:
        CheckpointError: if it could overflow.
    """
    network = build_on_meta(config, source)
    network.load_state_dict(parameters, assign=True)
    try:
        if arithmetic is None:
            return calibrated(network)
        check_exact(network, arithmetic)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return arithmetic


def _parameters(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's parameters among a file's tensors, in float32."""
    return {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in stored.items()
        if not name.startswith(TABLES_PREFIX)
    }


def _tables(stored: Mapping[str, Tensor], path: Path) -> dict[str, np.ndarray]:
    """The arrays of coding tables among a file's tensors."""
    arrays = {}
    for name, tensor in stored.items():
        if name.startswith(TABLES_PREFIX):
            if tensor.dtype == torch.bfloat16:  # NumPy has no such type
                raise CheckpointError(
                    f"{path}: {name} is in {tensor.dtype}, not float32 or int32; "
                    "export the model again"
                )
            arrays[name] = tensor.numpy()
    return arrays
