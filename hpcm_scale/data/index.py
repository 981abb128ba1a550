"""A manifest for WebDataset tars made elsewhere, such as img2dataset's, without rewriting them."""

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from hpcm_scale.data.images import BadImage, check_plain, open_image
from hpcm_scale.data.manifest import NAME, Manifest
from hpcm_scale.data.prepare import Skipped
from hpcm_scale.data.remote import sha256_of
from hpcm_scale.data.shard import Shard
from hpcm_scale.data.shards import scan_tar
from hpcm_scale.data.tar_samples import Choice, choose_samples
from hpcm_scale.errors import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def index(
    root: str | Path,
    *,
    val: str | None = None,
    min_side: int = 256,
    choice: Choice = Choice(),
    jobs: int | None = None,
    console: Console | None = None,
) -> Manifest:
    """Write a manifest for the tars in a folder and its subfolders.

    What lies beside the images (json, txt) stays unread. Pictures that are not listed, and damaged
    tars, are counted by the reason, of which the report has an example each.

    Args:
        val: glob over the tars' paths inside `root`: those kept for validation, whole.
        min_side: images with a shorter side are not listed.
        choice: which image of each key is the sample.

    Raises:
        DataError: no tars, none with a usable image, or a manifest that is there already.
    """
    root = Path(root)
    if (root / NAME).exists():
        raise DataError(f"{root / NAME}: is there already; remove it to index again")
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
    packed_tars = [path.relative_to(root).as_posix() for path in sorted(_compressed(root))]
    if not paths:
        hint = f", only compressed ones ({packed_tars[0]}): decompress them" if packed_tars else ""
        raise DataError(f"{root}: no .tar files there{hint}")
    splits = ["val" if val is not None and fnmatch(path, val) else "train" for path in paths]
    if val is not None and "val" not in splits:
        raise DataError(f"--val: {val!r} matches none of the {len(paths)} tars")
    shards, skipped = [], Counter[str]()
    examples: dict[str, str] = {}

    def count(left_out: Iterable[Skipped]) -> None:
        for entry in left_out:
            skipped[entry.kind] += 1
            examples.setdefault(entry.kind, f"{entry.file}: {entry.detail}")

    count(Skipped(path, "compressed tar", "decompress it to be read") for path in packed_tars)
    with ProcessPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        results = pool.map(
            partial(_index_shard, root=root, min_side=min_side, choice=choice), paths, splits
        )
        for shard, left_out in track(
            results, "indexing", len(paths), console=console, disable=console is None
        ):
            if shard is not None:
                shards.append(shard)
            count(left_out)
    packed = sum(shard.samples for shard in shards)
    if not packed:
        reasons = "; ".join(f"{n} {kind}, {examples[kind]}" for kind, n in skipped.items())
        raise DataError(f"{root}: no usable image in {len(paths)} tars ({reasons or 'none'})")
    report = {
        "found": packed + skipped.total(),
        "packed": packed,
        "skipped": dict(sorted(skipped.items())),
        "examples": examples,
    }
    recipe = {"min_side": min_side, **vars(choice)}
    manifest = Manifest(tuple(shards), "index", recipe=recipe, report=report)
    manifest.write(root)
    return manifest


def _compressed(root: Path) -> Iterator[Path]:
    """Tars that would have to be decompressed."""
    for path in root.rglob("*.t*"):
        name = path.name.lower()
        if name.endswith(COMPRESSED) and path.is_file():
            yield path


def _index_shard(
    path: str, split: str, root: Path, min_side: int, choice: Choice
) -> tuple[Shard | None, list[Skipped]]:
    """A tar's samples, and what of it is left out; None if it is damaged."""
    try:
        members, left = choose_samples(scan_tar(root / path), choice)
    except DataError as error:
        return None, [Skipped(path, "damaged tar", str(error))]
    skipped = [Skipped(f"{path}: {entry.name}", entry.kind, entry.detail) for entry in left]
    rows: list[tuple[str, int, int, int, int, int]] = []
    with (root / path).open("rb") as stream:
        digest = sha256_of(stream)
        for member in members:
            stream.seek(member.offset)
            data = stream.read(member.size)
            try:
                image = open_image(data)
                if min(image.size) < min_side:
                    detail = f"{image.width}x{image.height} is below {min_side} on a side"
                    raise BadImage("tiny", detail)
                check_plain(image)
            except BadImage as error:
                skipped.append(Skipped(f"{path}: {member.name}", error.kind, str(error)))
                continue
            place = (member.offset, member.size)
            rows.append((member.name, *place, image.width, image.height, zlib.crc32(data)))
    columns = np.array([row[1:] for row in rows], dtype=np.int64).reshape(len(rows), 5)
    size = (root / path).stat().st_size
    return Shard(path, split, size, digest, [row[0] for row in rows], *columns.T), skipped
