"""PNG: chunks in and out. Source: the PNG specification, third edition (W3C, 2025).

A chunk that pixels depend on must pass its CRC; one that they do not is left out if it fails, as
other decoders do.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from hpcm_scale.codec.metadata.tags import (
    LARGEST_BLOCK,
    LARGEST_INTEGER,
    FileParts,
    Metadata,
    colour_chunks,
    with_colour_chunk,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_PROFILE = 64 << 20
"""Most bytes of an inflated ICC profile."""
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_XMP = b"XML:com.adobe.xmp"
_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
"""Keywords under which ImageMagick hid EXIF blocks before PNG had a chunk for them."""
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


class PngParts(NamedTuple):
    """A PNG file taken apart."""

    parts: FileParts
    """`plain` is a PNG of the pixels and their palette alone."""
    colour_type: int
    depth: int
    """Bits a sample."""
    transparent: bytes | None
    """tRNS, where it names one transparent colour; a palette's is in `plain`."""


class _Chunk(NamedTuple):
    kind: bytes
    body: memoryview
    is_sound: bool
    """True if its CRC is right."""


def read(data: bytes) -> PngParts:
    """Take a PNG file apart.

    Raises:
        ValueError: if a chunk that pixels depend on is cut off or fails its CRC.
    """
    chunks = []
    lost: list[str] = []
    frames = 1
    for chunk in _chunks(data):
        if chunk.kind in _PIXELS and not chunk.is_sound:
            raise ValueError(f"its {chunk.kind.decode()} chunk fails its CRC")
        if not chunk.is_sound:
            lost.append(f"{_text(chunk.kind)} (damaged)")
        elif chunk.kind == b"acTL" and len(chunk.body) == 8:
            (frames,) = struct.unpack_from(">I", chunk.body)
        elif chunk.kind not in _ANIMATION:
            chunks.append(chunk)
    if not chunks or chunks[0].kind != b"IHDR" or len(chunks[0].body) != 13:
        raise ValueError("it does not begin with a header")
    colour_type = chunks[0].body[9]
    kept = [*_PIXELS, b"tRNS"] if colour_type == PALETTE else [*_PIXELS]
    plain = SIGNATURE + b"".join(_chunk(c.kind, c.body) for c in chunks if c.kind in kept)
    parts = FileParts(plain, bits=max(8, chunks[0].body[8]))
    if frames > 1:
        parts.notices.append(f"only the first of {frames} frames is kept")
    transparent = None
    for chunk in chunks:
        if chunk.kind == b"tRNS" and colour_type != PALETTE:
            transparent = bytes(chunk.body)
        elif chunk.kind not in kept and not _take(parts, chunk):
            lost.append(_name(chunk))
    if lost:
        parts.notices.append(f"not kept: {', '.join(dict.fromkeys(lost))}")
    return PngParts(parts, colour_type, chunks[0].body[8], transparent)


def tagged(png: bytes, tags: Metadata) -> bytes:
    """A PNG file with chunks for the tags, put behind its header.

    Args:
        png: without such chunks.
    """
    chunks = [_chunk(kind, body) for kind, body in colour_chunks(tags)]
    if tags.dpi is not None:
        per_metre = [min(round(dots / 0.0254), LARGEST_INTEGER) for dots in tags.dpi]
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if tags.exif is not None:
        chunks.append(_chunk(b"eXIf", tags.exif))
    if tags.xmp is not None:
        chunks.append(_chunk(b"iTXt", _XMP + bytes(5) + tags.xmp))
    header = len(SIGNATURE) + 25
    return png[:header] + b"".join(chunks) + png[header:]


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """The chunks up to the end of the picture, or of the file if it stops before."""
    view = memoryview(data)
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size
        if end > len(data):
            if kind in _PIXELS:
                raise ValueError(f"its {_text(kind)} chunk is cut off")
            return
        body = view[at + 8 : end - 4]
        (crc,) = struct.unpack_from(">I", data, end - 4)
        yield _Chunk(kind, body, zlib.crc32(body, zlib.crc32(kind)) == crc)
        if kind == b"IEND":
            return
        at = end


def _take(parts: FileParts, chunk: _Chunk) -> bool:
    """Keep what a chunk says; False if there is no place for it."""
    kind, body = chunk.kind, bytes(chunk.body)
    if kind == b"eXIf":
        parts.keep(exif=body)
    elif kind == b"iCCP":
        _take_profile(parts, body)
    elif kind == b"pHYs" and len(body) == 9:
        across, down, unit = struct.unpack(">IIB", body)
        if unit == 1:
            parts.keep_dpi(across * 0.0254, down * 0.0254)
        elif across != down:
            parts.notices.append(f"its pixels of aspect {across}:{down} are taken as square")
    elif kind in (b"iTXt", b"zTXt", b"tEXt"):
        return _take_text(parts, kind, body)
    else:
        marked = with_colour_chunk(parts.metadata, kind, body)
        parts.metadata = marked or parts.metadata
        return marked is not None
    return True


def _take_profile(parts: FileParts, body: bytes) -> None:
    _, _, rest = body.partition(b"\0")
    icc = _inflated(rest[1:], LARGEST_PROFILE) if rest[:1] == b"\0" else None
    if icc is None:
        parts.notices.append("its ICC profile is damaged and left out")
    parts.icc = icc


def _take_text(parts: FileParts, kind: bytes, body: bytes) -> bool:
    """Keep the XMP packet or EXIF block in a text chunk; False if it is another text."""
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iTXt" and keyword == _XMP and len(rest) > 2:
        compressed, text = rest[0] == 1, rest[2:].split(b"\0", 2)[-1]
        packet = _inflated(text, LARGEST_BLOCK) if compressed else text
        if packet is None:
            return False
        parts.keep(xmp=packet)
        return True
    if keyword in _RAW_EXIF and parts.metadata.exif is None:
        text = _inflated(rest[1:], 2 * LARGEST_BLOCK + 4096) if kind == b"zTXt" else rest
        block = _unhexed(text or b"")
        if block is not None and block.startswith(b"Exif\0\0"):
            parts.keep(exif=block)
            return True
    return False


def _unhexed(text: bytes) -> bytes | None:
    """A block as ImageMagick writes it: a name, a length, hexadecimal lines."""
    try:
        _, _, digits = text.split(maxsplit=2)
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return None


def _inflated(data: bytes, most: int) -> bytes | None:
    """A zlib stream inflated; None if it is damaged or larger than `most` bytes."""
    inflate = zlib.decompressobj()
    try:
        out = inflate.decompress(data, most)
    except zlib.error:
        return None
    return out if inflate.eof else None


def _chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    crc = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", crc)))


def _name(chunk: _Chunk) -> str:
    """A chunk that is not kept, for people: its kind, and a text's keyword."""
    if chunk.kind in (b"iTXt", b"zTXt", b"tEXt"):
        keyword = bytes(chunk.body[:80]).partition(b"\0")[0]
        return f"{_text(chunk.kind)} {keyword.decode('latin-1')}"
    return _text(chunk.kind)


def _text(kind: bytes) -> str:
    return kind.decode("latin-1")
