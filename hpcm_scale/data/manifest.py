"""The manifest of a dataset: its shards, and the name, place, size and checksum of every sample.

Of small datasets manifest.json holds all. Of large ones it lists the shards, and what there is one
of for each sample lies beside it in the files of a `SampleTable`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hpcm_scale.data.sample_table import LETTER, ROW, SampleTable, TableFile, write_parts
from hpcm_scale.data.shard import FIELDS, Shard
from hpcm_scale.errors import DataError
from hpcm_scale.files import atomic_write

NAME = "manifest.json"
FORMAT, FORMAT_WITH_TABLES = "hpcm_scale dataset 1", "hpcm_scale dataset 2"
TABLES_FROM = 100_000
"""Samples from which on they have tables of their own: beyond, JSON takes a second and more to
read, and every rank a copy."""
TABLE_FILES = "manifest-*.npy"


@dataclass(frozen=True)
class Split:
    """The shards of one split. Samples are numbered along them: the dataset-wide sample ids."""

    name: str
    shards: tuple[Shard, ...]
    first: np.ndarray
    """(shards,) int64: the first sample of each shard."""
    samples: int
    recorded: int | None = None
    """The fingerprint that the manifest records; None where it is to be computed."""

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard of a sample and its row there."""
        shard = int(np.searchsorted(self.first, sample, side="right")) - 1
        return shard, sample - int(self.first[shard])

    def smallest_side(self) -> int:
        """The least width or height of any image, in pixels."""
        return min(shard.least_side for shard in self.shards)

    def fingerprint(self) -> int:
        """A number that differs between splits whose samples or their numbering differ."""
        if self.recorded is not None:
            return self.recorded
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
    fingerprints: dict[str, int] = field(default_factory=dict)
    """Those of the splits, where the manifest records them."""
    tables: tuple[TableFile, ...] = ()
    """The files that hold the samples, where manifest.json does not."""

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
        recorded = self.fingerprints.get(name)
        return Split(name, shards, np.cumsum(sizes) - sizes, int(sizes.sum()), recorded)

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

    def write(self, folder: Path) -> None:
        """Write manifest.json, and the tables it refers to where the samples are many.

        What they replace is deleted last; a run that has mapped it keeps it.
        """
        tables: tuple[TableFile, ...] = ()
        if sum(shard.samples for shard in self.shards) >= TABLES_FROM:
            tables = self._write_tables(folder)
        atomic_write(folder / NAME, self.dumps(tables))
        kept = {table.name for table in tables}
        for path in folder.glob(TABLE_FILES):
            if path.name not in kept:
                path.unlink()

    def dumps(self, tables: Sequence[TableFile] = ()) -> str:
        """The text of manifest.json: one line for each shard, so that a diff names the shard.

        Args:
            tables: the files that hold the samples; without them the text does.
        """
        head = {
            "format": FORMAT_WITH_TABLES if tables else FORMAT,
            "made_by": self.made_by,
            "versions": {
                name: version(name) for name in ("hpcm-scale", "pillow", "webdataset", "numpy")
            },
            "recipe": self.recipe,
            "source": self.source,
            "report": self.report,
            "totals": self.totals(),
        }
        if tables:
            head |= {
                "fingerprints": self._fingerprints(),
                "crcs": all(shard.crcs is not None for shard in self.shards),
                "tables": [table.to_json() for table in tables],
            }
        entries = (shard.to_json(with_samples=not tables) for shard in self.shards)
        shards = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        return json.dumps(head, indent=1)[:-2] + ',\n "shards": [\n' + shards + "\n]}\n"

    @classmethod
    def loads(
        cls,
        text: str | bytes,
        source: str,
        open_table: Callable[[TableFile, np.dtype], np.ndarray] | None = None,
    ) -> "Manifest":
        """The manifest in the text of manifest.json.

        Args:
            open_table: gives the array of a file that holds samples.

        Raises:
            DataError: if `text` is not a manifest, or it refers to files and nothing opens them.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: is not JSON ({error})") from None
        form = values.get("format") if isinstance(values, dict) else None
        if form not in (FORMAT, FORMAT_WITH_TABLES):
            raise DataError(f"{source}: is not a manifest of this program ({FORMAT!r})")
        entries = values.get("shards")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{source}: has no list of shards")
        rest: dict[str, Any] = {k: values.get(k) for k in ("recipe", "source", "report")}
        if not all(isinstance(value, dict) for value in rest.values()):
            raise DataError(f"{source}: recipe, source or report is missing")
        if form == FORMAT:
            shards = tuple(Shard.from_json(entry, source) for entry in entries)
        else:
            if open_table is None:
                raise DataError(f"{source}: its samples are in files that cannot be opened here")
            found = _table_files(values, source)
            table = SampleTable(open_table(found[0], ROW), open_table(found[1], LETTER))
            shards = _shards_of(entries, source, table, values.get("crcs") is True)
            rest |= {"fingerprints": _recorded_fingerprints(values, source), "tables": found}
        if len({shard.path for shard in shards}) != len(shards):
            raise DataError(f"{source}: lists a shard twice")
        return cls(shards, str(values.get("made_by")), **rest)

    def _fingerprints(self) -> dict[str, int]:
        """Fingerprints of the splits that have samples."""
        return {
            name: self.split(name, "").fingerprint()
            for name, total in self.totals().items()
            if total["samples"]
        }

    def _write_tables(self, folder: Path) -> tuple[TableFile, ...]:
        """Write the rows and names of all samples, a shard's at a time."""
        # Of these samples alone: until manifest.json refers to them, the old ones stay.
        key = json.dumps(self._fingerprints()).encode()
        stem = f"manifest-{hashlib.sha256(key).hexdigest()[:12]}"

        def rows() -> Iterator[np.ndarray]:
            end = 0
            for shard in self.shards:
                part = np.zeros(shard.samples, ROW)
                for column, name in FIELDS.items():
                    part[name] = getattr(shard, column)
                if shard.crcs is not None:
                    part["crc"] = shard.crcs
                lengths = [len(name.encode()) for name in shard.names]
                part["name_end"] = end + np.cumsum(lengths, dtype=np.int64)
                end += sum(lengths)
                yield part

        def letters() -> Iterator[np.ndarray]:
            for shard in self.shards:
                yield np.frombuffer("".join(shard.names).encode(), LETTER)

        samples = sum(shard.samples for shard in self.shards)
        count = sum(len(part) for part in letters())
        return (
            write_parts(folder / f"{stem}.npy", ROW, samples, rows()),
            write_parts(folder / f"{stem}-names.npy", LETTER, count, letters()),
        )


def _shards_of(
    entries: list[dict[str, Any]], source: str, table: SampleTable, with_crcs: bool
) -> tuple[Shard, ...]:
    """The shards whose samples are the rows of a table, one after the other."""
    shards: list[Shard] = []
    start = 0
    for entry in entries:
        shards.append(Shard.from_table(entry, source, table, start, with_crcs))
        start += shards[-1].samples
    table.require(start, source)
    return tuple(shards)


def _table_files(values: dict[str, Any], source: str) -> tuple[TableFile, TableFile]:
    """The files of rows and of names that a manifest refers to."""
    entries = values.get("tables")
    if not isinstance(entries, list) or len(entries) != 2:
        raise DataError(f"{source}: does not name its two tables")
    return TableFile.from_json(entries[0], source), TableFile.from_json(entries[1], source)


def _recorded_fingerprints(values: dict[str, Any], source: str) -> dict[str, int]:
    found = values.get("fingerprints")
    if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
        raise DataError(f"{source}: its fingerprints are missing or damaged")
    return found
