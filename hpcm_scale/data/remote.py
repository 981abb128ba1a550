"""Datasets behind a URL: fetched through fsspec with retries, shards kept in a bounded cache."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Protocol, TypeVar

import fsspec
from filelock import FileLock

from hpcm_scale.errors import DataError
from hpcm_scale.files import atomic_path

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 8  # with the pauses between them, a minute
BACK_OFF = 0.5  # seconds before the second attempt; doubled before each one after it
CHUNK = 1 << 24
STALE = 3600  # seconds without a byte after which a download's process is taken for dead
# A manifest is read whole into memory: 100 million samples stay well below this.
MANIFEST_LIMIT = 16 << 30


def is_remote(root: str) -> bool:
    return "://" in root


def read_remote(url: str) -> bytes:
    """The bytes behind a URL.

    Raises:
        DataError: if they cannot be read after the last attempt.
    """
    return _retry(url, lambda: b"".join(_chunks(url, MANIFEST_LIMIT)))


def sha256_of(stream: BufferedReader | FileIO) -> str:
    """SHA-256 of the rest of an open file."""
    digest = hashlib.sha256()
    while data := stream.read(1 << 20):
        digest.update(data)
    return digest.hexdigest()


class Content(Protocol):
    """Facts known of a file before it is fetched: a shard, or a table of the manifest."""

    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class Cache:
    """A folder of shards by hash, shared by the processes of a host.

    Entries are verified when fetched and again whenever they are opened. The least recently used
    are deleted before a fetch would pass the bound; one that a process still reads lives on,
    unnamed, until that process closes it.
    """

    def __init__(self, folder: Path | str, bound: int) -> None:
        self.folder, self.bound = Path(folder).expanduser(), bound
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"data.cache: {self.folder} cannot be used ({error})") from None

    def open(self, url: str, shard: Content) -> FileIO:
        """The shard's verified copy, open for reading, unbuffered.

        Raises:
            DataError: if the shard cannot be fetched, is not what the manifest says, or is larger
                than the whole cache.
        """
        path = self.folder / f"{shard.sha256}.tar"
        with self._lock(shard.sha256):
            while True:
                try:
                    # Opened before it is looked at: from here on an eviction cannot take it away.
                    file = path.open("rb", buffering=0)
                except FileNotFoundError:
                    _retry(url, lambda: self._fetch(url, shard, path))
                    continue
                if sha256_of(file) == shard.sha256:
                    # Set by hand: the kernel's own stamps are too coarse to order uses by.
                    now = time.time_ns()
                    os.utime(file.fileno(), ns=(now, now))
                    file.seek(0)
                    return file
                log.warning("%s: this copy of %s is damaged, fetching again", path, url)
                file.close()
                path.unlink(missing_ok=True)

    def _fetch(self, url: str, shard: Content, path: Path) -> None:
        digest, length = hashlib.sha256(), 0
        with atomic_path(path) as temporary:
            with self._lock("room"):
                self._make_room(shard.bytes)
                os.truncate(temporary, shard.bytes)  # taken, before another process counts
            with temporary.open("r+b") as out:
                for chunk in _chunks(url, shard.bytes):
                    out.write(chunk)
                    digest.update(chunk)
                    length += len(chunk)
            if length != shard.bytes:
                raise OSError(f"ended after {length} of {shard.bytes} bytes")
            if digest.hexdigest() != shard.sha256:
                raise OSError("its SHA-256 is not the manifest's")

    def _make_room(self, wanted: int) -> None:
        """Delete the least recently used entries until `wanted` more bytes fit."""
        if wanted > self.bound:
            raise DataError(
                f"data.cache_gb: a shard of {wanted / 1e9:.3g} GB does not fit in "
                f"{self.bound / 1e9:.3g} GB"
            )
        entries = []
        for path in self.folder.glob("*.tar"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # a download of another process, finished in this moment
            # A dot file is a download: left alone while it grows, deleted when its process is gone.
            growing = path.name.startswith(".") and time.time() - status.st_mtime < STALE
            entries.append((growing, status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, _, size, _ in entries)
        for growing, _, size, path in sorted(entries):
            if growing or used + wanted <= self.bound:
                break
            path.unlink(missing_ok=True)
            used -= size

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with FileLock(self.folder / f"{name}.lock"):
            yield


def _chunks(url: str, limit: int) -> Iterator[bytes]:
    """The bytes behind a URL, chunk by chunk; more than `limit` of them is an error."""
    filesystem, path = fsspec.url_to_fs(url)
    # No read-ahead: each chunk is one request, and every byte is wanted once.
    with filesystem.open(path, "rb", cache_type="none") as stream:
        left = limit + 1
        while left > 0 and (chunk := stream.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
    if left <= 0:
        raise OSError(f"is longer than {limit} bytes")


def _retry(url: str, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, made up to ATTEMPTS times with a growing pause between.

    Raises:
        DataError: naming the URL and the last cause.
    """
    cause = ""
    for number in range(ATTEMPTS):
        if number:
            time.sleep(BACK_OFF * 2 ** (number - 1))
        try:
            return attempt()
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"{url}: does not exist") from None
        except ImportError as error:
            raise DataError(f"{url}: {error}") from None  # s3 and gs need s3fs and gcsfs
        except ValueError as error:
            raise DataError(f"{url}: is not a URL this program can read ({error})") from None
        except Exception as error:  # noqa: BLE001  every filesystem has a family of its own
            cause = str(error) or type(error).__name__
            log.warning("%s: attempt %d of %d failed: %s", url, number + 1, ATTEMPTS, cause)
    raise DataError(f"{url}: could not be read in {ATTEMPTS} attempts; the last one: {cause}")
