"""Verification of a dataset against its manifest: every byte, offset and image."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from hpcm_scale.data.images import BadImage, decode_whole
from hpcm_scale.data.remote import is_remote, sha256_of
from hpcm_scale.data.shard import Shard
from hpcm_scale.data.shards import read_manifest, scan_tar
from hpcm_scale.errors import DataError


@dataclass(frozen=True)
class Problem:
    """A fault of a shard, or of one sample of it."""

    shard: str
    sample: str | None
    cause: str

    def __str__(self) -> str:
        return f"{self.shard}: " + (f"{self.sample}: " if self.sample else "") + self.cause


def verify(root: str, jobs: int | None = None, console: Console | None = None) -> list[Problem]:
    """Differences between a dataset and its manifest, and images that cannot be decoded.

    Raises:
        DataError: if there is no readable manifest, or `root` is a URL.
    """
    if is_remote(root):
        raise DataError(f"{root}: verify reads a folder; a remote shard is verified when fetched")
    manifest = read_manifest(root)
    folder = Path(root)
    problems = []
    for table in manifest.tables:
        with (folder / table.name).open("rb") as stream:
            if sha256_of(stream) != table.sha256:
                problems.append(Problem(table.name, None, "its SHA-256 is not the manifest's"))
    with ProcessPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        checks = pool.map(_check_shard, [folder] * len(manifest.shards), manifest.shards)
        for found in track(
            checks, "verifying", len(manifest.shards), console=console, disable=console is None
        ):
            problems += found
    listed = {shard.path for shard in manifest.shards}
    for path in sorted(folder.rglob("*.tar")):
        name = path.relative_to(folder).as_posix()
        if name not in listed:
            problems.append(Problem(name, None, "is not in the manifest"))
    return problems


def _check_shard(folder: Path, shard: Shard) -> list[Problem]:
    path = folder / shard.path
    problems: list[Problem] = []
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            digest = sha256_of(stream)
    except OSError as error:
        return [Problem(shard.path, None, f"cannot be read ({error.strerror})")]
    if size != shard.bytes:
        problems.append(
            Problem(shard.path, None, f"has {size} bytes, the manifest says {shard.bytes}")
        )
    elif digest != shard.sha256:
        problems.append(Problem(shard.path, None, "its SHA-256 is not the manifest's"))
    try:
        members = {member.name: member for member in scan_tar(path)}
    except DataError as error:
        return [*problems, Problem(shard.path, None, str(error))]
    with path.open("rb") as stream:
        for row, name in enumerate(shard.names):
            place = (int(shard.offsets[row]), int(shard.sizes[row]))
            if name not in members:
                problems.append(Problem(shard.path, name, "is not in the tar"))
            elif place != (members[name].offset, members[name].size):
                problems.append(Problem(shard.path, name, "is elsewhere than the manifest says"))
            else:
                stream.seek(place[0])
                problems += _check_image(shard, row, stream.read(place[1]))
    return problems


def _check_image(shard: Shard, row: int, data: bytes) -> list[Problem]:
    name = shard.names[row]
    try:
        _, height, width = decode_whole(data).shape
    except BadImage as error:
        return [Problem(shard.path, name, f"cannot be decoded ({error})")]
    if (width, height) != (shard.widths[row], shard.heights[row]):
        said = f"{shard.widths[row]}x{shard.heights[row]}"
        return [Problem(shard.path, name, f"is {width}x{height}, the manifest says {said}")]
    return []
