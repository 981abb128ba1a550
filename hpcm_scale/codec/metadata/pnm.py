"""Netpbm's raw formats of 8 and 16 bits: PGM, PPM and PAM. Source: netpbm.sourceforge.net/doc.

Read here because Pillow takes samples one by one in Python where their maximum is not 255, and
does not read PAM.
"""

import re
from typing import NamedTuple

import numpy as np

MAGIC = (b"P5", b"P6", b"P7")
_PLAIN = re.compile(rb"P[56]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d{1,10})" + rb"\s")
_LARGEST_HEADER = 4096


class Samples(NamedTuple):
    """Samples of a decoded file, and their range."""

    values: np.ndarray
    """(H, W, 1 to 4) uint8 or uint16: grey, grey and alpha, RGB, or RGB and alpha."""
    highest: int
    """The value of white."""


class Header(NamedTuple):
    """Fields before the samples."""

    width: int
    height: int
    channels: int
    highest: int
    size: int
    """Length of the header in bytes."""


def header(data: bytes) -> Header:
    """The header of a file that begins with one of `MAGIC`.

    Raises:
        ValueError: if it is damaged.
    """
    found = _pam_header(data) if data[:2] == b"P7" else _plain_header(data)
    if min(found.width, found.height) < 1 or not 1 <= found.channels <= 4:
        raise ValueError("it has no pixels, or not 1 to 4 channels")
    if not 0 < found.highest < 65536:
        raise ValueError(f"its maximum of {found.highest} is not within 1 and 65535")
    return found


def samples(data: bytes) -> Samples:
    """The pixels of a file that begins with one of `MAGIC`.

    Raises:
        ValueError: if it is damaged.
    """
    width, height, channels, highest, size = header(data)
    kind = np.dtype(np.uint8) if highest < 256 else np.dtype(">u2")
    count = width * height * channels
    if len(data) < size + count * kind.itemsize:
        raise ValueError("it ends before its last pixel")
    values = np.frombuffer(data, kind, count, size).reshape(height, width, channels)
    return Samples(values, highest)


def _plain_header(data: bytes) -> Header:
    """Header of P5 and P6: three numbers, with comments between them."""
    found = _PLAIN.match(data)
    if found is None:
        raise ValueError("its header is not a width, a height and a maximum")
    width, height, highest = map(int, found.groups())
    return Header(width, height, 1 if data[:2] == b"P5" else 3, highest, found.end())


def _pam_header(data: bytes) -> Header:
    """Header of P7: lines of a name and a value."""
    end = data.find(b"ENDHDR\n", 0, _LARGEST_HEADER)
    if end < 0:
        raise ValueError("its header has no end")
    fields: dict[bytes, int] = {}
    for line in data[:end].split(b"\n")[1:]:
        name, _, value = line.strip().partition(b" ")
        if name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"):
            fields[name] = int(value[:10])
    try:
        sides = fields[b"WIDTH"], fields[b"HEIGHT"], fields[b"DEPTH"], fields[b"MAXVAL"]
    except KeyError as error:
        raise ValueError(f"its header has no {error.args[0].decode()}") from None
    return Header(*sides, end + 7)
