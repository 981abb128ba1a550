"""The image formats one by one: a file's pixels, and what else it holds."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from hpcm_scale.codec import pixel_modes
from hpcm_scale.codec.container import LARGEST_SIDE
from hpcm_scale.codec.image_kinds import kind_of
from hpcm_scale.codec.metadata import FileParts, boxes, jpeg, png, pnm, tiff
from hpcm_scale.codec.pixel_modes import Pixels
from hpcm_scale.errors import DataError

MAX_PIXELS = 1 << 29
"""Larger pictures are refused before their pixels are read; 16384×16384 is half of this."""


def read_file(contents: bytes, name: str) -> tuple[FileParts, Pixels]:
    """Decode a file and keep what stands beside its pixels, as it lies.

    Raises:
        DataError: if it is of a kind that cannot be coded, or too large; without its name.
        Exception: of many kinds, by Pillow and its plugins, if it is damaged.
    """
    kind = kind_of(contents, name)
    return _READERS.get(kind, _read_other)(contents, kind)


def size_fault(width: int, height: int) -> str | None:
    """Reason why a picture of this size cannot be coded; None if it can."""
    if min(width, height) < 1:
        return f"{width}×{height} holds no pixel"
    if max(width, height) > LARGEST_SIDE or width * height > MAX_PIXELS:
        return (
            f"{width}×{height} is above {MAX_PIXELS} pixels or {LARGEST_SIDE} a side; "
            "cut it into parts"
        )
    return None


def is_turned(image: Image.Image) -> bool:
    """True if the decoder has turned an image already, whatever its EXIF block says.

    libheif does, and libjxl but for a JPEG that it gives back.
    """
    return image.format in ("HEIF", "JXL") and not getattr(image, "jpeg", False)


def _opened(parts: FileParts, kind: str) -> Image.Image:
    """The image with its header read, of a size that can be coded."""
    try:
        image = Image.open(io.BytesIO(parts.plain), formats=(kind,))
    except UnidentifiedImageError:
        if parts.unsupported is not None:
            raise DataError(
                f"{parts.unsupported}, which is not supported; convert it to 8 bits a channel first"
            ) from None
        raise ValueError(f"its {kind} header makes no sense") from None
    _check_size(image.width, image.height)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        parts.notices.insert(0, f"only the first of {frames} frames is kept")
    return image


def _check_size(width: int, height: int) -> None:
    if fault := size_fault(width, height):
        raise DataError(fault)


def _read_other(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts = FileParts(contents)
    image = _opened(parts, kind)
    parts.keep_info(image.info)
    return parts, pixel_modes.of_image(image)


def _read_png(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts, colour_type, depth, transparent = png.read(contents)
    image = _opened(parts, kind)
    if colour_type == png.GREY_ALPHA and image.mode == "RGBA":
        image = image.convert("LA")  # as Pillow reads grey of 16 bits with alpha
    pixels = pixel_modes.of_image(image)
    if transparent is None:
        return parts, pixels
    samples = [int.from_bytes(transparent[i : i + 2], "big") for i in (0, 2, 4)]
    if colour_type == png.GREY:
        samples = samples[:1]
    elif colour_type != png.RGB:
        samples = []
    if not samples or len(transparent) < 2 * len(samples):
        parts.notices.append("not kept: tRNS (damaged)")
        return parts, pixels
    if parts.bits > 8:
        what = "greys" if colour_type == png.GREY else "colours"
        raise DataError(
            f"marks one of its 16-bit {what} as transparent; convert it to 8 bits first"
        )
    # A sample of fewer bits stands for the level that white's share of 255 gives.
    highest = (1 << depth) - 1
    levels = np.array([(sample & highest) * 255 // highest for sample in samples], np.uint8)
    shown = pixels.values if colour_type == png.RGB else pixels.values[..., None]
    alpha = np.where((shown == levels).all(axis=2), 0, 255).astype(np.uint8)
    return parts, pixels._replace(alpha=pixel_modes.visible(alpha))


def _read_jpeg(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts = jpeg.read(contents)
    try:
        return parts, pixel_modes.of_image(_opened(parts, kind))
    except OSError:
        if parts.unsupported is None:
            raise
        raise DataError(f"{parts.unsupported}, which is not supported") from None


def _read_tiff(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts, min_is_white, separate = tiff.read(contents)
    # Pillow's own reader takes the wrong bytes of planes of 16 bits; libtiff's does not.
    with _always_libtiff(separate and parts.bits > 8):
        image = _opened(parts, kind)
    compression = image.info.get("compression", "raw")
    try:
        with _silent_libtiff():
            image.load()
    except OSError:
        if compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
            raise
        raise DataError(
            f"is a damaged TIFF, or its {compression} compression is not supported here"
        ) from None
    if image.mode == "I" and min_is_white:
        raise DataError(f"{parts.unsupported} with white at 0; convert it to 8 bits first")
    highest = (1 << parts.bits) - 1 if parts.bits in range(9, 16) else 65535
    return parts, pixel_modes.of_image(image, highest, min_is_white)


def _read_pnm(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    if contents[:2] not in pnm.MAGIC:
        return _read_other(contents, kind)
    header = pnm.header(contents)
    _check_size(header.width, header.height)
    samples = pnm.samples(contents)
    parts = FileParts(contents, bits=max(8, samples.highest.bit_length()))
    return parts, pixel_modes.of_samples(samples)


def _read_avif(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts = boxes.read_avif(contents)
    try:
        image = _opened(parts, kind)
    except (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError):
        # Pillow reads the EXIF block to open the file, and may stumble over it.
        parts.plain = boxes.without_exif(contents)
        image = _opened(parts, kind)
        parts.notices.append("its EXIF block is damaged and left out")
    parts.keep_info(image.info)
    return parts, pixel_modes.of_image(image)


def _read_heif(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts = boxes.read_avif(contents)
    image = _opened(parts, kind)
    parts.keep_info(image.info)
    parts.orientation = 1 if is_turned(image) else None
    return parts, pixel_modes.of_image(image)


def _read_jxl(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts, sides = boxes.read_jxl(contents)
    _check_size(*sides)  # the plugin decodes a file to open it
    image = _opened(parts, kind)
    parts.keep_info(image.info)
    parts.orientation = 1 if is_turned(image) else None
    return parts, pixel_modes.of_image(image)


def _read_jpeg2000(contents: bytes, kind: str) -> tuple[FileParts, Pixels]:
    parts = boxes.read_jpeg2000(contents)
    image = _opened(parts, kind)
    if parts.bits > 8 and image.mode != "I;16":
        # Pillow rounds samples up past 255, so that white comes out black.
        raise DataError(
            f"is a JPEG 2000 of {parts.bits} bits a channel in colour, which is not supported; "
            "convert it to 8 bits a channel first"
        )
    info = dict(image.info)
    info.pop("comment", None)  # of the library that wrote it
    parts.keep_info(info)
    return parts, pixel_modes.of_image(image)


_READERS: dict[str, Callable[[bytes, str], tuple[FileParts, Pixels]]] = {
    "PNG": _read_png,
    "JPEG": _read_jpeg,
    "TIFF": _read_tiff,
    "PPM": _read_pnm,
    "AVIF": _read_avif,
    "HEIF": _read_heif,
    "JXL": _read_jxl,
    "JPEG2000": _read_jpeg2000,
}


@contextmanager
def _always_libtiff(wanted: bool) -> Iterator[None]:
    before = TiffImagePlugin.READ_LIBTIFF
    TiffImagePlugin.READ_LIBTIFF = wanted or before
    try:
        yield
    finally:
        TiffImagePlugin.READ_LIBTIFF = before


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Keep libtiff's own words from standard error: our error says it in one line."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
