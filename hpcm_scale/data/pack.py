"""Packing of image folders into shards and a manifest: parallel, resumable, over many hosts.

The sorted source files are cut into chunks by their sizes alone, so that every host and every later
attempt cuts them alike. A chunk becomes one tar for each split in OUT/chunks, and a record written
last: a chunk with a record is never packed again. When all chunks are there they become the shards,
and manifest.json is written last of all. So an interrupted, a resumed and a divided run end in the
same bytes as one uninterrupted run.
"""

import glob
import hashlib
import json
import logging
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpcm_scale.data.images import image_suffix
from hpcm_scale.data.manifest import NAME, Manifest
from hpcm_scale.data.pack_chunks import CHUNKS, REPORT, SPLITS, ChunkStore, finish, recipe_record
from hpcm_scale.data.packed_sources import Source, read_packed, without_packed, write_packed
from hpcm_scale.data.prepare import Prepared, Skipped, prepare
from hpcm_scale.data.recipe import Recipe
from hpcm_scale.data.shards import read_manifest
from hpcm_scale.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def pack(
    source: str | Path | None,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    part: tuple[int, int] = (1, 1),
    append: bool = False,
    strict: bool = False,
    jobs: int | None = None,
    console: Console | None = None,
) -> Manifest | None:
    """Pack a folder or glob of images into a dataset.

    Args:
        source: overrides the recipe's.
        part: (i, n), i from 1: pack every n-th chunk only, leaving the shards to a later call with
            (1, 1), which packs what is still missing.
        append: where OUT is a dataset packed by the same recipe, add shards of the images that it
            does not have by their pixels; its own shards and its split stay as they are. Files
            that it was packed from (same path, size and time) are not decoded again.
        strict: the first corrupt image is an error, instead of skipped and counted.
        jobs: processes; the cores of this machine by default.
        console: where to show progress.

    Returns:
        The manifest; None if only a part was asked for.

    Raises:
        DataError: no images, none that pass the recipe, a corrupt one with `strict`, or an OUT that
            holds something else.
        ConfigError: neither `source` nor the recipe names a source.
    """
    recipe = recipe or Recipe()
    source = source or recipe.source
    if source is None:
        raise ConfigError("source: neither the command nor the recipe says what to pack")
    out = Path(out)
    sources, ignored = _find_sources(os.path.expanduser(source), out)
    _require_names(recipe, sources)
    identity = _identity(recipe, sources)
    before, packed = None, np.empty(0, np.uint64)
    if (out / NAME).exists():
        manifest = read_manifest(str(out))
        if manifest.source.get("identity") == identity:
            return _already_packed(out, manifest, strict)
        before = _to_append_to(out, manifest, recipe, append)
        packed = read_packed(out, str(manifest.source.get("identity")))
    new = without_packed(sources, packed)
    # Of what is packed now, so that hosts which disagree about it are told.
    chunks = ChunkStore(out / CHUNKS, _identity(recipe, new))
    if (
        before is None
        and not chunks.folder.exists()
        and any((out / split).exists() for split in SPLITS)
    ):
        raise DataError(f"{out}: holds shards without a {NAME}; choose another folder")
    batches = _cut(new, int(recipe.shard_mb * 1e6))
    index, parts = part
    mine = range(index - 1, len(batches), parts)
    todo = [n for n in mine if not chunks.done(n)]
    if strict:
        for n in sorted(set(mine) - set(todo)):
            _refuse_corrupt(chunks.read(n)[1])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    jobs = jobs or len(os.sched_getaffinity(0))
    pool = ProcessPoolExecutor(jobs)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=console is None
    ) as progress:
        task = progress.add_task("packing", total=sum(len(batches[n]) for n in todo))
        try:
            results = _in_order(
                pool, _prepare_one, ((s, recipe) for n in todo for s in batches[n]), ahead=4 * jobs
            )
            for n in todo:
                chunks.write(n, _checked(results, len(batches[n]), strict, progress, task))
            if parts > 1:
                return None
            made = finish(out, chunks, len(batches), recipe, ignored, pool, identity, before)
            write_packed(out, identity, packed, new, _skipped_in(out))
            return made
        except BrokenProcessPool:
            raise DataError(
                "a packing process was killed (out of memory?); run the command again to "
                "resume from the last whole chunk, with fewer --jobs"
            ) from None
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error})") from None
        finally:
            pool.shutdown(cancel_futures=True)


