"""safetensors files written one tensor after the other, so that a model need not fit in memory.

The header, which names every tensor's place, comes first and is written again at the end: metadata
may then hold what is known only when all tensors have passed, of the same length as before.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

_CODES = {"float32": "F32", "float16": "F16", "int32": "I32", "int8": "I8"}
"""safetensors' names of the types that model files hold."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor whose values are not known yet."""

    shape: tuple[int, ...]
    dtype: str
    """float32, float16, int32 or int8."""

    @property
    def nbytes(self) -> int:
        return np.dtype(self.dtype).itemsize * prod(self.shape)


class TensorWriter:
    """One safetensors file: `write` every tensor of `specs` in their order, then leave the block.

    Args:
        path: the file, which is overwritten.
        specs: name -> what it will be, in the order of writing.
        metadata: the header's text fields.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        self._due = iter(specs.items())
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(_header(specs, metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and next(self._due, None) is not None:
            raise ValueError(f"{self._file.name}: closed before its last tensor")

    def write(self, name: str, array: np.ndarray) -> None:
        """Add the values of the tensor that is next."""
        due, spec = next(self._due)
        if (name, array.shape, array.dtype.name) != (due, spec.shape, spec.dtype):
            raise ValueError(f"{name} {array.dtype} {array.shape} where {due} {spec} was due")
        self._file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def rewrite_metadata(
    path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> None:
    """Replace the text fields of a file of `specs` by others that take no more room."""
    with open(path, "r+b") as file:
        room = int.from_bytes(file.read(8), "little")
        header = _header(specs, metadata, room)
        if len(header) != 8 + room:
            raise ValueError(f"{path}: {len(header)} bytes of header for a room of {8 + room}")
        file.seek(0)
        file.write(header)


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], room: int = 0) -> bytes:
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, spec in specs.items():
        end = start + spec.nbytes
        fields[name] = {
            "dtype": _CODES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text = text.ljust(room)
    text += b" " * (-len(text) % 8)  # the tensors begin aligned, as readers map them
    return len(text).to_bytes(8, "little") + text


def split(specs: Mapping[str, TensorSpec], limit: int | None) -> list[dict[str, TensorSpec]]:
    """The tensors of each file, in order, when none but a single tensor may exceed `limit` bytes.

    None puts all in one.
    """
    shards: list[dict[str, TensorSpec]] = [{}]
    used = 0
    for name, spec in specs.items():
        if limit is not None and shards[-1] and used + spec.nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = spec
        used += spec.nbytes
    return shards


@contextmanager
def placed_beside(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`: its files move there if the block ends well.

    They are renamed in the order of their names, over those of the same name.

    Raises:
        OSError: if the folder of `target` cannot be made or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(
        tempfile.mkdtemp(prefix=f".{target.stem[:64]}.", suffix=".tmp", dir=target.parent)
    )
    try:
        yield folder
        for path in sorted(folder.iterdir()):
            path.replace(target.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
