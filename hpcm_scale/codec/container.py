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

_PORTABLE, _GREY, _ICC, _ALPHA, _TILED, _METADATA = (1 << bit for bit in range(6))
_DEPTH_SHIFT = 6
_CHECKSUM_BYTES = 4
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

    @property
    def tiles(self) -> int:
        """Number of tiles that cover the picture."""
        if self.tile is None:
            return 1
        return -(-self.width // self.tile[0]) * -(-self.height // self.tile[1])


@dataclass(frozen=True)
class Container:
    """A parsed file."""

    header: Header
    payloads: tuple[bytes, ...]
    """Entropy-coded symbols of each tile, row by row."""
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
    out += container.header.digest.to_bytes(4, "little")
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
    )
    sides = [header.width, header.height, *(side // TILE_UNIT for side in header.tile or ())]
    return MAGIC + bytes((VERSION, flags)) + header.identity + b"".join(map(_varint, sides))


def read(data: bytes) -> Container:
    """The fields of a file, all of them checked.

    Raises:
        BitstreamError: if `data` is not a `.hpcm` file, or is truncated, damaged or has bytes to
            spare, or if a field is out of its bounds.
    """
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
    if flags >> _DEPTH_SHIFT:
        raise BitstreamError(
            f"has flags {flags:#04x}, a bit depth this version does not define; "
            "it is damaged, or a newer hpcm_scale made it"
        )
    identity = bytes(cursor.take(IDENTITY_BYTES))
    width, height = (cursor.varint(name, 1, LARGEST_SIDE) for name in ("width", "height"))
    tile = None
    if flags & _TILED:
        limit = LARGEST_SIDE // TILE_UNIT + 1
        columns, rows = (cursor.varint(name, 1, limit) for name in ("tile width", "tile height"))
        tile = (columns * TILE_UNIT, rows * TILE_UNIT)
    digest = int.from_bytes(cursor.take(4), "little")
    grey, portable = bool(flags & _GREY), bool(flags & _PORTABLE)
    header = Header(identity, width, height, digest, grey, portable, tile)

    flagged = [bool(flags & bit) for bit in (_ICC, _ALPHA, _METADATA)]
    sections = sum(flagged)
    # Every tile has a length of at least one byte: a count beyond the file is refused before
    # anything of that size is made.
    if sections + header.tiles > cursor.left:
        raise BitstreamError(f"is truncated or damaged: {header.tiles} tiles in {len(data)} bytes")
    lengths = [cursor.varint("length", 0, 1 << 34) for _ in range(sections + header.tiles)]
    surplus = cursor.left - sum(lengths) - _CHECKSUM_BYTES
    if surplus < 0:
        raise BitstreamError(f"is truncated: {len(data)} bytes of {len(data) - surplus}")
    if surplus > 0:
        raise BitstreamError(f"has {surplus} bytes after its end; remove them")
    parts = [bytes(cursor.take(length)) for length in lengths]
    if zlib.crc32(data[:-_CHECKSUM_BYTES]) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise BitstreamError("is damaged: its checksum does not match its contents")
    found = iter(parts[:sections])
    icc, alpha, metadata = (next(found) if is_there else None for is_there in flagged)
    return Container(header, tuple(parts[sections:]), icc, alpha, metadata)


def _varint(value: int) -> bytes:
    """Unsigned LEB128."""
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
