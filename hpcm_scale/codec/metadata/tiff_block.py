"""TIFF structures, which EXIF blocks are too: tags read by their bytes, never interpreted.

Nothing a file says is believed: entries that reach outside the data are left out, directories
that lead back to one already read are not entered.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
POINTERS = (EXIF_IFD, GPS_IFD, INTEROP_IFD)
"""Tags whose value is the place of another directory that is copied with them."""
XMP, ICC = 700, 34675
LARGEST_ENTRY = 1 << 20
"""Most bytes of a tag that is copied."""
STRUCTURAL = frozenset(
    (
        *range(254, 260),  # kind of subfile, sides, bits, compression
        *range(262, 267),  # photometry, thresholds, fill order
        *(273, *range(277, 282), 284, *range(288, 294), 297),  # strips, planes, fax options
        *(301, 317, *range(320, 326), 330, *range(332, 337)),  # predictor, colours, tiles, inks
        *(338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532),  # samples, JPEG, YCbCr
        *(XMP, ICC, 37724),  # kept elsewhere; Photoshop's layers
    )
)
"""Tags of IFD0 that describe how the pixels are stored: not metadata."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BIG_SIZES = _SIZES | {16: 8, 17: 8, 18: 8}
_ELEMENTS = _BIG_SIZES | {5: 4, 10: 4}
"""Bytes that byte order reverses, by kind; a rational is two numbers."""
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_DEPTH = 4


class Entry(NamedTuple):
    """A tag of a directory."""

    tag: int
    kind: int
    """TIFF's type."""
    number: int
    at: int
    """Place of its values in the data."""
    size: int
    """Their bytes."""


