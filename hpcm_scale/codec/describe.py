"""The verb `info` of the command line, on files: pictures, `.hpcm` files and models."""

from collections.abc import Iterator
from pathlib import Path

from hpcm_scale.codec import container
from hpcm_scale.codec.aim import quality_of
from hpcm_scale.codec.commands import SUFFIX, thousands
from hpcm_scale.codec.file_jobs import PIPE, contents_of, named
from hpcm_scale.codec.image_kinds import kind_of
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.codec.sections import unpack_metadata
from hpcm_scale.errors import printable
from hpcm_scale.weights.model_info import ModelInfo
from hpcm_scale.weights.stored_model import INDEX_SUFFIX, read_info
from hpcm_scale.weights.stored_model import SUFFIX as MODEL_SUFFIX

Fields = Iterator[tuple[str, str]]
"""(field, value) pairs, in the order they are shown."""


def describe(target: str) -> Fields:
    """Description of a picture, `.hpcm` or model file.

    Args:
        target: path, or - for standard input, which can be no model.

    Raises:
        HpcmError: if it is missing, damaged or none of the three.
    """
    if target.endswith((MODEL_SUFFIX, INDEX_SUFFIX)):
        fields = _of_model(read_info(Path(target)))
    else:
        contents = contents_of(target)
        if contents.startswith(container.MAGIC) or target.endswith(SUFFIX):
            fields = _of_coded(target, contents)
        elif target != PIPE and _is_safetensors(contents):
            fields = _of_model(read_info(Path(target)))
        else:
            fields = _of_picture(target, contents)
    return ((field, printable(value)) for field, value in fields)


def _of_coded(name: str, data: bytes) -> Fields:
    with named(name):
        parsed = container.read(data)
        metadata = None if parsed.metadata is None else unpack_metadata(parsed.metadata)
    header = parsed.header
    size = sum(map(len, parsed.payloads))
    pixels = header.width * header.height
    overhead = len(data) - size - sum(len(part or b"") for part in parsed.sections)
    yield "file", f"{name}, .hpcm version {container.VERSION}"
    yield "picture", f"{header.width}x{header.height}, 8-bit {'grey' if header.grey else 'RGB'}"
    yield "size", f"{thousands(len(data))} bytes, {8 * len(data) / pixels:.4f} bpp"
    scales = f", each in {header.scales} scales: progressive" if header.scales > 1 else ""
    yield "payload", f"{thousands(size)} bytes in {header.tiles} tiles{scales}"
    yield "alpha", _bytes(parsed.alpha)
    yield "ICC profile", _bytes(parsed.icc)
    tags = "none" if metadata is None else ", ".join(metadata.names()) or "none known"
    yield "tags", tags + (f", {_bytes(parsed.metadata)}" if parsed.metadata else "")
    yield "header and checks", f"{overhead} bytes"
    arithmetic = "exact, portable" if header.portable else "floating point (--fast), not portable"
    yield "arithmetic", arithmetic
    digest = header.pixel_digest
    yield "pixels", "to within a level" if digest is None else f"exact, CRC-32 {digest:08x}"
    if header.rate is not None:
        yield "quality", f"{quality_of(header.rate):.2f}"
    yield "model identity", header.identity.hex()


def _of_picture(name: str, contents: bytes) -> Fields:
    picture = read_picture(contents, name)
    yield "file", f"{name}, {kind_of(contents, name)}"
    yield "picture", f"{picture.width}x{picture.height}, {_pixels(picture)}"
    bits = 8 * len(contents) / (picture.width * picture.height)
    yield "size", f"{thousands(len(contents))} bytes, {bits:.4f} bpp"
    yield "alpha", "none" if picture.alpha is None else "yes"
    yield "ICC profile", _bytes(picture.icc)
    yield "tags", ", ".join(picture.metadata.names()) or "none"
    for notice in picture.notices:
        yield "note", notice


def _of_model(info: ModelInfo) -> Fields:
    yield "file", f"{info.path}, model {info.label}"
    yield "identity", f"{info.identity[:8]} (SHA-256 {info.identity})"
    yield "tables", info.tables_hash
    if info.config.rates:
        yield "lambda", f"every from {info.config.rates[0]:g} to {info.config.rates[-1]:g}"
    else:
        yield "lambda", "unknown" if info.lmbda is None else f"{info.lmbda:g}"
    wide = f", 14 in {', '.join(sorted(info.arithmetic.wide))}" * bool(info.arithmetic.wide)
    bits = "14" if info.arithmetic.version == 1 else f"8{wide}"
    yield "arithmetic", f"{info.arithmetic.version}, weights of {bits} bits"
    for field, value in info.config:
        yield f"config.{field}", str(value)
    for field, value in info.record.items():
        yield f"record.{field}", str(value)


def _is_safetensors(contents: bytes) -> bool:
    """True if bytes begin as a safetensors file: a length, then a JSON object of that length."""
    size = int.from_bytes(contents[:8], "little")
    return contents[8:9] == b"{" and 2 <= size <= len(contents) - 8


def _pixels(picture: Picture) -> str:
    return "grey" if picture.pixels.ndim == 2 else "RGB"


def _bytes(part: bytes | None) -> str:
    return "none" if part is None else f"{thousands(len(part))} bytes"
