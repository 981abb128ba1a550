"""Chunks, the restartable units of a pack, and the shards made of them."""

import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.writer import TarWriter

from hpcm_scale.data.manifest import Manifest
from hpcm_scale.data.prepare import HASH_DIGITS, Prepared, Skipped
from hpcm_scale.data.recipe import Recipe
from hpcm_scale.data.remote import sha256_of
from hpcm_scale.data.shard import Shard
from hpcm_scale.data.shards import scan_tar
from hpcm_scale.errors import DataError
from hpcm_scale.files import atomic_path, atomic_write

SPLITS = ("train", "val")
CHUNKS = "chunks"
"""Folder of the unfinished pack inside the dataset's."""
REPORT = "report.json"


@dataclass(frozen=True)
class PackedSample:
    """A packed sample: what the manifest needs, and where it came from."""

    file: str
    name: str
    """Name of its member in the tar."""
    hash: str
    width: int
    height: int


@dataclass(frozen=True)
class ShardSource:
    """The part of a shard that comes from one chunk's tar: the whole of it, or some rows."""

    tar: Path
    rows: list[PackedSample]
    whole: bool


class ChunkStore:
    """The folder of packed chunks: chunk n is NNNNNN.train.tar, NNNNNN.val.tar and NNNNNN.json."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def tar(self, number: int, split: str) -> Path:
        return self.folder / f"{number:06d}.{split}.tar"

    def done(self, number: int) -> bool:
        """Tell whether a chunk is packed.

        Raises:
            DataError: if it is, but from another source or by another recipe.
        """
        if not self._record(number).exists():
            return False
        self.read(number)
        return True

    def read(self, number: int) -> tuple[dict[str, list[PackedSample]], list[Skipped]]:
        """The samples of each split, and the files skipped."""
        path = self._record(number)
        try:
            record = json.loads(path.read_text())
            same = record["identity"] == self.identity
            rows = {split: [PackedSample(**row) for row in record[split]] for split in SPLITS}
            skipped = [Skipped(**entry) for entry in record["skipped"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is damaged ({error}); remove it") from None
        if not same:
            raise DataError(
                f"{self.folder}: holds an unfinished pack of another source or recipe; "
                "choose another folder or remove it"
            )
        return rows, skipped

    def write(self, number: int, results: Iterator[Prepared | Skipped]) -> None:
        """Pack one chunk: its tars first, its record last."""
        record: dict[str, Any] = {"identity": self.identity, "skipped": []}
        record |= {split: [] for split in SPLITS}
        with (
            _tar_writer(self.tar(number, "train")) as train,
            _tar_writer(self.tar(number, "val")) as val,
        ):
            for result in results:
                if isinstance(result, Skipped):
                    record["skipped"].append(vars(result))
                    continue
                split, tar = ("val", val) if result.val else ("train", train)
                tar.write({"__key__": result.key, result.suffix: result.data})
                name = f"{result.key}.{result.suffix}"
                row = PackedSample(result.file, name, result.hash, result.width, result.height)
                record[split].append(vars(row))
        atomic_write(self._record(number), json.dumps(record))

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def finish(
    out: Path,
    chunks: ChunkStore,
    count: int,
    recipe: Recipe,
    ignored: int,
    pool: Executor,
    identity: str,
    before: Manifest | None = None,
) -> Manifest:
    """Make the shards and the manifest of `count` packed chunks, and remove the chunks.

    A train shard is what one chunk has for training. Validation is small: its shards collect from
    several chunks. Of images with the same pixels only the first is kept, whatever their splits.

    Args:
        identity: of all source files, as the manifest records it.
        before: the dataset that is there; what it has is left out, and its shards come first.

    Raises:
        DataError: if no image is left.
    """
    for split in SPLITS:
        for leftover in (out / split).glob(".*.tmp.tar"):  # of a run killed in this very place
            leftover.unlink()
    plan: dict[str, list[list[ShardSource]]] = {split: [] for split in SPLITS}
    held = {_hash_in(name) for shard in before.shards for name in shard.names} if before else set()
    seen: dict[str, str] = {}
    skipped: list[Skipped] = []
    val_room = 0.0  # bytes left in the validation shard being gathered
    for number in range(count):
        rows, failed = chunks.read(number)
        skipped += failed
        for split in SPLITS:
            kept = []
            for row in rows[split]:
                if row.hash[:HASH_DIGITS] in held:
                    continue
                if row.hash in seen:
                    detail = f"has the pixels of {seen[row.hash]}"
                    skipped.append(Skipped(row.file, "duplicate", detail))
                else:
                    seen[row.hash] = row.file
                    kept.append(row)
            if not kept:
                continue
            tar = chunks.tar(number, split)
            part = ShardSource(tar, kept, whole=len(kept) == len(rows[split]))
            if split == "train" or val_room <= 0:
                plan[split].append([])
            plan[split][-1].append(part)
            if split == "val":
                val_room = recipe.shard_mb * 1e6 if val_room <= 0 else val_room
                val_room -= tar.stat().st_size
    reasons = dict(sorted(Counter(entry.kind for entry in skipped).items()))
    if not seen and not held:
        counts = ", ".join(f"{n} {kind}" for kind, n in reasons.items())
        hint = ""
        if "tiny" in reasons and recipe.jpeg_downscale < 1:
            hint = (
                f"; it scales JPEGs by {recipe.jpeg_downscale:g} before it asks for a min_side of "
                f"{recipe.min_side}: take shards/small-photos.yaml for sets of small JPEGs"
            )
        raise DataError(f"no image passed the recipe ({counts}){hint}")
    jobs = [
        pool.submit(_make_shard, out, f"{split}/{number:06d}.tar", split, parts)
        for split in SPLITS
        for number, parts in enumerate(plan[split], _next_number(before, split))
    ]
    report = {
        "found": len(held) + len(seen) + len(skipped),
        "packed": len(held) + len(seen),
        "not_images": ignored,
        "skipped": reasons,
    }
    files = [vars(entry) for entry in skipped]
    manifest = Manifest(
        (*(before.shards if before else ()), *(job.result() for job in jobs)),
        "pack",
        recipe=recipe_record(recipe),
        source={"identity": identity},
        report=report,
    )
    atomic_write(out / REPORT, json.dumps({**report, "files": files}, indent=1))
    manifest.write(out)
    shutil.rmtree(chunks.folder)
    return manifest


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a manifest holds it."""
    return recipe.model_dump(mode="json", exclude={"source"})


