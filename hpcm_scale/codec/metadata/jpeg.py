"""JPEG: segments before the first scan. Source: ITU-T T.81, annex B; JFIF 1.02; CIPA DC-008."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from hpcm_scale.codec.metadata import tiff_block
from hpcm_scale.codec.metadata.tags import FileParts

LARGEST_SEGMENT = 65533
"""Most bytes of a segment."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_LONG_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_ICC, _PICTURES = b"ICC_PROFILE\0", b"MPF\0"
_NUMBER_OF_PICTURES = 0xB001
_SOI, _SOS, _COM, _APP0, _APP14 = 0xD8, 0xDA, 0xFE, 0xE0, 0xEE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_KINDS = {
    0xC3: "a lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    0xCB: "a lossless JPEG",
    0xF7: "a JPEG-LS file",
}
"""Kinds of JPEG that decoders may lack, by the marker of the frame."""


class _Segment(NamedTuple):
    marker: int
    body: bytes
    start: int
    """Place of its marker in the file; `end` that behind it."""
    end: int


def read(data: bytes) -> FileParts:
    """Take a JPEG file apart; of one that breaks off, what came before.

    Returns:
        `plain` has the segments that pixels depend on, and the resolution.
    """
    parts = FileParts(b"")
    exif, icc, lost = b"", [], []
    kept = [data[:2]]
    at = 2
    for segment in _segments(data):
        at = segment.end
        kind, body = segment.marker, segment.body
        if kind == 0xE1 and body.startswith(_EXIF):
            exif += body[len(_EXIF) :]
        elif kind == 0xE1 and body.startswith(_XMP):
            parts.keep(xmp=body[len(_XMP) :])
        elif kind == 0xE2 and body.startswith(_ICC) and len(body) > 14:
            icc.append(body[12:])
        elif kind == 0xE2 and body.startswith(_PICTURES):
            _note_pictures(parts, body[len(_PICTURES) :])
        elif kind == _COM or (_APP0 < kind <= 0xEF and kind != _APP14):
            lost.append(_name(kind, body))
        else:
            _take_structure(parts, kind, body)
            kept.append(data[segment.start : segment.end])
    parts.plain = b"".join((*kept, data[at:]))
    if exif:
        parts.keep(exif=exif)
    parts.icc = _profile(icc)
    if icc and parts.icc is None:
        parts.notices.append("its ICC profile is damaged and left out")
    if lost:
        parts.notices.append(f"not kept: {', '.join(dict.fromkeys(lost))}")
    return parts


def _segments(data: bytes) -> Iterator[_Segment]:
    """The segments before the first scan, as far as they are whole."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):
            at += 1  # fill bytes, or junk that decoders skip
            continue
        marker = data[at + 1]
        if marker == _SOS or marker == 0xD9:
            return
        if marker == 0x01 or 0xD0 <= marker <= _SOI:
            at += 2
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + size
        if size < 2 or end > len(data):
            return
        yield _Segment(marker, data[at + 4 : end], at, end)
        at = end


def _take_structure(parts: FileParts, kind: int, body: bytes) -> None:
    """Note what a segment that stays says of the samples, and of the resolution."""
    if kind in _FRAMES or kind == 0xF7:
        if body[:1] and body[0] != 8:
            parts.bits = body[0]
            parts.unsupported = f"is a {body[0]}-bit JPEG"
        elif kind in _KINDS:
            parts.unsupported = f"is {_KINDS[kind]}"
    elif kind == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 12:
        _take_density(parts, body)


def _take_density(parts: FileParts, body: bytes) -> None:
    unit, across, down = struct.unpack_from(">BHH", body, 7)
    if unit in (1, 2):
        scale = 1 if unit == 1 else 2.54
        parts.keep_dpi(across * scale, down * scale)
    elif across != down:
        parts.notices.append(f"its pixels of aspect {across}:{down} are taken as square")


def _profile(pieces: list[bytes]) -> bytes | None:
    """The ICC profile in its numbered pieces; None if one is missing."""
    ordered = sorted(pieces, key=lambda piece: piece[0])
    numbers = [piece[0] for piece in ordered]
    if not ordered or ordered[0][1] != len(ordered) or numbers != [*range(1, len(ordered) + 1)]:
        return None
    return b"".join(piece[2:] for piece in ordered)


def _note_pictures(parts: FileParts, body: bytes) -> None:
    """Note the pictures behind the first, by CIPA DC-007 (Multi-Picture Format)."""
    block = tiff_block.parse(body)
    for entry in block.entries(block.first) if block else ():
        values = block.integers(entry) if block and entry.tag == _NUMBER_OF_PICTURES else ()
        if values and values[0] > 1:
            parts.notices.append(f"only the first of {values[0]} frames is kept")
            return


def _name(marker: int, body: bytes) -> str:
    """A segment that is not kept, for people."""
    if marker == _COM:
        return "comment"
    if body.startswith(b"Photoshop 3.0\0"):
        return "IPTC and Photoshop tags"
    if body.startswith(_LONG_XMP):
        return "extended XMP"
    return f"APP{marker - _APP0}"
