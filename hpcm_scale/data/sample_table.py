"""Samples of a large manifest, in two NumPy files that are mapped, not read.

One has a row a sample, the other their names end to end. Mapped, 100 million samples open as fast
as ten, and the processes of a host share one copy.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.lib import format as npy

from hpcm_scale.errors import DataError
from hpcm_scale.files import atomic_path

ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("size", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("crc", "<u4"),
        ("name_end", "<i8"),
    ]
)
"""A sample: its place in the tar, its sides, its checksum, and where its name ends in the other
file."""
LETTER = np.dtype("u1")


class Names(Sequence[str]):
    """Texts that lie end to end in an array of bytes.

    Args:
        content: (bytes,) uint8.
        ends: (names,) where each text ends.
        start: where the first begins.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray, start: int) -> None:
        self._content, self._ends, self._start = content, ends, start

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else self._start
        text = self._content[max(start, 0) : int(self._ends[index])]
        return text.tobytes().decode(errors="replace")

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process go the texts, not the whole file.
        return list, (list(self),)


@dataclass(frozen=True)
class TableFile:
    """A file of the table, as manifest.json records it."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, entry: Any, source: str) -> "TableFile":
        """The entry of manifest.json.

        Raises:
            DataError: if it is not one, or leads to another folder.
        """
        try:
            found = cls(str(entry["file"]), int(entry["bytes"]), str(entry["sha256"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: the entry of a table is damaged ({error!r})") from None
        if Path(found.name).name != found.name or "\\" in found.name or found.bytes < 0:
            raise DataError(f"{source}: {found.name!r} is not a file beside it")
        return found

    def to_json(self) -> dict[str, Any]:
        return {"file": self.name, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class SampleTable:
    """The rows of all samples, shard after shard, and their names."""

    rows: np.ndarray
    """(samples,) of `ROW`."""
    letters: np.ndarray
    """(bytes,) uint8."""

    def require(self, samples: int, source: str) -> None:
        """Check that it is the table of so many samples.

        Raises:
            DataError: naming `source`.
        """
        letters = int(self.rows["name_end"][-1]) if len(self.rows) else 0
        if len(self.rows) != samples or letters != len(self.letters):
            raise DataError(
                f"{source}: its tables have {len(self.rows)} samples and {len(self.letters)} bytes "
                f"of names, it lists {samples} and {letters}; copy them together"
            )

    def names(self, start: int, stop: int) -> Names:
        """Those of some rows."""
        ends = self.rows["name_end"]
        return Names(self.letters, ends[start:stop], int(ends[start - 1]) if start else 0)


def write_parts(path: Path, dtype: np.dtype, count: int, parts: Iterable[np.ndarray]) -> TableFile:
    """Write an array of `count` entries that is given in parts as a .npy file.

    Equal arrays make equal bytes.
    """
    with atomic_path(path) as temporary:
        with temporary.open("wb") as stream:
            header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
            npy.write_array_header_1_0(stream, header)
            for part in parts:
                stream.write(np.ascontiguousarray(part, dtype).tobytes())
        with temporary.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return TableFile(path.name, path.stat().st_size, digest)


def held(content: bytes, dtype: np.dtype, source: str) -> np.ndarray:
    """The array of a .npy file's bytes; raises as `mapped`."""
    stream = BytesIO(content)
    shape = _shape(stream, dtype, source)
    if len(content) - stream.tell() != shape * dtype.itemsize:
        raise DataError(f"{source}: is truncated or has bytes to spare; copy it again")
    return np.frombuffer(content, dtype, shape, stream.tell())


def mapped(stream: Any, dtype: np.dtype, source: str) -> np.ndarray:
    """The array of a .npy file, open for reading bytes: read-only and backed by the file.

    Raises:
        DataError: naming `source`, if the file is damaged or holds another kind of array.
    """
    count = _shape(stream, dtype, source)
    if count == 0:  # nothing cannot be mapped
        return np.empty(0, dtype)
    try:
        return np.asarray(np.memmap(stream, dtype, "r", stream.tell(), (count,)))  # pyright: ignore
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: is damaged ({error}); copy it again, or index again") from None


def _shape(stream: Any, dtype: np.dtype, source: str) -> int:
    """The number of entries of a .npy file of one dimension and that dtype; reads its header."""
    try:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError("is of another version")
        shape, _, found = npy.read_array_header_1_0(stream)
        if found != dtype or len(shape) != 1:
            raise ValueError(f"holds {found} of shape {shape}")
        return shape[0]
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise DataError(f"{source}: is damaged ({error}); copy it again, or index again") from None
