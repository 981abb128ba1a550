"""AVIF, HEIF, JPEG 2000 and JPEG XL: what Pillow's decoders do not say of their files.

Source: ISO/IEC 14496-12 (boxes), 23008-12 (HEIF), AV1-ISOBMFF, 15444-1 (JPEG 2000), 18181-1 and
-2 (JPEG XL).
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from hpcm_scale.codec.metadata.tags import FileParts

_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_EXIF_UUID = b"JpgTiffExif->JP2"
_WITHIN = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"jp2h": 0}
"""Boxes of boxes -> bytes before the first of them."""
_USUAL = {(1, 13), (1, 1), (2, 2), (1, 6), (5, 6), (6, 6)}
"""Primaries and transfer functions (ITU-T H.273) that everyone shows as sRGB."""
_DEPTH = 4


def read_avif(data: bytes) -> FileParts:
    """Bit depth and colour tags of an AVIF or HEIF file; the rest is left to Pillow."""
    parts = FileParts(data)
    for kind, body in _boxes(data):
        if kind == b"pixi" and len(body) > 5:
            parts.bits = max(parts.bits, *body[5 : 5 + body[4]])
        elif kind == b"av1C" and len(body) > 2 and body[2] & 0x40:
            parts.bits = max(parts.bits, 12 if body[2] & 0x20 else 10)
        elif kind == b"colr" and body[:4] == b"nclx" and len(body) >= 10:
            primaries, transfer = struct.unpack_from(">HH", body, 4)
            if (primaries, transfer) not in _USUAL and max(primaries, transfer) < 256:
                # The decoder gives RGB of full range.
                cicp = bytes((primaries, transfer, 0, 1))
                parts.metadata = replace(parts.metadata, cicp=cicp)
    return parts


def without_exif(data: bytes) -> bytes:
    """An AVIF file whose EXIF item is renamed, so that no decoder stumbles over it."""
    out = bytearray(data)
    at = data.find(b"infe")
    while at >= 0:
        item = data.find(b"Exif", at + 4, at + 20)
        if item >= 0:
            out[item : item + 4] = b"free"
        at = data.find(b"infe", at + 4)
    return bytes(out)


def read_jpeg2000(data: bytes) -> FileParts:
    """Bit depth, profile and tags of a JPEG 2000 file or codestream."""
    parts = FileParts(data)
    stream = data
    for kind, body in _boxes(data) if data[:4] == bytes((0, 0, 0, 12)) else ():
        if kind == b"jp2c":
            stream = body
        elif kind == b"colr" and body[:1] == b"\2":
            parts.icc = body[3:]
        elif kind == b"uuid" and body.startswith(_XMP_UUID):
            parts.keep(xmp=body[16:])
        elif kind == b"uuid" and body.startswith(_EXIF_UUID):
            parts.keep(exif=body[16:])
    if stream[:4] == b"\xff\x4f\xff\x51" and len(stream) > 42:
        parts.bits = max(8, (stream[42] & 0x7F) + 1)
    return parts


class JxlParts(NamedTuple):
    """A JPEG XL file taken apart."""

    parts: FileParts
    sides: tuple[int, int]
    """Width and height before the picture is turned."""


def read_jxl(data: bytes) -> JxlParts:
    """Size, bit depth and XMP packet of a JPEG XL file; the rest is left to its plugin.

    Raises:
        ValueError: if its header cannot be followed.
    """
    parts = FileParts(data)
    stream = data
    if data[:2] != b"\xff\x0a":
        pieces = []
        for kind, body in _boxes(data):
            if kind == b"jxlc":
                pieces = [body]
            elif kind == b"jxlp":
                pieces.append(body[4:])
            elif kind == b"xml ":
                parts.keep(xmp=body)
            elif kind == b"jumb" or (kind == b"brob" and body[:4] != b"Exif"):
                inner = kind if kind == b"jumb" else body[:4]
                parts.notices.append(f"not kept: {inner.decode('latin-1').strip()} box")
        stream = b"".join(pieces)
    bits = _Bits(stream[2:])
    sides = _jxl_sides(bits)
    depth, is_animated = _jxl_depth(bits)
    parts.bits = max(8, depth)
    if is_animated:
        parts.notices.append("only the first of its frames is kept")
    return JxlParts(parts, sides)


def _boxes(data: bytes, depth: int = _DEPTH) -> Iterator[tuple[bytes, bytes]]:
    """Every box and its body, those within `_WITHIN` too; stops where the sizes make no sense."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:
            size = len(data) - at
        if size < head or at + size > len(data):
            return
        body = data[at + head : at + size]
        if kind in _WITHIN and depth:
            yield from _boxes(body[_WITHIN[kind] :], depth - 1)
        else:
            yield kind, body
        at += size


class _Bits:
    """Bits of a JPEG XL codestream, lowest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:64], "little")
        self._left = 8 * min(len(data), 64)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("ends within its header")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return value

    def choice(self, *ways: tuple[int, int]) -> int:
        """One of four (constant, bits to add to it)."""
        constant, bits = ways[self.take(2)]
        return constant + self.take(bits)


def _jxl_depth(bits: _Bits) -> tuple[int, bool]:
    """Bits a channel (0 beside a preview) and whether frames follow, from behind the size."""
    if bits.take(1):  # everything in the header is as usual
        return 8, False
    is_animated = False
    if bits.take(1):  # extra fields
        bits.take(3)  # orientation, which the decoder applies
        if bits.take(1):
            _jxl_sides(bits)
        if bits.take(1):  # a preview, whose header is not followed
            return 0, False
        if is_animated := bool(bits.take(1)):
            bits.choice((100, 0), (1000, 0), (1, 10), (1, 30))
            bits.choice((1, 0), (1001, 0), (1, 8), (1, 10))
            bits.choice((0, 0), (0, 3), (0, 16), (0, 32))
            bits.take(1)
    if bits.take(1):  # floating point
        return bits.choice((32, 0), (16, 0), (24, 0), (1, 6)), is_animated
    return bits.choice((8, 0), (10, 0), (12, 0), (1, 6)), is_animated


_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
"""Width to height, by the header's code."""


def _jxl_sides(bits: _Bits) -> tuple[int, int]:
    """Width and height of a JPEG XL image."""
    is_small = bits.take(1)

    def side() -> int:
        if is_small:
            return 8 * (1 + bits.take(5))
        return bits.choice((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.take(3)
    if ratio == 0:
        return side(), height
    across, down = _RATIOS[ratio]
    return height * across // down, height
