"""Images from and to `.hpcm` in one call: paths, bytes or file objects, local ones or fsspec's.

from hpcm_scale import read_image, write_image
write_image(image, "photo.hpcm", quality=60)
image = read_image("photo.hpcm")
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from hpcm_scale.codec import container
from hpcm_scale.codec.aim import Aim
from hpcm_scale.codec.codec import MEMORY, Codec
from hpcm_scale.codec.find_model import Catalogue
from hpcm_scale.codec.images import Picture, picture_of
from hpcm_scale.errors import BitstreamError, CheckpointError, DataError
from hpcm_scale.files import atomic_write

MIME = "image/x-hpcm"
"""MIME type of a `.hpcm` file."""
KEPT_CODECS = 2
"""Models that stay loaded from one call to the next."""


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    model: str | Path | None = None,
    engine: str | None = None,
    memory: int = MEMORY,
) -> Image.Image:
    """The picture in a `.hpcm` file, in mode L, LA, RGB or RGBA, its profile and tags in `info`.

    Args:
        source: a path, the file's bytes, or a file object opened for reading in binary.
        model: file or name of the model; found by the file's identity unless given.
        engine: "torch" or "numpy"; None for torch where it is installed.
        memory: bytes the network may work in.

    Raises:
        BitstreamError: if it is damaged, or no `.hpcm` file.
        CheckpointError: if its model is not here.
        OSError: if it cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        data, name = Path(source).read_bytes(), os.fspath(source)
    else:
        data = source if isinstance(source, bytes) else source.read()
        name = getattr(source, "name", "image")
    try:
        header = container.read(data).header
        return decoder_of(header.identity, model, engine, memory).decode(data)
    except (BitstreamError, CheckpointError) as error:
        raise type(error)(f"{name}: {error}") from None


def write_image(
    image: Image.Image | np.ndarray,
    target: str | os.PathLike[str] | BinaryIO,
    quality: float | None = None,
    *,
    size: int | None = None,
    bpp: float | None = None,
    psnr: float | None = None,
    progressive: bool = False,
    exact_pixels: bool | None = None,
    model: str | Path | None = None,
    engine: str | None = None,
    memory: int = MEMORY,
) -> int:
    """Write a picture as a `.hpcm` file, and return how many bytes it has.

    Args:
        image: a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
        target: a path, whose file is replaced when all is written, or a file object opened for
            writing in binary.
        quality: 1 for the smallest file to 100 for the best picture. Where the models here are of
            one rate each, the nearest of them is taken.
        size: bytes the file may have; of a model of many rates, and instead of `quality`.
        bpp: bits a pixel it may have, likewise.
        psnr: dB that the decoded picture has at least, likewise.
        progressive: let the beginning of the file give a preview, for 12 bytes or so.
        exact_pixels: decode to the same pixels everywhere; None for yes where the model can.
        model, engine, memory: as for `read_image`.

    Raises:
        DataError: if the picture cannot be coded, or an aim not be met.
        ConfigError: if an aim is out of its range, or the model has one rate.
        CheckpointError: if there is no such model.
        OSError: if the file cannot be written.
    """
    aim = Aim(quality, size, bpp, psnr)
    data = encoded(
        picture_of(image),
        aim,
        progressive=progressive,
        exact_pixels=exact_pixels,
        model=model,
        engine=engine,
        memory=memory,
    )
    if isinstance(target, str | os.PathLike):
        atomic_write(Path(target), data)
    else:
        target.write(data)
    return len(data)


def encoded(
    picture: Picture,
    aim: Aim,
    *,
    progressive: bool = False,
    exact_pixels: bool | None = None,
    model: str | Path | None = None,
    engine: str | None = None,
    memory: int = MEMORY,
) -> bytes:
    """The `.hpcm` bytes of a picture; arguments and errors as of `write_image`."""
    catalogue = Catalogue()
    by_quality = model is None and aim.quality is not None
    if by_quality and aim.quality is not None:
        path = catalogue.at_quality(aim.quality)
    else:
        path = catalogue.find(model)
    codec = _codec(path, engine, memory, exact_pixels)
    if by_quality and not codec.info.config.rates:
        aim = Aim()  # it chose the model
    return codec.compress(picture, aim=aim, progressive=progressive).data


def decoder_of(identity: bytes, model: str | Path | None, engine: str | None, memory: int) -> Codec:
    """The codec that decodes files of an identity; arguments and errors as of `read_image`."""
    return _codec(Catalogue().find(model, identity), engine, memory)


def _codec(path: Path, engine: str | None, memory: int, exact_pixels: bool | None = None) -> Codec:
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return _kept(path, stamp, engine, memory, exact_pixels)


@lru_cache(maxsize=KEPT_CODECS)
def _kept(
    path: Path, stamp: int, engine: str | None, memory: int, exact_pixels: bool | None
) -> Codec:
    return Codec.load(path, engine=engine, memory=memory, exact_pixels=exact_pixels)
