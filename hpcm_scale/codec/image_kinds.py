"""Image formats that are read, told by their first bytes, and the names their files end in."""

from importlib import import_module

from PIL import features

from hpcm_scale.errors import DataError

_PLUGINS = {"HEIF": ("pillow_heif", "pillow-heif"), "JXL": ("pillow_jxl", "pillow-jxl-plugin")}
"""Formats that a plugin brings: its module and its name on PyPI."""
_FEATURES = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}
"""Formats that Pillow may have been built without."""
_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
    "JXL": (".jxl",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpx"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pam"),
    "BMP": (".bmp", ".dib"),
    "TGA": (".tga",),
    "QOI": (".qoi",),
}
READABLE = tuple(_SUFFIXES)
"""Pillow's names of the formats that are read, as far as it and its plugins are installed."""
SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""Endings of picture files, in lower case."""

_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"\0\0\0\x0cjP  ", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (0, b"\xff\x0a", "JXL"),
    (0, b"\0\0\0\x0cJXL ", "JXL"),
    (0, b"qoif", "QOI"),
    (-18, b"TRUEVISION-XFILE.\0", "TGA"),
)
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIF",
    b"heix": "HEIF",
    b"hevc": "HEIF",
    b"heim": "HEIF",
    b"heis": "HEIF",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}


def kind_of(contents: bytes, name: str) -> str:
    """Pillow's name of the format of a file.

    Args:
        contents: of the file.
        name: of the file: TGA, which begins as anything may, is told by how it ends.

    Raises:
        DataError: if it is not one of `READABLE`, or one that is not installed.
    """
    kind = _by_contents(contents)
    if kind is None and name.lower().endswith(_SUFFIXES["TGA"]) and contents:
        kind = "TGA"
    if kind is None:
        raise DataError(f"is not an image this program reads ({', '.join(READABLE)})")
    if kind in _PLUGINS:
        _load_plugin(kind)
    elif kind in _FEATURES and not features.check(_FEATURES[kind]):
        raise DataError(f"is a {kind} image, which this Pillow was built without")
    return kind


def is_picture(name: str) -> bool:
    """True if a file's name ends as those of pictures do."""
    return name.lower().endswith(SUFFIXES)


def _by_contents(contents: bytes) -> str | None:
    for at, magic, kind in _MAGIC:
        start = at if at >= 0 else max(0, len(contents) + at)
        if contents.startswith(magic, start):
            return kind
    if contents[4:8] == b"ftyp":
        brands = (contents[8:12], *(contents[i : i + 4] for i in range(16, 64, 4)))
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    if contents[:1] == b"P" and contents[1:2] in b"1234567Ff" and contents[2:3].isspace():
        return "PPM"
    return None


def _load_plugin(kind: str) -> None:
    """Import what reads a format, which registers itself with Pillow."""
    module, package = _PLUGINS[kind]
    try:
        plugin = import_module(module)
    except ImportError:
        raise DataError(
            f"is a {kind} image, which needs another package: pip install {package}"
        ) from None
    if kind == "HEIF":
        plugin.register_heif_opener()
