"""Counted parameters and arithmetic of the variants, kept between calls: counting takes seconds."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hpcm_scale.models
from hpcm_scale.config import ModelConfig
from hpcm_scale.files import atomic_write
from hpcm_scale.models.complexity import complexity_table


class Counts(NamedTuple):
    """Parameters and arithmetic of a variant."""

    parameters: int
    kmacs_per_pixel: float


class CountsCache:
    """A file of counts, each under a key of the configuration and of the code that it runs.

    A file that is damaged or cannot be written costs the counting again, and nothing else.

    Args:
        path: the file; one in the user's cache folder unless told.
        count: counts a network; the last row of `complexity_table` unless told.
    """

    def __init__(
        self, path: Path | None = None, count: Callable[[ModelConfig], Counts] | None = None
    ) -> None:
        folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self._path = path or Path(folder).expanduser() / "hpcm_scale" / "counts.json"
        self._count = count or _counted
        self._code = _code()
        self._known = _read(self._path)
        self._changed = False

    def of(self, config: ModelConfig) -> Counts:
        """The counts of a network."""
        key = hashlib.sha256(f"{self._code} {config.model_dump_json()}".encode()).hexdigest()
        if key not in self._known:
            self._known[key] = self._count(config)
            self._changed = True
        return self._known[key]

    def save(self) -> None:
        """Write what was counted since it was read."""
        if self._changed:
            try:
                atomic_write(self._path, json.dumps(self._known))
            except OSError:
                return
            self._changed = False


def _counted(config: ModelConfig) -> Counts:
    total = complexity_table(config)[-1]
    return Counts(total.parameters, total.kmacs_per_pixel)


def _code() -> str:
    """A hash of the networks' source: what they count changes with it."""
    sha = hashlib.sha256()
    for folder in hpcm_scale.models.__path__:
        for path in sorted(Path(folder).rglob("*.py")):
            sha.update(path.read_bytes())
    return sha.hexdigest()


def _read(path: Path) -> dict[str, Counts]:
    try:
        values = json.loads(path.read_bytes())
        return {str(key): Counts(int(n), float(kmacs)) for key, (n, kmacs) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