def parse_part(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        ConfigError: unless 1 <= i <= n.
    """
    index, slash, parts = text.partition("/")
    if not (slash and index.isdecimal() and parts.isdecimal() and 1 <= int(index) <= int(parts)):
        raise ConfigError(f"--part: {text!r} is not i/n with i from 1 to n")
    return int(index), int(parts)


def _find_sources(source: str, out: Path) -> tuple[list[Source], int]:
    """The image files of a folder or glob, sorted by name, and the number of other files.

    Raises:
        DataError: if there is no image.
    """
    if Path(source).is_dir():
        root = Path(source)
        paths: Iterable[str] = _files_below(source)
    elif glob.has_magic(source):
        first = next(i for i, piece in enumerate(Path(source).parts) if glob.has_magic(piece))
        root = Path(*Path(source).parts[:first])
        paths = glob.iglob(source, recursive=True)
    else:
        raise DataError(f"{source}: is neither a folder nor a glob")
    found, ignored = [], 0
    own = out.absolute()
    for path in map(Path, paths):
        if own in path.absolute().parents:
            continue
        try:
            status = path.stat()
        except OSError:  # a link to nowhere, or a file just deleted
            ignored += 1
            continue
        if stat.S_ISREG(status.st_mode) and image_suffix(path.name):
            # A name that is not UTF-8 is still read by its path; its report is made printable.
            name = os.fsencode(path.relative_to(root)).decode(errors="replace")
            found.append(Source(path, name, status.st_size, status.st_mtime_ns))
        elif not stat.S_ISDIR(status.st_mode):
            ignored += 1
    if not found:
        raise DataError(f"{source}: no images there ({ignored} other files)")
    return sorted(found, key=lambda item: item.name), ignored


def _files_below(root: str) -> Iterator[str]:
    """The files of a folder and its subfolders, linked ones too, each folder once.

    Links are followed once all real folders are done, so that a file's name inside the source is
    that without a link wherever it has one.
    """
    waiting, links, seen = [root], deque[str](), set[tuple[int, int]]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.popleft()
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue  # it may not be read, or is gone
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if not entry.is_dir():
                yield entry.path
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                waiting.append(entry.path)


def _require_names(recipe: Recipe, sources: list[Source]) -> None:
    missing = set(recipe.val.names) - {source.path.stem for source in sources}
    if missing:
        raise DataError(f"val.names: no image is called {', '.join(sorted(missing))}")


def _identity(recipe: Recipe, sources: list[Source]) -> str:
    """A digest of what decides the outcome: the recipe, and the names and sizes of the files."""
    content = recipe.model_dump_json(exclude={"source"})
    digest = hashlib.sha256(content.encode())
    for source in sources:
        digest.update(f"{source.name}\0{source.size}\n".encode())
    return digest.hexdigest()


def _to_append_to(out: Path, manifest: Manifest, recipe: Recipe, append: bool) -> Manifest:
    """The dataset that is there, to be added to.

    Raises:
        DataError: if it may not be, or another recipe made it.
    """
    if manifest.made_by != "pack" or manifest.recipe != recipe_record(recipe):
        raise DataError(
            f"{out}: already holds a dataset of another recipe; choose another folder or remove it"
        )
    if not append:
        raise DataError(
            f"{out}: already holds a dataset of another source; --append adds the images that it "
            "does not have, or choose another folder or remove it"
        )
    return manifest


def _already_packed(out: Path, manifest: Manifest, strict: bool) -> Manifest:
    corrupt = manifest.report.get("skipped", {}).get("corrupt", 0)
    if strict and corrupt:
        raise DataError(f"{out}: {corrupt} corrupt images were skipped, see {REPORT} (--strict)")
    shutil.rmtree(out / CHUNKS, ignore_errors=True)
    return manifest


def _skipped_in(out: Path) -> set[str]:
    """Names of the files of the last pack whose pixels are not in the dataset."""
    entries = json.loads((out / REPORT).read_text())["files"]
    return {entry["file"] for entry in entries if entry["kind"] != "duplicate"}


def _cut(sources: list[Source], chunk_bytes: int) -> list[list[Source]]:
    """Consecutive files, as many as make up `chunk_bytes`."""
    batches: list[list[Source]] = [[]]
    size = 0
    for source in sources:
        if size >= chunk_bytes:
            batches.append([])
            size = 0
        batches[-1].append(source)
        size += source.size
    return batches


def _in_order(
    pool: Executor, function: Callable[..., Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """`function` of each item, in order, no more than `ahead` results held at a time."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, *item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _prepare_one(source: Source, recipe: Recipe) -> Prepared | Skipped:
    return prepare(source.path, source.name, recipe)


def _checked(
    results: Iterator[Prepared | Skipped], count: int, strict: bool, progress: Progress, task: Any
) -> Iterator[Prepared | Skipped]:
    for _ in range(count):
        result = next(results)
        if isinstance(result, Skipped) and result.kind == "corrupt":
            if strict:
                _refuse_corrupt([result])
            log.warning("%s: skipped, %s", result.file, result.detail)
        progress.advance(task)
        yield result


def _refuse_corrupt(skipped: Iterable[Skipped]) -> None:
    for entry in skipped:
        if entry.kind == "corrupt":
            raise DataError(f"{entry.file}: {entry.detail} (--strict)")
