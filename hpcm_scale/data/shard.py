"""One tar of a dataset, as the manifest describes it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from hpcm_scale.data.sample_table import SampleTable
from hpcm_scale.errors import DataError

COLUMNS = ("offsets", "sizes", "widths", "heights")
FIELDS = {"offsets": "offset", "sizes": "size", "widths": "width", "heights": "height"}
"""Names of the columns in a table's row; that of `crcs` is crc."""


def is_safe(name: str) -> bool:
    """Tell whether a path from a tar or a manifest stays inside the folder it is unpacked in."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name


@dataclass(frozen=True)
class Shard:
    """One tar. Row i of the columns is the shard's i-th sample."""

    path: str
    """Relative to the manifest's folder."""
    split: str
    bytes: int
    sha256: str
    names: Sequence[str]
    """Member names of the images, such as a-0123.png."""
    offsets: np.ndarray
    """(samples,) integers, as all columns: where each image's bytes begin in the tar."""
    sizes: np.ndarray
    """Their number."""
    widths: np.ndarray
    heights: np.ndarray
    crcs: np.ndarray | None = None
    """CRC-32 of each image's bytes; None in manifests of version 0.1."""
    recorded: tuple[int, int] | None = field(default=None, kw_only=True)
    """Pixels and least side as recorded, for which no column has to be read."""

    @property
    def samples(self) -> int:
        return len(self.names)

    @property
    def pixels(self) -> int:
        if self.recorded is not None:
            return self.recorded[0]
        return int((self.widths.astype(np.int64) * self.heights).sum())

    @property
    def least_side(self) -> int:
        """The least width or height of any image, in pixels; 2³¹ of an empty shard."""
        if self.recorded is not None:
            return self.recorded[1]
        return int(np.minimum(self.widths, self.heights).min(initial=2**31))

    def require_inside(self, source: str) -> None:
        """Check that the samples lie inside the shard.

        Raises:
            DataError: naming `source` and the shard.
        """
        sizes = self.sizes.astype(np.int64)
        room = self.bytes - self.offsets  # compared without a sum, which could overflow
        if (self.offsets < 0).any() or (sizes < 0).any() or (sizes > room).any():
            raise DataError(
                f"{source}: shard {self.path!r} has samples outside its {self.bytes} bytes"
            )

    def _head(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "split": self.split,
            "samples": self.samples,
            "bytes": self.bytes,
            "pixels": self.pixels,
            "sha256": self.sha256,
        }

    def to_json(self, with_samples: bool = True) -> dict[str, Any]:
        """The shard's entry of manifest.json, with or without its samples."""
        if not with_samples:
            return {**self._head(), "least_side": self.least_side}
        return {
            **self._head(),
            "names": list(self.names),
            # Numbers as one text a column: a million samples load in half the time of JSON lists.
            **{column: _text(getattr(self, column)) for column in COLUMNS},
            **({} if self.crcs is None else {"crcs": _text(self.crcs)}),
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any], source: str) -> "Shard":
        """The shard of an entry of manifest.json.

        Raises:
            DataError: if the entry is not what `to_json` writes, or points outside the shard.
        """
        try:
            names = entry["names"]
            present = [*COLUMNS, "crcs"] if "crcs" in entry else COLUMNS
            columns: dict[str, Any] = {
                c: np.fromstring(entry[c], dtype=np.int64, sep=" ") for c in present
            }
            typed = all(isinstance(name, str) for name in names)
            complete = typed and int(entry["samples"]) == len(names)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{source}: a shard's entry is damaged ({error!r})") from None
        shard = cls(*_checked_head(entry, source), names, **columns)
        if not complete or any(len(column) != len(names) for column in columns.values()):
            raise DataError(
                f"{source}: the columns of shard {shard.path!r} differ in length or type"
            )
        if any((column < 0).any() for column in columns.values()):
            raise DataError(
                f"{source}: shard {shard.path!r} has samples outside its {shard.bytes} bytes"
            )
        shard.require_inside(source)
        return shard

    @classmethod
    def from_table(
        cls, entry: dict[str, Any], source: str, table: SampleTable, start: int, with_crcs: bool
    ) -> "Shard":
        """The shard of an entry whose samples are rows of a table, from `start` on.

        Its rows are looked at when the shard is read from, by `require_inside`.

        Raises:
            DataError: if the entry is damaged.
        """
        try:
            recorded = int(entry["pixels"]), int(entry["least_side"])
            stop = start + int(entry["samples"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{source}: a shard's entry is damaged ({error!r})") from None
        rows = table.rows[start:stop]
        if stop < start or len(rows) != stop - start:
            raise DataError(f"{source}: its tables end before its last shard; copy them together")
        columns = {column: rows[name] for column, name in FIELDS.items()}
        return cls(
            *_checked_head(entry, source),
            table.names(start, stop),
            **columns,
            crcs=rows["crc"] if with_crcs else None,
            recorded=recorded,
        )


def _checked_head(entry: dict[str, Any], source: str) -> tuple[str, str, int, str]:
    """Path, split, bytes and SHA-256 of a shard's entry.

    Raises:
        DataError: if they are not such, or the path leads out of the dataset.
    """
    try:
        path, split, sha256 = (entry[key] for key in ("path", "split", "sha256"))
        size = int(entry["bytes"])
        if not all(isinstance(text, str) for text in (path, split, sha256)):
            raise TypeError("path, split and sha256 are no texts")
        if not 0 <= size < 2**62:
            raise ValueError(f"{size} bytes")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{source}: a shard's entry is damaged ({error!r})") from None
    if not is_safe(path):
        raise DataError(f"{source}: shard path {path!r} leads outside the dataset")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise DataError(f"{source}: the sha256 of shard {path!r} is not one")
    return path, split, size, sha256


def _text(column: np.ndarray) -> str:
    return " ".join(map(str, column.tolist()))
