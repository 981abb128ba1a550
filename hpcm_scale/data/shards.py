"""Shard files: the members of a tar, and reading a sample's bytes at its offset."""

import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hpcm_scale.data.images import BadImage
from hpcm_scale.data.manifest import NAME, Manifest, Split
from hpcm_scale.data.remote import Cache, is_remote, read_remote
from hpcm_scale.data.sample_table import TableFile, held, mapped
from hpcm_scale.data.shard import is_safe
from hpcm_scale.errors import DataError


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes begin, and their number."""

    name: str
    offset: int
    size: int
    sparse: bool = False
    """Whether the tar leaves out its zeros, so that its bytes do not lie in one piece."""


def scan_tar(path: Path) -> Iterator[Member]:
    """The regular files of a tar, or of several joined end to end, from the headers alone.

    Raises:
        DataError: if the tar is damaged or truncated, or a name would lead out of a folder it is
            unpacked in.
    """
    try:
        length = path.stat().st_size
        with path.open("rb") as stream:
            start: int | None = 0
            while start is not None:
                stream.seek(start)
                try:
                    tar = tarfile.TarFile(fileobj=stream)
                except tarfile.ReadError:
                    if start == 0:
                        raise
                    return  # what follows a tar's end without being one is no part of it
                with tar:
                    yield from _members(tar, path, length)
                    start = _next_tar(stream, tar.offset, path)
    except FileNotFoundError:
        raise DataError(f"{path}: the shard is missing") from None
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path}: is not a readable tar ({error})") from None


def _members(tar: tarfile.TarFile, path: Path, length: int) -> Iterator[Member]:
    for info in tar:
        if not is_safe(info.name):
            raise DataError(
                f"{path}: member {info.name!r} would be unpacked outside its folder; "
                "do not unpack this tar, write it again without that member"
            )
        if info.isreg():
            sparse = info.issparse()
            if not sparse and info.offset_data + info.size > length:
                raise DataError(f"{path}: is truncated inside {info.name!r}")
            yield Member(info.name, info.offset_data, info.size, sparse)


def _next_tar(stream: BinaryIO, end: int, path: Path) -> int | None:
    """Where another tar begins behind the one whose headers end at `end`; None if nothing does.

    Raises:
        DataError: if it does not end in a block of zeros: tarfile takes a damaged or missing header
            for the end.
    """
    stream.seek(end)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{path}: is truncated or damaged at byte {end}")
    at = end + tarfile.BLOCKSIZE
    while block := stream.read(tarfile.RECORDSIZE):
        rest = block.lstrip(b"\0")
        if rest:
            skipped = len(block) - len(rest)
            return at + skipped // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(block)
    return None


def sample_key(name: str) -> str:
    """The name of a sample: that of its member without the suffix, a/b for a/b.png."""
    return name.rpartition(".")[0] or name


def read_manifest(root: str, cache: Cache | None = None) -> Manifest:
    """The manifest of the dataset in a folder or behind a URL.

    Args:
        cache: where to keep the tables of a large remote dataset, for all processes of a host;
            without it they are held in memory.

    Raises:
        DataError: if there is none, or it is not one.
    """
    if is_remote(root):
        base = root.rstrip("/")

        def fetched(file: TableFile, dtype: np.dtype) -> np.ndarray:
            url = f"{base}/{file.name}"
            if cache is None:
                return held(read_remote(url), dtype, url)
            with cache.open(url, file) as stream:
                return mapped(stream, dtype, url)

        return Manifest.loads(read_remote(f"{base}/{NAME}"), f"{base}/{NAME}", fetched)
    folder = Path(root)
    path = folder / NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path}: there is no such manifest; make one with `hpcm-scale pack` "
            "(or `hpcm-scale index` for tars made elsewhere)"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None

    def opened(file: TableFile, dtype: np.dtype) -> np.ndarray:
        place = folder / file.name
        try:
            with place.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size != file.bytes:
                    raise DataError(
                        f"{place}: has {size} bytes, {NAME} says {file.bytes}; copy it again"
                    )
                return mapped(stream, dtype, str(place))
        except OSError as error:
            raise DataError(
                f"{place}: cannot be read ({error.strerror}), but {NAME} needs it; copy both"
            ) from None

    return Manifest.loads(text, str(path), opened)


def check_files(root: str, split: Split) -> None:
    """Check that the local shards of a split are there and have the manifest's sizes.

    Raises:
        DataError: naming the first that is not.
    """
    if is_remote(root):
        return
    for shard in split.shards:
        path = Path(root) / shard.path
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(f"{path}: the shard is missing, but {NAME} lists it") from None
        if size != shard.bytes:
            raise DataError(
                f"{path}: has {size} bytes, {NAME} says {shard.bytes}: truncated or replaced; "
                "copy it again, or pack again"
            )


class ShardReader:
    """Reads samples of one split at their offsets, keeping the shards in use open.

    Args:
        root: folder or URL of the dataset.
        open_shards: how many shards to keep open; one or two for each stream read.
        cache: where to keep remote shards; needed for a URL.
    """

    def __init__(self, root: str, split: Split, open_shards: int, cache: Cache | None) -> None:
        self.root, self.split, self.limit, self.cache = root, split, open_shards, cache
        self._open: OrderedDict[int, FileIO] = OrderedDict()  # by shard, oldest use first

    def read(self, sample: int) -> bytes:
        """The bytes of a sample's image file.

        Raises:
            DataError: if its shard is missing, truncated, or cannot be fetched.
            BadImage: if the bytes are not those that the manifest was made of.
        """
        number, row = self.split.locate(sample)
        shard = self.split.shards[number]
        size = int(shard.sizes[row])
        try:
            data = os.pread(self._file(number).fileno(), size, int(shard.offsets[row]))
        except OSError as error:
            raise DataError(f"{self.root}/{shard.path}: cannot be read ({error})") from None
        if len(data) != size:
            raise DataError(f"{self.root}/{shard.path}: is truncated inside {shard.names[row]!r}")
        if shard.crcs is not None and zlib.crc32(data) != shard.crcs[row]:
            raise BadImage("corrupt", "its bytes have changed since it was packed (CRC-32)")
        return data

    def _file(self, number: int) -> FileIO:
        if number not in self._open:
            shard = self.split.shards[number]
            if self.cache is not None:
                file = self.cache.open(f"{self.root.rstrip('/')}/{shard.path}", shard)
            else:
                file = (Path(self.root) / shard.path).open("rb", buffering=0)
            shard.require_inside(f"{self.root}/{NAME}")
            self._open[number] = file
            if len(self._open) > self.limit:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]
