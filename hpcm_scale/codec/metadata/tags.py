"""The metadata that a `.hpcm` file keeps, and what is found of them in a picture's file."""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from hpcm_scale.codec.metadata import tiff_block

LARGEST_BLOCK = 8 << 20
"""Most bytes of an EXIF block or XMP packet that is kept."""
LARGEST_DPI = 1e6
LARGEST_INTEGER = 2**31 - 1
"""Largest of PNG's integers."""


@dataclass(frozen=True)
class Metadata:
    """Tags of a picture, each None where the file has none."""

    exif: bytes | None = None
    """EXIF block as it stands, a TIFF structure, but for an orientation of 1."""
    xmp: bytes | None = None
    """XMP packet, UTF-8."""
    dpi: tuple[float, float] | None = None
    """Dots per inch, across and down."""
    gamma: int | None = None
    """PNG's gAMA: 100 000 times the image gamma."""
    chromaticities: tuple[int, ...] | None = None
    """PNG's cHRM: 100 000 times x and y of white, red, green and blue."""
    srgb: int | None = None
    """PNG's sRGB: rendering intent, 0 to 3."""
    cicp: bytes | None = None
    """PNG's cICP: primaries, transfer function, matrix and range by ITU-T H.273, one byte each."""

    def names(self) -> list[str]:
        """The names, as people know them, of the tags there are."""
        return [name for name, key in NAMES.items() if getattr(self, key) is not None]

    def without(self, *names: str) -> Self:
        """Copy without those tags, by their names."""
        return replace(self, **{NAMES[name]: None for name in names})


NAMES = {
    "EXIF": "exif",
    "XMP": "xmp",
    "dpi": "dpi",
    "gAMA": "gamma",
    "cHRM": "chromaticities",
    "sRGB": "srgb",
    "cICP": "cicp",
}
"""Tags by the names that people know them by -> fields of `Metadata`."""


def colour_chunks(metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    """The colour tags there are, as name and body of PNG's chunks."""
    if metadata.cicp is not None:
        yield b"cICP", metadata.cicp
    if metadata.srgb is not None:
        yield b"sRGB", bytes([metadata.srgb])
    if metadata.gamma is not None:
        yield b"gAMA", struct.pack(">I", metadata.gamma)
    if metadata.chromaticities is not None:
        yield b"cHRM", struct.pack(">8I", *metadata.chromaticities)


def with_colour_chunk(metadata: Metadata, kind: bytes, body: bytes) -> Metadata | None:
    """`metadata` with the colour tag in a PNG chunk; None if the chunk is none or not valid."""
    if kind == b"gAMA" and len(body) == 4:
        (gamma,) = struct.unpack(">I", body)
        return replace(metadata, gamma=gamma) if 0 < gamma <= LARGEST_INTEGER else None
    if kind == b"cHRM" and len(body) == 32:
        values = struct.unpack(">8I", body)
        return replace(metadata, chromaticities=values) if max(values) <= LARGEST_INTEGER else None
    if kind == b"sRGB" and len(body) == 1:
        return replace(metadata, srgb=body[0]) if body[0] < 4 else None
    if kind == b"cICP" and len(body) == 4:
        return replace(metadata, cicp=body)
    return None


@dataclass
class FileParts:
    """A picture's file taken apart: pixels for Pillow, and what is known of the rest."""

    plain: bytes
    """The file, without the metadata where its format was parsed here."""
    metadata: Metadata = field(default_factory=Metadata)
    icc: bytes | None = None
    notices: list[str] = field(default_factory=list)
    """Parts of the file that are not kept, for the user."""
    bits: int = 8
    """Bits a channel."""
    orientation: int | None = None
    """Orientation of the decoded pixels, 1 to 8; None if the EXIF block gives it."""
    unsupported: str | None = None
    """Reason to name if Pillow cannot read the file."""

    def keep(self, exif: bytes | None = None, xmp: bytes | None = None) -> None:
        """Take an EXIF block or an XMP packet as found in a file, or say why not."""
        if exif is not None:
            exif = exif.removeprefix(b"Exif\0\0")
            if len(exif) > LARGEST_BLOCK:
                self.notices.append(f"its EXIF block of {len(exif)} bytes is left out")
            elif tiff_block.parse(exif) is None:
                self.notices.append("its EXIF block is damaged and left out")
            else:
                self.metadata = replace(self.metadata, exif=exif)
        if xmp is not None:
            xmp = xmp.strip(b"\0")
            if len(xmp) > LARGEST_BLOCK:
                self.notices.append(f"its XMP packet of {len(xmp)} bytes is left out")
            elif not _is_text(xmp):
                self.notices.append("its XMP packet is no UTF-8 text and left out")
            elif xmp:
                self.metadata = replace(self.metadata, xmp=xmp)

    def keep_dpi(self, across: float, down: float) -> None:
        """Take a resolution in dots per inch, if it is one."""
        if is_resolution(across) and is_resolution(down):
            self.metadata = replace(self.metadata, dpi=(float(across), float(down)))

    def keep_info(self, info: Mapping[Any, Any]) -> None:
        """Take what Pillow's `info` says, for formats that are not parsed here."""
        self.icc = info.get("icc_profile") or self.icc
        exif, xmp, dpi = info.get("exif"), info.get("xmp"), info.get("dpi")
        self.keep(
            exif if isinstance(exif, bytes) and exif else None,
            xmp.encode() if isinstance(xmp, str) else xmp if isinstance(xmp, bytes) else None,
        )
        # Pillow makes up 72 dpi for a JPEG that has none.
        if isinstance(dpi, tuple) and len(dpi) == 2 and info.get("jfif_unit") != 0:
            self.keep_dpi(*map(_number, dpi))
        gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
        largest = LARGEST_INTEGER / 1e5
        if 0 < _number(gamma) < largest:
            self.metadata = replace(self.metadata, gamma=round(1e5 * _number(gamma)))
        if isinstance(chromaticity, tuple) and len(chromaticity) == 8:
            numbers = [_number(value) for value in chromaticity]
            if all(0 <= number < largest for number in numbers):
                values = tuple(round(1e5 * number) for number in numbers)
                self.metadata = replace(self.metadata, chromaticities=values)
        if info.get("srgb") in (0, 1, 2, 3):
            self.metadata = replace(self.metadata, srgb=info["srgb"])
        if info.get("comment"):
            self.notices.append("not kept: comment")


def is_resolution(dots: float) -> bool:
    """True for a number that can be dots per inch."""
    return math.isfinite(dots) and 0 < dots <= LARGEST_DPI


def fitting_profile(icc: bytes | None, grey: bool) -> tuple[bytes | None, str | None]:
    """An ICC profile if it is for such pixels, else None and why.

    A grey picture keeps a profile for RGB: it is written as RGB. What does not name its colour
    space in the place where profiles do is not judged.
    """
    if icc is None:
        return None, None
    space = icc[16:20]
    wrong = space in _SPACES and space != b"RGB " and not (grey and space == b"GRAY")
    if not wrong:
        return icc, None
    pixels = "grey" if grey else "RGB"
    reason = f"its ICC profile for {_SPACES[space]} does not fit {pixels} pixels and is left out"
    return None, reason


def is_rgb_profile(icc: bytes | None) -> bool:
    """True for an ICC profile of RGB pixels."""
    return icc is not None and icc[16:20] == b"RGB "


_SPACES = {b"RGB ": "RGB", b"GRAY": "grey", b"CMYK": "CMYK", b"Lab ": "Lab", b"YCbr": "YCbCr"}


def _number(value: Any) -> float:
    """A number as Pillow may give it; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, ArithmeticError):
        return math.nan


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False
