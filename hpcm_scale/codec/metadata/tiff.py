"""TIFF files: their tags as an EXIF block, and back. Source: TIFF 6.0 (Adobe, 1992)."""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from hpcm_scale.codec.metadata import tiff_block
from hpcm_scale.codec.metadata.tags import FileParts, Metadata
from hpcm_scale.codec.metadata.tiff_block import Block, Directory, Entry, Tag
from hpcm_scale.errors import DataError

_KIND, _BITS, _PHOTOMETRIC, _PLANAR = 254, 258, 262, 284
_ACROSS, _DOWN, _UNIT = 282, 283, 296
_SUBDIRECTORIES, _FORMAT, _DNG = 330, 339, 50706
_FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}


class TiffParts(NamedTuple):
    """A TIFF file taken apart."""

    parts: FileParts
    min_is_white: bool
    """True if 0 is white."""
    separate: bool
    """True if each channel is stored on its own."""


def read(data: bytes) -> TiffParts:
    """Take a TIFF file apart.

    Returns:
        `plain` is the file with the orientation of its first picture set to 1, so that the
        decoder leaves it as it lies.

    Raises:
        DataError: if it is a camera's raw file, whose first picture is only a preview, or its
            samples have no 8-bit meaning.
    """
    parts = FileParts(data)
    block = tiff_block.parse(data)
    if block is None:
        return TiffParts(parts, False, False)
    entries = {entry.tag: entry for entry in block.entries(block.first)}

    def integers(tag: int, usual: tuple[int, ...]) -> tuple[int, ...]:
        return (block.integers(entries[tag]) if tag in entries else ()) or usual

    reduced = integers(_KIND, (0,))[0] & 1
    if _DNG in entries or (reduced and _SUBDIRECTORIES in entries):
        raise DataError("is a camera's raw file, not a picture yet; develop it first")
    parts.bits = max(8, *integers(_BITS, (1,)))
    form = integers(_FORMAT, (1,))[0]
    if form in _FORMATS:
        samples = f"{max(integers(_BITS, (1,)))}-bit {_FORMATS[form]} samples"
        parts.unsupported = f"is a TIFF of {samples}"
        if form != 2 or parts.bits == 8:
            raise DataError(f"{parts.unsupported}; convert it to unsigned integers of 8 or 16 bits")
    else:
        parts.unsupported = f"is a TIFF of {'/'.join(map(str, integers(_BITS, (1,))))}-bit samples"
    _take_tags(parts, block, entries)
    parts.plain = _as_it_lies(data, entries)
    parts.orientation = tiff_block.orientation_of(data)
    return TiffParts(parts, integers(_PHOTOMETRIC, (1,))[0] == 0, integers(_PLANAR, (1,))[0] == 2)


def _as_it_lies(data: bytes, entries: Mapping[int, Entry]) -> bytes:
    """The file, with nothing in it that would make Pillow turn the picture."""
    plain = tiff_block.upright(data)
    if tiff_block.XMP in entries and tiff_block.ORIENTATION not in entries:
        # Pillow looks for an orientation in the XMP packet then, as few other readers do.
        entry = entries[tiff_block.XMP]
        end = entry.at + entry.size
        packet = plain[entry.at : end].replace(b"tiff:Orientation", b"tiff:orientation")
        plain = plain[: entry.at] + packet + plain[end:]
    return plain


def _take_tags(parts: FileParts, block: Block, entries: Mapping[int, Entry]) -> None:
    """Keep the profile, XMP packet and resolution, and the other tags as an EXIF block."""
    for tag, name in ((tiff_block.ICC, "icc"), (tiff_block.XMP, "xmp")):
        if tag in entries:
            body = bytes(block.data[entries[tag].at : entries[tag].at + entries[tag].size])
            if name == "icc":
                parts.icc = body
            else:
                parts.keep(xmp=body)
    unit = (block.integers(entries[_UNIT]) or (2,))[0] if _UNIT in entries else 2
    dots = [block.rational(entries[tag]) for tag in (_ACROSS, _DOWN) if tag in entries]
    if unit in (2, 3) and len(dots) == 2 and dots[0] and dots[1]:
        scale = 1 if unit == 2 else 2.54
        parts.keep_dpi(dots[0] * scale, dots[1] * scale)
    directory = {
        tag: found
        for tag, found in tiff_block.copied(block).items()
        if tag not in tiff_block.STRUCTURAL
        and tag not in (_ACROSS, _DOWN, _UNIT, tiff_block.ORIENTATION)
    }
    if directory:
        parts.keep(exif=_as_block(directory, block.order))


def tagged(tiff: bytes, tags: Metadata) -> bytes:
    """A TIFF file with the tags of an EXIF block and an XMP packet in its first directory.

    Args:
        tiff: a classic TIFF file with one picture.
    """
    block = tiff_block.parse(tiff)
    if block is None or (tags.exif is None and tags.xmp is None):
        return tiff
    directory = tiff_block.copied(block)
    # Beyond the usual limit: where the pixels lie has to be copied whole.
    for entry in block.entries(block.first):
        raw = bytes(block.data[entry.at : entry.at + entry.size])
        directory[entry.tag] = Tag(entry.kind, entry.number, raw)
    directory |= {
        tag: found
        for tag, found in _exif_directory(tags.exif, block.order).items()
        if tag not in tiff_block.STRUCTURAL and tag not in directory
    }
    if tags.xmp is not None:
        directory[tiff_block.XMP] = Tag(1, len(tags.xmp), tags.xmp)
    out = tiff + bytes(len(tiff) % 2)
    header = out[:4] + struct.pack(block.order + "I", len(out))
    return header + out[8:] + tiff_block.written(directory, block.order, len(out))


def _exif_directory(exif: bytes | None, order: str) -> Directory:
    block = tiff_block.parse(exif) if exif is not None else None
    if block is None:
        return {}
    return tiff_block.in_order(tiff_block.copied(block), block.order, order)


def _as_block(directory: Directory, order: str) -> bytes:
    """A directory as an EXIF block."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8) + tiff_block.written(directory, order, 8)
