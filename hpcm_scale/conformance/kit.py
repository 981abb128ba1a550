"""The conformance kit: models, files, and what is in them (CONFORMANCE.md says in which form)."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hpcm_scale.codec.images import Picture

FOLDER = Path(__file__).parent / "kit"
PEERS = FOLDER.with_name("peers")
"""The peers' part, a kit of its own: engines that compute HPCM alone do without."""
COMPRESSED = ".xz"
"""What names of compressed models end in."""
CELLS = 4
"""Rows and columns of cells whose mean pixels are compared."""


@dataclass(frozen=True)
class Group:
    """The symbols of z, or of one coding step, of one tile."""

    tables: int
    """CRC-32 of the table of each symbol, as little-endian 16-bit integers."""
    symbols: int
    """CRC-32 of the symbols as little-endian 32-bit integers, in the order of the digest."""


@dataclass(frozen=True)
class Case:
    """A file of the kit and what it decodes to."""

    name: str
    model: str
    groups: tuple[Group, ...]
    """Groups of the first tile: z, step 0, step 1, ...; then of the next tile."""
    latents: int
    """CRC-32 of ŷ (M, H, W) of the canvas in little-endian single precision."""
    mode: str
    """Pillow's mode of the picture."""
    size: tuple[int, int]
    """Width and height."""
    cells: tuple[float, ...]
    """`cells_of` its picture. g_s is in floating point: a pixel may be a level off."""
    alpha: int
    """CRC-32 of the alpha plane; 0 without one."""
    pixels: int | None
    """CRC-32 of the pixels, row by row, where they are exact; else None."""


def cases(folder: Path = FOLDER) -> list[Case]:
    """The files that decode, by name."""
    return [_case(name, value) for name, value in _expected(folder)["files"].items()]


def refused(folder: Path = FOLDER) -> dict[str, tuple[str, str]]:
    """The files that a decoder must refuse: name -> the model to try, and what is wrong."""
    return {name: (value[0], value[1]) for name, value in _expected(folder)["refused"].items()}


def model_file(model: str, folder: Path = FOLDER) -> Path:
    """The file of a model of the kit."""
    return folder / "models" / f"{model}.safetensors"


def contents(name: str, folder: Path = FOLDER) -> bytes:
    """The bytes of a file of the kit."""
    return (folder / "files" / f"{name}.hpcm").read_bytes()


@contextmanager
def opened(folder: Path) -> Iterator[Path]:
    """A kit whose models are not compressed, there until the context ends."""
    if not any((folder / "models").glob(f"*{COMPRESSED}")):
        yield folder
        return
    with TemporaryDirectory() as place:
        yield write_out(folder, Path(place) / folder.name)


def write_out(folder: Path, target: Path) -> Path:
    """Write a kit to `target`, its models decompressed; returns `target`."""
    import lzma  # not every Python has it, and the NumPy engine's part needs none

    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(f"*{COMPRESSED}"))
    for path in (folder / "models").glob(f"*{COMPRESSED}"):
        (target / "models" / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return target


def cells_of(picture: Picture) -> tuple[float, ...]:
    """Means of 4×4 cells of a picture's pixels, row by row, each channel in turn, in levels.

    Cell i of n positions covers the positions from ⌊i·n/4⌋ to ⌊(i + 1)·n/4⌋, at least one.
    """
    pixels = np.atleast_3d(picture.pixels).astype(np.float64)
    parts = [
        _cell(row, picture.height, column, picture.width)
        for row in range(CELLS)
        for column in range(CELLS)
    ]
    return tuple(round(float(mean), 3) for part in parts for mean in pixels[part].mean(axis=(0, 1)))


def _cell(row: int, height: int, column: int, width: int) -> tuple[slice, slice]:
    def part(i: int, count: int) -> slice:
        start = i * count // CELLS
        return slice(start, max(start + 1, (i + 1) * count // CELLS))

    return part(row, height), part(column, width)


def _case(name: str, value: dict[str, Any]) -> Case:
    groups = tuple(Group(*pair) for pair in value["groups"])
    size = (value["size"][0], value["size"][1])
    return Case(
        name,
        value["model"],
        groups,
        value["latents"],
        value["mode"],
        size,
        tuple(value["cells"]),
        value["alpha"],
        value.get("pixels"),
    )


def _expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text())
