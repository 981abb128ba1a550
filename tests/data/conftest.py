"""Small photos and datasets, made here: no test reads anything outside its temporary folder."""

import shutil
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.data.pack import pack
from hpcm_scale.data.recipe import Recipe


def picture(number: int, width: int = 40, height: int = 32) -> Image.Image:
    """A smooth picture with some noise, different for every number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-6, 7, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def make_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.fixture(scope="session")
def bomb() -> Callable[[int, int], bytes]:
    return make_bomb


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """folder, count -> the folder with `count` PNG pictures of differing sizes."""

    def make(folder: Path, count: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            side = 32 + number % 5
            picture(number, side + 7, side).save(folder / f"photo{number:03d}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    """38 pictures in several shards, some of them for validation. Read only."""
    root = tmp_path_factory.mktemp("dataset")
    recipe = Recipe(min_side=24, shard_mb=0.015, val={"fraction": 0.15})
    pack(make_folder(root / "photos", 38), root / "packed", recipe, jobs=2)
    return root / "packed"


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to damage."""
    shutil.copytree(dataset, tmp_path / "copy")
    return tmp_path / "copy"