def _hash_in(name: str) -> str:
    """The digits of the hash of its pixels that a member's name holds."""
    return name.rpartition(".")[0].rpartition("-")[2]


def _next_number(before: Manifest | None, split: str) -> int:
    """Number of the first shard that comes after those of a split."""
    shards = before.shards if before else ()
    return 1 + max((int(Path(s.path).stem) for s in shards if s.split == split), default=-1)


def _make_shard(out: Path, path: str, split: str, parts: list[ShardSource]) -> Shard:
    """Write one shard and describe it."""
    target = out / path
    if len(parts) == 1 and parts[0].whole:
        _link(parts[0].tar, target)
    else:
        with _tar_writer(target) as writer:
            for part in parts:
                members = {member.name: member for member in scan_tar(part.tar)}
                with part.tar.open("rb") as stream:
                    for row in part.rows:
                        stream.seek(members[row.name].offset)
                        key, _, suffix = row.name.rpartition(".")
                        data = stream.read(members[row.name].size)
                        writer.write({"__key__": key, suffix: data})
    rows = [row for part in parts for row in part.rows]
    # Read back from the file just made: the index can only say what is there.
    members = list(scan_tar(target))
    if [member.name for member in members] != [row.name for row in rows]:
        raise DataError(
            f"{target}: does not hold what its chunks recorded; remove {out} and repack"
        )
    with target.open("rb") as stream:
        digest = sha256_of(stream)
        crcs = []
        for member in members:
            stream.seek(member.offset)
            crcs.append(zlib.crc32(stream.read(member.size)))
    return Shard(
        path,
        split,
        target.stat().st_size,
        digest,
        [row.name for row in rows],
        offsets=np.array([member.offset for member in members], dtype=np.int64),
        sizes=np.array([member.size for member in members], dtype=np.int64),
        widths=np.array([row.width for row in rows], dtype=np.int64),
        heights=np.array([row.height for row in rows], dtype=np.int64),
        crcs=np.array(crcs, dtype=np.int64),
    )


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system has no hard links."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def _tar_writer(target: Path) -> Iterator[TarWriter]:
    """A tar that appears at `target` when it is whole. Its time stamps are fixed: the same images
    make the same bytes."""
    with (
        atomic_path(target) as temporary,
        temporary.open("wb") as stream,
        TarWriter(stream, encoder=False, mtime=0) as writer,
    ):
        yield writer
