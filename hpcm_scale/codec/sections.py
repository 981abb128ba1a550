"""The sections of a `.hpcm` file beside the symbols: alpha plane, ICC profile, metadata boxes."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from hpcm_scale.codec.images import LARGEST_ICC, own_size_limit
from hpcm_scale.codec.metadata import Metadata, tags, tiff_block
from hpcm_scale.errors import BitstreamError

LARGEST_METADATA = 3 * tags.LARGEST_BLOCK
"""Most bytes of the metadata section, inflated."""

_COLOUR = {b"gAMA", b"cHRM", b"sRGB", b"cICP"}


def pack_alpha(alpha: np.ndarray) -> bytes:
    """An alpha plane (H, W) uint8 as a greyscale PNG."""
    out = io.BytesIO()
    Image.fromarray(alpha).save(out, "PNG", optimize=True)
    return out.getvalue()


def unpack_alpha(section: bytes, width: int, height: int) -> np.ndarray:
    """The inverse of `pack_alpha`.

    Raises:
        BitstreamError: if it is not a greyscale PNG of that size.
    """
    with own_size_limit():
        try:
            image = Image.open(io.BytesIO(section), formats=("PNG",))
            if image.size != (width, height) or image.mode != "L":
                raise BitstreamError(
                    f"has an alpha plane of {image.width}×{image.height}, mode {image.mode}, "
                    f"for a picture of {width}×{height}"
                )
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
            raise BitstreamError(f"has a damaged alpha plane ({error})") from None


def pack_icc(icc: bytes) -> bytes:
    """An ICC profile, deflated."""
    return zlib.compress(icc, 9)


def unpack_icc(section: bytes) -> bytes:
    """The inverse of `pack_icc`.

    Raises:
        BitstreamError: if it is damaged or above `LARGEST_ICC` bytes.
    """
    return _inflated(section, LARGEST_ICC, "ICC profile")


def pack_metadata(metadata: Metadata) -> bytes | None:
    """Metadata as a deflated sequence of boxes; None if there are none."""
    boxes = b"".join(
        name + struct.pack("<I", len(body)) + body for name, body in _boxes_of(metadata)
    )
    return zlib.compress(boxes, 9) if boxes else None


def unpack_metadata(section: bytes) -> Metadata:
    """The inverse of `pack_metadata`. Boxes of names unknown here are passed over.

    Raises:
        BitstreamError: if it is damaged, holds a box twice or is above `LARGEST_METADATA` bytes.
    """
    data = _inflated(section, LARGEST_METADATA, "metadata section")
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise BitstreamError("has a damaged metadata section (a box is cut off)")
        name, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        if len(body) < size or name in found:
            raise BitstreamError(
                "has a damaged metadata section (a box is cut off, or there twice)"
            )
        found[name] = body
        at += 8 + size
    try:
        return _from_boxes(found)
    except (ValueError, struct.error) as error:
        raise BitstreamError(f"has a damaged metadata section ({error})") from None


def _boxes_of(metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each box there is."""
    if metadata.exif is not None:
        yield b"exif", metadata.exif
    if metadata.xmp is not None:
        yield b"xmp ", metadata.xmp
    if metadata.dpi is not None:
        yield b"dpi ", struct.pack("<dd", *metadata.dpi)
    yield from tags.colour_chunks(metadata)


def _from_boxes(found: dict[bytes, bytes]) -> Metadata:
    """Metadata of boxes, each checked as a picture's own tags are."""
    parts = tags.FileParts(b"")
    parts.keep(found.get(b"exif"), found.get(b"xmp "))
    if b"dpi " in found:
        parts.keep_dpi(*struct.unpack("<dd", found[b"dpi "]))
    metadata = parts.metadata
    kept = ((b"exif", metadata.exif), (b"xmp ", metadata.xmp), (b"dpi ", metadata.dpi))
    for name, value in kept:
        if name in found and value is None:
            raise ValueError(f"its {name.decode()} box holds none")
    if metadata.exif is not None and tiff_block.orientation_of(metadata.exif) != 1:
        raise ValueError("its EXIF block turns pixels that are upright")
    for name in _COLOUR & found.keys():
        marked = tags.with_colour_chunk(metadata, name, found[name])
        if marked is None:
            raise ValueError(f"its {name.decode()} box holds none")
        metadata = marked
    return metadata


def _inflated(section: bytes, most: int, what: str) -> bytes:
    inflate = zlib.decompressobj()
    try:
        out = inflate.decompress(section, most)
    except zlib.error as error:
        raise BitstreamError(f"has a damaged {what} ({error})") from None
    if not inflate.eof or inflate.unused_data:
        raise BitstreamError(f"has a damaged {what}, or one above {most} bytes")
    return out