@dataclass(frozen=True)
class Block:
    """A TIFF structure in bytes."""

    data: bytes | bytearray
    order: str
    """"<" for little-endian, ">" for big-endian, as `struct` has it."""
    big: bool
    """BigTIFF: 64-bit places."""
    first: int
    """Place of the first directory."""

    def entries(self, at: int) -> list[Entry]:
        """The tags of the directory at a place, without those that reach outside the data."""
        counter, row, place = ("Q", 20, "Q") if self.big else ("H", 12, "I")
        head = struct.calcsize(counter)
        if not 0 < at <= len(self.data) - head:
            return []
        (count,) = struct.unpack_from(self.order + counter, self.data, at)
        found = []
        for i in range(min(count, (len(self.data) - at - head) // row)):
            start = at + head + i * row
            tag, kind = struct.unpack_from(self.order + "HH", self.data, start)
            (number,) = struct.unpack_from(self.order + place, self.data, start + 4)
            size = number * (_BIG_SIZES if self.big else _SIZES).get(kind, 0)
            values = start + 4 + struct.calcsize(place)
            if size > struct.calcsize(place):
                (values,) = struct.unpack_from(self.order + place, self.data, values)
            if size and values + size <= len(self.data):
                found.append(Entry(tag, kind, number, values, size))
        return found

    def integers(self, entry: Entry) -> tuple[int, ...]:
        """The values of a tag of integers; of another kind, none."""
        code = _INTEGERS.get(entry.kind)
        if code is None or entry.number > 1 << 16:
            return ()
        return struct.unpack_from(f"{self.order}{entry.number}{code}", self.data, entry.at)

    def rational(self, entry: Entry) -> float | None:
        """The first value of a tag of numbers; None if it has none."""
        if entry.kind in (5, 10):
            code = "II" if entry.kind == 5 else "ii"
            above, below = struct.unpack_from(self.order + code, self.data, entry.at)
            return above / below if below else None
        if entry.kind in (11, 12):
            return struct.unpack_from(self.order + "fd"[entry.kind - 11], self.data, entry.at)[0]
        values = self.integers(entry)
        return float(values[0]) if values else None


def parse(data: bytes | bytearray) -> Block | None:
    """The TIFF structure in `data`; None if it does not begin as one."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        return None
    (magic,) = struct.unpack_from(order + "H", data, 2)
    if magic == 42:
        (first,) = struct.unpack_from(order + "I", data, 4)
        return Block(data, order, False, first)
    if magic == 43 and len(data) >= 16:
        (first,) = struct.unpack_from(order + "Q", data, 8)
        return Block(data, order, True, first)
    return None


def orientation_entry(block: Block) -> Entry | None:
    """The tag of the first directory that says how the picture lies, if it says so rightly."""
    for entry in block.entries(block.first):
        if entry.tag == ORIENTATION:
            values = block.integers(entry)
            return entry if len(values) == 1 and 1 <= values[0] <= 8 else None
    return None


def orientation_of(data: bytes | None) -> int:
    """Orientation of the pixels beside an EXIF block, 1 to 8; 1 where it gives none."""
    block = parse(data) if data is not None else None
    entry = orientation_entry(block) if block is not None else None
    return block.integers(entry)[0] if block is not None and entry is not None else 1


def upright(data: bytes) -> bytes:
    """An EXIF block or TIFF file with an orientation of 1, changed in that one value alone."""
    block = parse(data)
    entry = orientation_entry(block) if block is not None else None
    if block is None or entry is None:
        return data
    out = bytearray(data)
    struct.pack_into(block.order + _INTEGERS[entry.kind], out, entry.at, 1)
    return bytes(out)


@dataclass(frozen=True)
class Tag:
    """A tag taken out of its place: raw values, or the directory it points to."""

    kind: int
    number: int
    value: "bytes | Directory"


Directory = dict[int, Tag]


def copied(block: Block) -> Directory:
    """The first directory, with those it points to.

    Tags of over `LARGEST_ENTRY` bytes are left out, and what goes beyond the data's own size:
    many tags may claim the same bytes.
    """
    left = len(block.data)

    def copy(at: int, above: tuple[int, ...]) -> Directory:
        nonlocal left
        out: Directory = {}
        for entry in block.entries(at):
            if entry.tag in POINTERS:
                places = block.integers(entry)
                if places and places[0] not in above and len(above) < _DEPTH:
                    inner = copy(places[0], (*above, places[0]))
                    if inner:
                        out[entry.tag] = Tag(4, 1, inner)
            elif entry.size <= min(LARGEST_ENTRY, left) and entry.kind in _SIZES:
                left -= entry.size
                raw = bytes(block.data[entry.at : entry.at + entry.size])
                out[entry.tag] = Tag(entry.kind, entry.number, raw)
        return out

    return copy(block.first, (block.first,))


def written(directory: Mapping[int, Tag], order: str, at: int) -> bytes:
    """A directory as classic TIFF has it, for a place `at` (even) in the file; no next one."""
    tags = sorted(directory.items())[:0xFFFF]
    out = bytearray(struct.pack(order + "H", len(tags)))
    values = at + 2 + 12 * len(tags) + 4
    tail = bytearray()
    for tag, (kind, count, raw) in _flattened(tags, order, values, tail):
        out += struct.pack(order + "HHI", tag, kind, count) + raw
    return bytes(out + bytes(4) + tail)


def _flattened(
    tags: list[tuple[int, Tag]], order: str, values: int, tail: bytearray
) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
    """Rows of tags: kind, count and 4 bytes each; values that do not fit go to `tail`."""
    for tag, found in tags:
        place = values + len(tail)
        if isinstance(found.value, bytes):
            if len(found.value) <= 4:
                yield tag, (found.kind, found.number, found.value.ljust(4, b"\0"))
                continue
            body = found.value
        else:
            body = written(found.value, order, place)
        tail += body + bytes(len(body) % 2)
        yield tag, (found.kind, found.number, struct.pack(order + "I", place))


def in_order(directory: Directory, order: str, wanted: str) -> Directory:
    """A directory with its values in the byte order `wanted`."""
    if order == wanted:
        return directory
    out: Directory = {}
    for tag, found in directory.items():
        if isinstance(found.value, bytes):
            size = _ELEMENTS[found.kind]
            swapped = b"".join(
                found.value[i : i + size][::-1] for i in range(0, len(found.value), size)
            )
            out[tag] = Tag(found.kind, found.number, swapped)
        else:
            out[tag] = Tag(found.kind, found.number, in_order(found.value, order, wanted))
    return out
