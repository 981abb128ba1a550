"""A model's identity: SHA-256 of configuration, parameters and tables, as FORMAT.md defines it."""

import hashlib
from collections.abc import Mapping

import numpy as np

from hpcm_scale.entropy.tables import Tables


def identity_of(
    config: str,
    shapes: Mapping[str, tuple[int, ...]],
    hashes: Mapping[str, str],
    tables: Tables,
    arithmetic: str | None,
) -> str:
    """SHA-256 over the configuration, the hash of every parameter by name, and the tables' hash.

    After them the arithmetic as the file has it, where it has one.
    """
    sha = hashlib.sha256(config.encode())
    for name in sorted(shapes):
        sha.update(f"{name} {shapes[name]} {hashes[name]}\n".encode())
    sha.update(tables.digest().encode())
    sha.update((arithmetic or "").encode())
    return sha.hexdigest()


def hash_of(array: np.ndarray) -> str:
    """SHA-256 of an array's little-endian values, in hexadecimal."""
    little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(little_endian.data).hexdigest()
