"""A manifest for WebDataset tars made elsewhere, such as img2dataset's, without rewriting them."""

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from hpcm_scale.data.images import BadImage, open_image
from hpcm_scale.data.manifest import NAME, Manifest, Shard
from hpcm_scale.data.prepare import Skipped
from hpcm_scale.data.remote import sha256_of
from hpcm_scale.data.shards import image_members
from hpcm_scale.errors import DataError
from hpcm_scale.files import atomic_write


def index(
    root: str | Path,
    *,
    val: str | None = None,
    min_side: int = 256,
    jobs: int | None = None,
    console: Console | None = None,
) -> Manifest:
    """Write a manifest for the tars in a folder and its subfolders.

    A sample is the first image member of each key; what lies beside it (json, txt) stays unread.

    Args:
        val: glob over the tars' paths inside `root`: those kept for validation, whole.
        min_side: images with a shorter side are not listed, nor those with an unreadable header.

    Raises:
        DataError: no tars, a damaged one, one with member names that lead out of the folder,
            none with a usable image, or a manifest that is there already.
    """
    root = Path(root)
    if (root / NAME).exists():
        raise DataError(f"{root / NAME}: is there already; remove it to index again")
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
    if not paths:
        raise DataError(f"{root}: no .tar files there")
    splits = ["val" if val is not None and fnmatch(path, val) else "train" for path in paths]
    if val is not None and "val" not in splits:
        raise DataError(f"--val: {val!r} matches none of the {len(paths)} tars")
    shards, skipped = [], Counter[str]()
    with ProcessPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        results = pool.map(
            _index_shard, [root] * len(paths), paths, splits, [min_side] * len(paths)
        )
        for shard, left_out in track(
            results, "indexing", len(paths), console=console, disable=console is None
        ):
            shards.append(shard)
            skipped.update(entry.kind for entry in left_out)
    packed = sum(shard.samples for shard in shards)
    if not packed:
        raise DataError(f"{root}: no usable image in {len(paths)} tars ({dict(skipped)})")
    report = {
        "found": packed + skipped.total(),
        "packed": packed,
        "skipped": dict(sorted(skipped.items())),
    }
    manifest = Manifest(tuple(shards), "index", recipe={"min_side": min_side}, report=report)
    atomic_write(root / NAME, manifest.dumps())
    return manifest


def _index_shard(root: Path, path: str, split: str, min_side: int) -> tuple[Shard, list[Skipped]]:
    rows: list[tuple[str, int, int, int, int]] = []
    skipped = []
    with (root / path).open("rb") as stream:
        digest = sha256_of(stream)
        for member in image_members(root / path):
            stream.seek(member.offset)
            try:
                image = open_image(stream.read(member.size))
            except BadImage as error:
                skipped.append(Skipped(f"{path}: {member.name}", error.kind, str(error)))
                continue
            if min(image.size) < min_side:
                detail = f"{image.width}x{image.height} is below {min_side} on a side"
                skipped.append(Skipped(f"{path}: {member.name}", "tiny", detail))
                continue
            rows.append((member.name, member.offset, member.size, image.width, image.height))
    columns = np.array([row[1:] for row in rows], dtype=np.int64).reshape(len(rows), 4)
    shard = Shard(
        path,
        split,
        (root / path).stat().st_size,
        digest,
        [row[0] for row in rows],
        offsets=columns[:, 0],
        sizes=columns[:, 1],
        widths=columns[:, 2],
        heights=columns[:, 3],
    )
    return shard, skipped
