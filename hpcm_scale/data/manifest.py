"""manifest.json: the contents of a dataset, shard by shard, with the place of every sample."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from hpcm_scale.errors import DataError

NAME = "manifest.json"
FORMAT = "hpcm_scale dataset 1"
COLUMNS = ("offsets", "sizes", "widths", "heights")


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
    names: list[str]
    """Member names of the images, such as a-0123.png."""
    offsets: np.ndarray
    """(samples,) int64: where each image's bytes begin in the tar."""
    sizes: np.ndarray
    """(samples,) int64: their number."""
    widths: np.ndarray
    heights: np.ndarray
    crcs: np.ndarray | None = None
    """(samples,) int64: CRC-32 of each image's bytes; None in manifests of version 0.1."""

    @property
    def samples(self) -> int:
        return len(self.names)

    @property
    def pixels(self) -> int:
        return int((self.widths * self.heights).sum())

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "split": self.split,
            "samples": self.samples,
            "bytes": self.bytes,
            "pixels": self.pixels,
            "sha256": self.sha256,
            "names": self.names,
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
            path, split, names = entry["path"], entry["split"], entry["names"]
            present = [*COLUMNS, "crcs"] if "crcs" in entry else COLUMNS
            columns = {c: np.fromstring(entry[c], dtype=np.int64, sep=" ") for c in present}
            shard = cls(path, split, int(entry["bytes"]), entry["sha256"], names, **columns)
            typed = all(isinstance(text, str) for text in (path, split, shard.sha256, *names))
            complete = typed and int(entry["samples"]) == len(names) and 0 <= shard.bytes < 2**62
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{source}: a shard's entry is damaged ({error!r})") from None
        if not complete or any(len(column) != len(names) for column in columns.values()):
            raise DataError(f"{source}: the columns of shard {path!r} differ in length or type")
        if not is_safe(path):
            raise DataError(f"{source}: shard path {path!r} leads outside the dataset")
        if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise DataError(f"{source}: the sha256 of shard {path!r} is not one")
        room = shard.bytes - shard.offsets  # compared without a sum, which could overflow
        if any((c < 0).any() for c in columns.values()) or (shard.sizes > room).any():
            raise DataError(f"{source}: shard {path!r} has samples outside its {shard.bytes} bytes")
        return shard


def _text(column: np.ndarray) -> str:
    return " ".join(map(str, column.tolist()))


@dataclass(frozen=True)
class Split:
    """The shards of one split. Samples are numbered along them: the dataset-wide sample ids."""

    name: str
    shards: tuple[Shard, ...]
    first: np.ndarray
    """(shards,) int64: the first sample of each shard."""
    samples: int

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard of a sample and its row there."""
        shard = int(np.searchsorted(self.first, sample, side="right")) - 1
        return shard, sample - int(self.first[shard])

    def smallest_side(self) -> int:
        """The least width or height of any image, in pixels."""
        return min(int(min(s.widths.min(), s.heights.min())) for s in self.shards)

    def fingerprint(self) -> int:
        """A number that differs between splits whose samples or their numbering differ."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.sha256} {shard.samples}\n".encode() + shard.offsets.tobytes())
        return int.from_bytes(digest.digest()[:6])  # 48 bits: exact even as a float in JSON


@dataclass(frozen=True)
class Manifest:
    """A dataset: its shards and where they came from."""

    shards: tuple[Shard, ...]
    made_by: str
    """The verb that made it: pack or index."""
    recipe: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    """Origin of the images: a digest of the files' names and sizes."""
    report: dict[str, Any] = field(default_factory=dict)
    """Counts of samples, and of skipped files by reason."""

    def splits(self) -> list[str]:
        return sorted({shard.split for shard in self.shards})

    def split(self, name: str, where: str) -> Split:
        """The split called `name` of the dataset at `where`.

        Raises:
            DataError: if it has no samples.
        """
        shards = tuple(s for s in self.shards if s.split == name and s.samples)
        if not shards:
            have = ", ".join(self.splits()) or "none"
            raise DataError(f"{where}: the split {name!r} is empty (the dataset has: {have})")
        sizes = np.array([shard.samples for shard in shards], dtype=np.int64)
        return Split(name, shards, np.cumsum(sizes) - sizes, int(sizes.sum()))

    def totals(self) -> dict[str, dict[str, int]]:
        """Shards, samples, bytes and pixels of each split."""
        totals = {}
        for name in self.splits():
            shards = [shard for shard in self.shards if shard.split == name]
            totals[name] = {
                "shards": len(shards),
                "samples": sum(shard.samples for shard in shards),
                "bytes": sum(shard.bytes for shard in shards),
                "pixels": sum(shard.pixels for shard in shards),
            }
        return totals

    def dumps(self) -> str:
        """The text of manifest.json: one line for each shard, so that a diff names the shard."""
        head = {
            "format": FORMAT,
            "made_by": self.made_by,
            "versions": {
                name: version(name) for name in ("hpcm-scale", "pillow", "webdataset", "numpy")
            },
            "recipe": self.recipe,
            "source": self.source,
            "report": self.report,
            "totals": self.totals(),
        }
        shards = ",\n".join(json.dumps(s.to_json(), separators=(",", ":")) for s in self.shards)
        return json.dumps(head, indent=1)[:-2] + ',\n "shards": [\n' + shards + "\n]}\n"

    @classmethod
    def loads(cls, text: str | bytes, source: str) -> "Manifest":
        """The manifest in the text of manifest.json.

        Raises:
            DataError: if `text` is not a manifest.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: is not JSON ({error})") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise DataError(f"{source}: is not a manifest of this program ({FORMAT!r})")
        entries = values.get("shards")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{source}: has no list of shards")
        shards = tuple(Shard.from_json(entry, source) for entry in entries)
        if len({shard.path for shard in shards}) != len(shards):
            raise DataError(f"{source}: lists a shard twice")
        rest: dict[str, Any] = {k: values.get(k) for k in ("recipe", "source", "report")}
        if not all(isinstance(value, dict) for value in rest.values()):
            raise DataError(f"{source}: recipe, source or report is missing")
        return cls(shards, str(values.get("made_by")), **rest)
