"""Pictures in every mode, format and mix of tags, through `encode` and `decode`."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.image_writer import picture_bytes
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.codec.metadata import Metadata
from tests.codec.pictures import (
    MODES,
    SRGB,
    XMP,
    chunk,
    chunks_of,
    exif_block,
    image_of,
    saved,
    with_chunks,
)
from tests.codec.test_formats import CONVERTED, EXAMPLES, of_picture, seen, written

tifffile = pytest.importorskip("tifffile", reason="tifffile, the independent reader")


@st.composite
def _tags(draw: st.DrawFn) -> Metadata:
    dots = st.sampled_from([72.0, 96.0, 300.0, 600.0])
    return Metadata(
        exif=draw(
            st.none() | st.builds(exif_block, st.none() | st.integers(1, 8), st.sampled_from("<>"))
        ),
        xmp=draw(st.none() | st.just(XMP)),
        dpi=draw(st.none() | st.tuples(dots, dots)),
    )


UPRIGHT_XMP = XMP.replace(b'="6"', b'="1"')
TAGGED = {"PNG", "JPEG", "WEBP", "TIFF", "AVIF", "JXL"}
ORIENTED = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False),
            7: (1, True), 8: (1, False)}  # fmt: skip
"""EXIF orientation -> quarter turns to the left, and a mirroring from left to right, in this order
(TIFF 6.0, section 8), that make the picture upright."""


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    turns, mirrored = ORIENTED[orientation]
    turned = np.rot90(pixels, turns)
    return turned[:, ::-1] if mirrored else turned


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., object]) -> Codec:
    """A codec that takes milliseconds."""
    path = tmp_path_factory.mktemp("formats") / "psi.safetensors"
    make_model(path, fusion="psi", latent_channels=8, name="psi")
    return Codec.load(path)


@given(
    st.sampled_from(MODES),
    st.sampled_from(sorted(TAGGED)),
    _tags(),
    st.sampled_from([None, SRGB]),
    st.sampled_from([".png", ".jpg", ".webp", ".tif"]),
    st.integers(0, 99),
)
@settings(max_examples=EXAMPLES // 25, suppress_health_check=[HealthCheck.filter_too_much])
def test_pixels_and_tags_come_through_encode_and_decode(
    quick: Codec, mode: str, kind: str, tags: Metadata, icc: bytes, ending: str, seed: int
) -> None:
    options = {
        "exif": tags.exif and b"Exif\0\0" + tags.exif,
        "xmp": tags.xmp,
        "dpi": tags.dpi,
        "icc_profile": icc,
    }
    if kind == "TIFF" and tags.xmp:
        options["tiffinfo"] = {700: tags.xmp}
        del options["exif"]
        tags = replace(tags, exif=None)
    if kind == "JXL":
        options = {name: options[name] for name in ("exif",)}
        tags, icc = replace(tags, xmp=None, dpi=None), None
    if kind in ("WEBP", "AVIF"):
        tags = replace(tags, dpi=None)
    if kind == "PNG":
        tags = replace(tags, xmp=None)  # Pillow writes none
    options = {name: value for name, value in options.items() if value is not None}
    file = written(mode, kind, 12, 17, seed, **options)
    picture = read_picture(file, f"a.{kind.lower()}")
    coded = quick.compress(picture)
    decoded = quick.decompress(coded.data).picture

    # The pixels: upright, and coded as those that another reader sees.
    orientation = 1
    if tags.exif is not None:
        orientation = _camera(tags.exif)[1]
    if (kind, mode) not in CONVERTED and kind != "JXL":
        expected = _upright(seen(kind, file), orientation)
        assert np.abs(of_picture(picture) - expected)[expected[..., 3] > 0].max(initial=0) <= 0.5
    again = quick.decompress(quick.compress(Picture(picture.pixels)).data).picture
    assert np.array_equal(decoded.pixels, again.pixels)
    assert (decoded.alpha is None) == (picture.alpha is None)
    if picture.alpha is not None:
        assert np.array_equal(decoded.alpha, picture.alpha)

    # The tags: as they were, but for an orientation that has been applied.
    assert decoded.metadata == picture.metadata
    assert (decoded.metadata.xmp is not None) == (tags.xmp is not None)
    if tags.xmp is not None:
        assert decoded.metadata.xmp == (XMP if orientation == 1 else UPRIGHT_XMP)
    if tags.dpi is not None:
        there = tags.dpi[::-1] if orientation > 4 else tags.dpi
        assert decoded.metadata.dpi == pytest.approx(there, rel=0.005)
    if tags.exif is not None:
        assert _camera(decoded.metadata.exif) == ("Test camera", 1)
    if picture.alpha is not None and ending == ".jpg":
        return
    output = picture_bytes(decoded, f"b{ending}")
    with Image.open(io.BytesIO(output)) as image:
        if tags.exif is not None:
            found = _tiff_camera(output) if ending == ".tif" else _camera(image.info["exif"])
            assert found == ("Test camera", 1)
        if tags.xmp is not None:
            assert image.info["xmp"].rstrip(b"\0") == decoded.metadata.xmp
        if decoded.metadata.dpi is not None and ending != ".webp":
            assert image.info["dpi"] == pytest.approx(decoded.metadata.dpi, abs=0.6)
    # And they come in again as they went out.
    back = read_picture(output, f"b{ending}")
    assert back.metadata.xmp == decoded.metadata.xmp
    grey_profile = decoded.icc is not None and decoded.icc[16:20] == b"GRAY"
    assert back.icc == (None if grey_profile and ending == ".webp" else decoded.icc)
    if ending != ".jpg":
        shown = of_picture(decoded)[..., 3] > 0
        assert np.array_equal(of_picture(back)[shown], of_picture(decoded)[shown])


def _camera(exif: bytes) -> tuple[str | None, int]:
    found = Image.Exif()
    found.load(exif)
    return found.get(0x0110), found.get(0x0112, 1)


def _tiff_camera(data: bytes) -> tuple[str | None, int]:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages[0].tags
        return tags.valueof(0x0110), tags.valueof(0x0112, 1)


def test_png_colour_tags_come_back(quick: Codec) -> None:
    tags = {
        b"gAMA": (45455).to_bytes(4, "big"),
        b"cHRM": b"".join(v.to_bytes(4, "big") for v in (31270, 32900, 68000, 32000, 26500, 69000,
                                                         15000, 6000)),
        b"sRGB": b"\1",
        b"cICP": bytes((9, 16, 0, 1)),
        b"eXIf": exif_block(3, ">"),
    }  # fmt: skip
    plain = saved(image_of("RGB", 9, 9), "PNG")
    file = with_chunks(plain, *(chunk(kind, body) for kind, body in tags.items()))
    decoded = quick.decompress(quick.compress(read_picture(file, "a.png")).data).picture
    found = chunks_of(picture_bytes(decoded, "b.png"))
    assert {kind: found.get(kind) for kind in tags} == tags | {b"eXIf": exif_block(1, ">")}
