"""A model file as a network in NumPy, checked as `weights/model_file.py` checks one in torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcm_scale.config.model import HpcmConfig
from hpcm_scale.entropy.tables import Tables
from hpcm_scale.errors import CheckpointError, ConfigError
from hpcm_scale.numpy_engine.network import Network
from hpcm_scale.numpy_engine.parameters import Parameters
from hpcm_scale.weights.identity import hash_of
from hpcm_scale.weights.model_info import ModelInfo
from hpcm_scale.weights.stored_model import TABLES_PREFIX, read_stored, tables_of


@dataclass(frozen=True)
class NumpyModel:
    """A model ready to code pictures without torch."""

    info: ModelInfo
    network: Network
    tables: Tables


def load_numpy(path: Path | str) -> NumpyModel:
    """Load a model file, or one in shards by its index, of architecture "hpcm".

    Raises:
        CheckpointError: if it is missing or not a model file, of another architecture, its
            parameters do not fit its configuration, are not finite or too large for exact
            arithmetic, or its contents are not those its identity was computed from.
    """
    stored = read_stored(path, "np")
    info = stored.info
    config = info.config
    if not isinstance(config, HpcmConfig) or config.architecture != "hpcm":
        raise CheckpointError(
            f"{info.path}: architecture {config.architecture} needs torch: "
            "pip install 'hpcm-scale[torch]', then --engine torch"
        )
    tables = tables_of(stored.tensors, info.path)
    stored.check_tables(tables)
    arrays = {
        name: _in_single(array, name, info.path)
        for name, array in stored.tensors.items()
        if not name.startswith(TABLES_PREFIX)
    }
    try:
        network = Network(config, Parameters(arrays, info.arithmetic))
    except CheckpointError as error:
        raise CheckpointError(f"{info.path}: {error}") from None
    except (ConfigError, ArithmeticError, ValueError) as error:
        raise CheckpointError(
            f"{info.path}: holds no network that can be built ({error})"
        ) from None
    shapes = {name: array.shape for name, array in arrays.items()}
    hashes = {name: hash_of(array) for name, array in arrays.items()}
    stored.check_identity(shapes, hashes, tables)
    return NumpyModel(info, network, tables)


def _in_single(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """A parameter in float32."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype != np.float32:
        raise CheckpointError(f"{path}: {name} is not in float32; export the model again")
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"{path}: {name} holds values that are not finite; the training diverged, "
            "export an earlier checkpoint"
        )
    return array
