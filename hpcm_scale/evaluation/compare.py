"""A picture beside its reconstruction, and how far apart they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.file_jobs import contents_of, named
from hpcm_scale.codec.find_model import find_model
from hpcm_scale.codec.image_writer import extension_writer, picture_bytes
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.errors import DataError
from hpcm_scale.files import atomic_write
from hpcm_scale.units import psnr_of

GAP = 8
"""Pixels between the two pictures and around the captions."""


@dataclass(frozen=True)
class Comparison:
    """A reconstruction beside its original."""

    psnr: float
    """dB, over 8-bit RGB; infinite for equal pictures."""
    side_by_side: Image.Image


def compare(original: Path, reconstruction: Path) -> Comparison:
    """Measure and show two pictures of one size.

    Args:
        original: a picture or `.hpcm` file, likewise the reconstruction.

    Raises:
        HpcmError: if one cannot be read or decoded, or their sizes differ.
    """
    first, second = (
        Image.fromarray(_picture(path).pixels).convert("RGB") for path in (original, reconstruction)
    )
    if first.size != second.size:
        raise DataError(
            f"{reconstruction}: is {second.width}x{second.height}, {original} is "
            f"{first.width}x{first.height}; only pictures of one size can be compared"
        )
    quality = psnr_of(np.asarray(first), np.asarray(second))
    captions = (original.name, f"{reconstruction.name}  {quality:.2f} dB")
    return Comparison(quality, side_by_side((first, second), captions))


def checked_target(target: Path | None, inputs: Sequence[Path]) -> Path:
    """The picture to write: the one named, or a name that is free.

    Raises:
        DataError: if it is a folder, one of the inputs, or of no format that can be written.
    """
    if target is None:
        numbered = (Path(f"side_by_side.{number}.png") for number in count(2))
        free = (path for path in chain([Path("side_by_side.png")], numbered) if not path.exists())
        return next(free)
    if target.is_dir():
        raise DataError(f"--out: {target} is a folder; name a picture, {target}/a.png say")
    extension_writer(str(target))
    if target.exists() and any(path.exists() and target.samefile(path) for path in inputs):
        raise DataError(f"--out: {target} is one of the pictures to compare; name another")
    return target


def save(comparison: Comparison, target: Path) -> None:
    """Write the two pictures side by side; the extension chooses the format.

    Raises:
        DataError: if that format cannot hold them.
        OSError: if the file cannot be written.
    """
    sheet = Picture(np.asarray(comparison.side_by_side))
    atomic_write(target, picture_bytes(sheet, str(target)))


def _picture(path: Path) -> Picture:
    contents = contents_of(str(path))
    if not contents.startswith(container.MAGIC):
        return read_picture(contents, str(path))
    with named(str(path)):
        identity = container.read(contents).header.identity
        return Codec.load(find_model(None, identity)).decompress(contents).picture


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures of one size in a row, each under its caption."""
    font = ImageFont.load_default(size=16)
    band = 16 + 2 * GAP
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) + GAP, height + band + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = GAP + i * (width + GAP)
        draw.text((left, GAP), caption, fill="black", font=font)
        sheet.paste(picture, (left, band))
    return sheet
