"""Decoding no further than the crop, and refusing what must not be decoded."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpcm_scale.data.augment import Crop
from hpcm_scale.data.images import BadImage, decode_crop, decode_whole, open_image, shorten

WIDTH, HEIGHT = 75, 301
FILES = {
    "png": ("PNG", {}),
    "grey png": ("PNG", {"mode": "L"}),
    "palette png": ("PNG", {"mode": "P"}),
    "webp": ("WEBP", {"lossless": True}),
    "jpeg 4:4:4": ("JPEG", {"subsampling": 0}),
    "jpeg 4:2:2": ("JPEG", {"subsampling": 1}),
    "jpeg 4:2:0": ("JPEG", {"subsampling": 2}),
    "progressive jpeg": ("JPEG", {"subsampling": 2, "progressive": True}),
    "restarting jpeg": ("JPEG", {"subsampling": 2, "restart_marker_rows": 1}),
    "optimised jpeg": ("JPEG", {"quality": 30, "optimize": True}),
    "grey jpeg": ("JPEG", {"mode": "L"}),
    "phone's jpeg": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (50, 40))]}),
    "jpeg with comment": ("JPEG", {"comment": b"\xff\xc0" * 40}),
}


@pytest.fixture(scope="module")
def files(make_picture, encode) -> dict[str, bytes]:
    made = {}
    for name, (file_format, options) in FILES.items():
        options = dict(options)
        image = make_picture(5, WIDTH, HEIGHT).convert(options.pop("mode", "RGB"))
        made[name] = encode(image, file_format, **options)
    return made


@given(st.sampled_from(list(FILES)), st.data())
@settings(deadline=None, max_examples=150)
def test_a_crop_is_bit_for_bit_that_of_the_whole_image(files, name: str, data: st.DataObject):
    side = data.draw(st.integers(1, WIDTH))
    left = data.draw(st.integers(0, WIDTH - side))
    top = data.draw(st.integers(0, HEIGHT - side))
    mirrored = data.draw(st.booleans())
    crop = decode_crop(files[name], WIDTH, HEIGHT, Crop(left, top, side, mirrored))
    expected = decode_whole(files[name])[:, top : top + side, left : left + side]
    assert crop.flags.c_contiguous
    assert (crop == (expected[:, :, ::-1] if mirrored else expected)).all()


@pytest.mark.parametrize("name", [name for name in FILES if name != "webp"])
def test_jpeg_and_png_are_decoded_in_part_only(files, name: str):
    short = shorten(files[name], open_image(files[name]), 40)
    assert short is not None
    with Image.open(BytesIO(short)) as image:
        assert 40 <= image.height <= 96
        assert image.width == WIDTH


@pytest.mark.parametrize("side", [11_000, 60_000, 2**31 - 1])
def test_a_pixel_bomb_is_refused_before_decoding(bomb, side: int):
    with pytest.raises(BadImage) as caught:
        open_image(bomb(side, side), max_pixels=100_000_000)
    assert caught.value.kind in ("oversized", "corrupt")
    assert side > 60_000 or caught.value.kind == "oversized"


@given(st.sampled_from(list(FILES)), st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_files_decode_to_something_or_to_a_bad_image(files, name, data: st.DataObject):
    content = bytearray(files[name][: data.draw(st.integers(0, len(files[name])))])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        crop = decode_crop(bytes(content), WIDTH, HEIGHT, Crop(0, 30, 64, False))
    except BadImage:
        return
    assert crop.shape == (3, 64, 64)


def test_an_image_of_another_size_than_the_manifest_says_is_bad(make_picture, encode):
    with pytest.raises(BadImage, match="40x32, the manifest says 40x33"):
        decode_crop(encode(make_picture(0), "PNG"), 40, 33, Crop(0, 0, 8, False))


def test_pixels_are_exact_through_the_lossless_formats(make_picture, encode):
    expected = np.asarray(make_picture(1)).transpose(2, 0, 1)
    for file_format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})):
        assert (decode_whole(encode(make_picture(1), file_format, **options)) == expected).all()
