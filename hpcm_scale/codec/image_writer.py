"""Pictures out: the image file that a name's extension asks for."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcm_scale.codec.images import Picture
from hpcm_scale.codec.metadata import Metadata, png, tags, tiff
from hpcm_scale.codec.metadata.jpeg import LARGEST_SEGMENT
from hpcm_scale.errors import DataError

WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".ppm": ("PPM", {}),
    ".pgm": ("PPM", {}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
"""Pillow's format and options for each extension; lossless where the format can be."""
_HOLDS = {
    "PNG": {*tags.NAMES},
    "JPEG": {"EXIF", "XMP", "dpi"},
    "WEBP": {"EXIF", "XMP"},
    "TIFF": {"EXIF", "XMP", "dpi"},
    "BMP": {"dpi"},
    "PPM": set(),
}
"""Names of the tags that each format has a place for."""
_JPEG_BLOCKS = {"EXIF": LARGEST_SEGMENT - 6, "XMP": LARGEST_SEGMENT - 29}
"""Most bytes of what JPEG holds in one segment."""
_LARGEST_DENSITY = 65535


def extension_writer(name: str) -> tuple[str, dict[str, Any]]:
    """Pillow's format and options for a file name's extension.

    Raises:
        DataError: for an extension that is not one of `WRITERS`.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in WRITERS:
        raise DataError(f"{name}: extension {suffix!r} is not one of {', '.join(WRITERS)}")
    return WRITERS[suffix]


def picture_bytes(picture: Picture, name: str) -> bytes:
    """The picture as an image file in the format of `name`'s extension, with the tags it can hold.

    Raises:
        DataError: if that format is unknown or cannot hold the picture.
    """
    kind, options = extension_writer(name)
    if picture.alpha is not None and kind not in ("PNG", "WEBP", "TIFF"):
        raise DataError(f"{name}: {kind} has no alpha, which this picture has; write .png or .webp")
    held, _ = _held(picture.metadata, kind)
    options = options | _options(held, kind)
    if _holds_profile(picture, kind):
        options["icc_profile"] = picture.icc
    out = io.BytesIO()
    bare = replace(picture, icc=options.get("icc_profile"), metadata=Metadata())
    try:
        bare.to_pil().save(out, kind, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {kind} cannot hold this picture ({error})") from None
    data = out.getvalue()
    if kind == "PNG":
        return png.tagged(data, held)
    return tiff.tagged(data, held) if kind == "TIFF" else data


def losses(picture: Picture, name: str) -> list[str]:
    """Notes on a picture's tags that the format of `name`'s extension has no place for."""
    kind, _ = extension_writer(name)
    _, lost = _held(picture.metadata, kind)
    if picture.icc is not None and not _holds_profile(picture, kind):
        lost.append("ICC profile")
    return [f"{kind} has no place for its {', '.join(lost)}"] if lost else []


def _holds_profile(picture: Picture, kind: str) -> bool:
    """True if a format has a place for the picture's profile; WebP's pixels are always RGB."""
    if picture.icc is None or kind in ("PPM", "BMP"):
        return False
    return kind != "WEBP" or picture.icc[16:20] != b"GRAY"


def _held(metadata: Metadata, kind: str) -> tuple[Metadata, list[str]]:
    """The tags that a format holds, and the names of the others."""
    lost = [name for name in metadata.names() if name not in _HOLDS[kind]]
    if kind == "JPEG":
        sizes = {"EXIF": len(metadata.exif or b""), "XMP": len(metadata.xmp or b"")}
        lost += [name for name, size in sizes.items() if size > _JPEG_BLOCKS[name]]
        if metadata.dpi and not all(0.5 < dots <= _LARGEST_DENSITY for dots in metadata.dpi):
            lost.append("dpi")
    return metadata.without(*lost), lost


def _options(held: Metadata, kind: str) -> dict[str, Any]:
    """Pillow's options that write the tags, where they are not put in afterwards."""
    options: dict[str, Any] = {}
    if held.dpi is not None and kind != "PNG":
        options["dpi"] = held.dpi
    if kind in ("JPEG", "WEBP"):
        if held.exif is not None:
            options["exif"] = b"Exif\0\0" + held.exif
        if held.xmp is not None:
            options["xmp"] = held.xmp
    return options
