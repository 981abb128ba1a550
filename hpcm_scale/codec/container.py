"""The `.hpcm` container: header, sections and checks, as FORMAT.md specifies them.

Nothing here knows the network: bytes in, fields out, every field bounded before it is believed.
"""

import zlib
from dataclasses import dataclass

from hpcm_scale.errors import BitstreamError

MAGIC = b"HPC"
VERSION = 1
IDENTITY_BYTES = 4
LARGEST_SIDE = 65535
"""Pixels along a side."""
TILE_UNIT = 64
"""Sides of tiles are multiples of this many pixels."""

_PORTABLE, _GREY, _ICC, _ALPHA, _TILED, _METADATA, _RATE = (1 << bit for bit in range(7))
_MORE = 1 << 7
_PROGRESSIVE, _EXACT_PIXELS = 1, 2
_RATE_BYTES = 2
MOST_SCALES = 16
"""Payloads that a tile may have."""
_DIGEST_BYTES = _CHECKSUM_BYTES = 4
_VARINT_BYTES = 5


@dataclass(frozen=True)
class Header:
    """A file's description of its picture, and the digest to check when it has been decoded."""

    identity: bytes
    """First 4 bytes of the identity of the model that coded the picture."""
    width: int
    """Pixels, as the user gets them."""
    height: int
    digest: int = 0
    """CRC-32 of everything the picture is made of: header, sections and decoded symbols."""
    grey: bool = False
    """The picture has one channel; it was coded as three equal ones."""
    portable: bool = False
    """The entropy path ran in exact arithmetic, not in floating point."""
    tile: tuple[int, int] | None = None
    """Width and height of the tiles in pixels; None for one tile that holds the picture."""
    rate: int | None = None
    """0 to 65535 from the first rate of a model of many to its last; None for a model of one."""
    scales: int = 1
    """Payloads of each tile: one, or one for each scale of the model in a progressive file."""
    pixel_digest: int | None = None
    """CRC-32 of the decoded pixels, where g_s is in exact arithmetic; None where it is not."""

    @property
    def tiles(self) -> int:
        """Number of tiles that cover the picture."""
        if self.tile is None:
            return 1
        return -(-self.width // self.tile[0]) * -(-self.height // self.tile[1])


@dataclass(frozen=True)
class Container:
    """The parts of a `.hpcm` file."""

    header: Header
    payloads: tuple[bytes, ...]
    """Entropy-coded symbols of each tile, row by row; in a progressive file those of the smallest
    scale for every tile, then those of the next."""
    icc: bytes | None = None
    """Section with the deflated ICC profile."""
    alpha: bytes | None = None
    """Section with the alpha plane, a greyscale PNG of the picture's size."""
    metadata: bytes | None = None
    """Section with the deflated metadata boxes."""

    @property
    def sections(self) -> tuple[bytes | None, ...]:
        """Sections before the payloads, in the order of the file."""
        return (self.icc, self.alpha, self.metadata)


def digest_seed(container: Container) -> int:
    """CRC-32 of the fields before the digest and of the sections, which the digest continues."""
    value = zlib.crc32(_fields(container))
    for section in container.sections:
        value = zlib.crc32(section or b"", value)
    return value


def write(container: Container) -> bytes:
    """The bytes of a file."""
    parts = [s for s in (*container.sections, *container.payloads) if s is not None]
    out = bytearray(_fields(container))
    digests = (container.header.digest, container.header.pixel_digest)
    out += b"".join(d.to_bytes(_DIGEST_BYTES, "little") for d in digests if d is not None)
    out += b"".join(_varint(len(part)) for part in parts)
    out += b"".join(parts)
    return bytes(out + zlib.crc32(out).to_bytes(_CHECKSUM_BYTES, "little"))


def _fields(container: Container) -> bytes:
    """The header up to its digest."""
    header = container.header
    flags = (
        _PORTABLE * header.portable
        | _GREY * header.grey
        | _ICC * (container.icc is not None)
        | _ALPHA * (container.alpha is not None)
        | _METADATA * (container.metadata is not None)
        | _TILED * (header.tile is not None)
        | _RATE * (header.rate is not None)
        | _MORE * (header.scales > 1 or header.pixel_digest is not None)
    )
    progressive, exact = header.scales > 1, header.pixel_digest is not None
    more = [_PROGRESSIVE * progressive | _EXACT_PIXELS * exact] if flags & _MORE else []
    more += [header.scales] if progressive else []
    sides = [header.width, header.height, *(side // TILE_UNIT for side in header.tile or ())]
    rate = b"" if header.rate is None else header.rate.to_bytes(_RATE_BYTES, "little")
    start = MAGIC + bytes((VERSION, flags, *more)) + header.identity
    return start + b"".join(map(_varint, sides)) + rate


def read(data: bytes) -> Container:
    """The fields of a file, all of them checked.

    Raises:
        BitstreamError: if `data` is not a `.hpcm` file, or is truncated, damaged or has bytes to
            spare, or if a field is out of its bounds.
    """
    header, flagged, lengths, cursor = _read_fields(data)
    surplus = cursor.left - sum(lengths) - _CHECKSUM_BYTES
    if surplus < 0:
        hint = "; --preview shows its beginning" if header.scales > 1 else ""
        raise BitstreamError(f"is truncated: {len(data)} bytes of {len(data) - surplus}{hint}")
    if surplus > 0:
        raise BitstreamError(f"has {surplus} bytes after its end; remove them")
    parts = [bytes(cursor.take(length)) for length in lengths]
    if zlib.crc32(data[:-_CHECKSUM_BYTES]) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise BitstreamError("is damaged: its checksum does not match its contents")
    return _container(header, flagged, parts)


def read_start(data: bytes) -> Container:
    """The fields of a progressive file as far as it goes: payloads of those scales that are whole.

    Its end may be lacking, so no checksum tells whether the rest is right.

    Raises:
        BitstreamError: if `data` is not the beginning of a progressive `.hpcm` file, or ends before
            the payloads of the smallest scale do.
    """
    header, flagged, lengths, cursor = _read_fields(data)
    if header.scales == 1:
        raise BitstreamError("is not progressive: nothing of it can be shown before its end")
    parts = []
    for length in lengths:
        if length > cursor.left:
            break
        parts.append(bytes(cursor.take(length)))
    payloads = len(parts) - sum(flagged)
    if payloads < header.tiles:
        raise BitstreamError(f"is truncated before its smallest scale ends: {len(data)} bytes")
    return _container(
        header, flagged, parts[: sum(flagged) + payloads // header.tiles * header.tiles]
    )


def _container(header: Header, flagged: list[bool], parts: list[bytes]) -> Container:
    sections = sum(flagged)
    found = iter(parts[:sections])
    icc, alpha, metadata = (next(found) if is_there else None for is_there in flagged)
    return Container(header, tuple(parts[sections:]), icc, alpha, metadata)


def _read_fields(data: bytes) -> tuple[Header, list[bool], list[int], "_Cursor"]:
    """Header, which sections there are, lengths of all parts; the cursor stands before them."""
    cursor = _Cursor(data)
    if data[: len(MAGIC)] != MAGIC:
        raise BitstreamError("is not a .hpcm file (it does not begin with HPC)")
    cursor.take(len(MAGIC))
    version, flags = cursor.take(2)
    if version != VERSION:
        raise BitstreamError(
            f"is of .hpcm version {version}, this program reads version {VERSION}; "
            "it is damaged, or a newer hpcm_scale made it"
        )
    more = cursor.integer(1) if flags & _MORE else 0
    known = _PROGRESSIVE | (_EXACT_PIXELS if flags & _PORTABLE else 0)
    if flags & _MORE and (more & ~known or not more):
        raise BitstreamError(
            f"has flags {flags:#04x} {more:#04x}, which this version does not define; "
            "it is damaged, or a newer hpcm_scale made it"
        )
    scales = cursor.integer(1) if more & _PROGRESSIVE else 1
    if more & _PROGRESSIVE and not 2 <= scales <= MOST_SCALES:
        raise BitstreamError(f"has {scales} scales, outside 2..{MOST_SCALES}")
    identity = bytes(cursor.take(IDENTITY_BYTES))
    width, height = (cursor.varint(name, 1, LARGEST_SIDE) for name in ("width", "height"))
    tile = None
    if flags & _TILED:
        limit = LARGEST_SIDE // TILE_UNIT + 1
        columns, rows = (cursor.varint(name, 1, limit) for name in ("tile width", "tile height"))
        tile = (columns * TILE_UNIT, rows * TILE_UNIT)
    rate = cursor.integer(_RATE_BYTES) if flags & _RATE else None
    digest = cursor.integer(_DIGEST_BYTES)
    pixels = cursor.integer(_DIGEST_BYTES) if more & _EXACT_PIXELS else None
    grey, portable = bool(flags & _GREY), bool(flags & _PORTABLE)
    header = Header(identity, width, height, digest, grey, portable, tile, rate, scales, pixels)

    flagged = [bool(flags & bit) for bit in (_ICC, _ALPHA, _METADATA)]
    sections = sum(flagged)
    # Every tile has a length of at least one byte: a count beyond the file is refused before
    # anything of that size is made.
    count = sections + header.tiles * header.scales
    if count > cursor.left:
        raise BitstreamError(f"is truncated or damaged: {header.tiles} tiles in {len(data)} bytes")
    lengths = [cursor.varint("length", 0, 1 << 34) for _ in range(count)]
    return header, flagged, lengths, cursor


def _varint(value: int) -> bytes:
    """A length as unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise BitstreamError(f"is truncated: it ends after {len(self._data)} bytes")
        self._at += count
        return self._data[self._at - count : self._at]

    def integer(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def varint(self, name: str, least: int, most: int) -> int:
        value = 0
        for position in range(_VARINT_BYTES):
            (octet,) = self.take(1)
            value |= (octet & 0x7F) << (7 * position)
            if octet < 0x80:
                break
        else:
            raise BitstreamError(f"is damaged: its {name} is longer than {_VARINT_BYTES} bytes")
        if position and octet == 0:
            raise BitstreamError(f"is damaged: its {name} is not in its shortest form")
        if not least <= value <= most:
            raise BitstreamError(f"has a {name} of {value}, outside {least}..{most}")
        return value
