"""A picture beside its reconstruction, and how far apart they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpcm_scale.codec.images import read_picture
from hpcm_scale.errors import DataError
from hpcm_scale.evaluation.metrics import psnr
from hpcm_scale.files import atomic_path

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

    Raises:
        DataError: if one cannot be read or their sizes differ.
    """
    first, second = (
        Image.fromarray(read_picture(path).pixels) for path in (original, reconstruction)
    )
    first, second = first.convert("RGB"), second.convert("RGB")
    if first.size != second.size:
        raise DataError(
            f"{reconstruction}: is {second.width}x{second.height}, {original} is "
            f"{first.width}x{first.height}; only pictures of one size can be compared"
        )
    quality = psnr(np.asarray(first), np.asarray(second))
    captions = (original.name, f"{reconstruction.name}  {quality:.2f} dB")
    return Comparison(quality, side_by_side((first, second), captions))


def save(comparison: Comparison, target: Path) -> None:
    """Write the two pictures side by side; the extension chooses the format."""
    with atomic_path(target) as temporary:
        comparison.side_by_side.save(temporary)


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
