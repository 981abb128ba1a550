"""The source files that a packed set holds, so that adding to it decodes only the others."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcm_scale.data.sample_table import mapped, write_parts
from hpcm_scale.errors import DataError

FILES = "sources-*.npy"
DIGEST = np.dtype("<u8")


@dataclass(frozen=True)
class Source:
    """An image file to pack."""

    path: Path
    name: str
    """Path inside the source, by which it is sorted and reported."""
    size: int
    modified: int
    """Time of its last change, in ns."""

    def digest(self) -> int:
        """64 bits of its absolute path, size and time: files of one name and size are common."""
        text = os.fsencode(self.path.absolute()) + f"\0{self.size}\0{self.modified}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8])


def read_packed(out: Path, identity: str) -> np.ndarray:
    """The digests (files,) of the files in the dataset of that identity.

    Empty where they are missing or damaged: then all files are decoded once more.
    """
    path = _path(out, identity)
    try:
        with path.open("rb") as stream:
            return mapped(stream, DIGEST, str(path))
    except (OSError, DataError):
        return np.empty(0, DIGEST)


def write_packed(
    out: Path, identity: str, before: np.ndarray, sources: Iterable[Source], skipped: set[str]
) -> None:
    """Record the files in a dataset, and remove the records of its earlier states.

    Args:
        before: digests of those that were in it.
        sources: what has been packed now.
        skipped: names of those that left nothing in it, to be looked at again next time.
    """
    new = np.array([s.digest() for s in sources if s.name not in skipped], dtype=DIGEST)
    digests = np.union1d(before, new)
    path = _path(out, identity)
    write_parts(path, DIGEST, len(digests), [digests])
    for other in out.glob(FILES):
        if other != path:
            other.unlink()


def without_packed(sources: list[Source], packed: np.ndarray) -> list[Source]:
    """The files whose digests are not among `packed`."""
    if not len(packed):
        return sources
    new = ~np.isin(np.array([source.digest() for source in sources], dtype=DIGEST), packed)
    return [source for source, wanted in zip(sources, new, strict=True) if wanted]


def _path(out: Path, identity: str) -> Path:
    # Hashed: an identity read from a manifest never becomes a path.
    return out / f"sources-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npy"
