"""Models of many rates: the dial, aims at sizes and qualities, the header, what is refused."""

import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hpcm_scale.codec import container
from hpcm_scale.codec.aim import (
    LARGEST_RATE,
    PSNR_TOLERANCE,
    SIZE_TOLERANCE,
    Aim,
    largest_within,
    quality_of,
    smallest_reaching,
)
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import picture_of
from hpcm_scale.errors import ArgumentError, BitstreamError, ConfigError, DataError
from hpcm_scale.units import psnr_of
from tests.codec.conftest import Run, photo, refused, save_tiny

RATES = (0.0018, 0.0067, 0.025, 0.0932)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many")
    save_tiny(path / "many.safetensors", lmbda=None, rates=RATES)
    return path


@pytest.fixture(scope="module")
def many(folder: Path) -> Codec:
    return Codec.load(folder / "many.safetensors")


PICTURE = photo(300, 260)


def test_quality_is_a_dial(many: Codec) -> None:
    sizes = [len(many.encode(PICTURE, quality)) for quality in (1, 20.5, 60, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.8 * sizes[-1]
    assert len(many.encode(PICTURE)) == len(many.encode(PICTURE, 50))


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("memory", [2 << 30, 1 << 20])
def test_what_the_encoder_saw_is_decoded(folder: Path, portable: bool, memory: int) -> None:
    codec = Codec.load(folder / "many.safetensors", portable=portable, memory=memory)
    picture = photo(700, 300)
    encoded = codec.compress(picture_of(picture), reconstruct=True, aim=Aim(quality=83.25))
    header = container.read(encoded.data).header
    assert header.rate == encoded.rate == Aim(quality=83.25).rate()
    assert (header.tile is not None) == (memory < 1 << 30)
    decoded = np.asarray(codec.decode(encoded.data))
    assert np.abs(encoded.reconstruction.astype(int) - decoded).max() <= 1


def test_a_size_is_met_from_below(many: Codec) -> None:
    low, high = (len(many.encode(PICTURE, quality)) for quality in (1, 100))
    for share in (0.1, 0.5, 0.9):
        size = round(low + share * (high - low))
        got = len(many.encode(PICTURE, size=size))
        assert (1 - SIZE_TOLERANCE) * size - 2 <= got <= size
        bpp = 8 * size / PICTURE[..., 0].size
        assert 8 * len(many.encode(PICTURE, bpp=bpp)) / PICTURE[..., 0].size <= bpp
    # More than the range has room for: all of it.
    assert len(many.encode(PICTURE, size=10 * high)) == high
    with pytest.raises(DataError, match=f"takes {low} bytes at the lowest rate, 30 are asked for"):
        many.encode(PICTURE, size=30)


def test_a_quality_in_db_is_met_from_above(many: Codec) -> None:
    def quality(data: bytes) -> float:
        return psnr_of(PICTURE, np.asarray(many.decode(data)))

    low, high = sorted(quality(many.encode(PICTURE, q)) for q in (1, 100))
    asked = (low + high) / 2
    got = quality(many.encode(PICTURE, psnr=asked))
    assert got >= asked - 0.005  # another run of g_s
    with pytest.raises(DataError, match="dB at the highest rate"):
        many.encode(PICTURE, psnr=high + 10)


@pytest.mark.parametrize(
    "aim",
    [
        {"quality": 0.5},
        {"quality": 100.1},
        {"quality": math.nan},
        {"size": 0},
        {"bpp": -1},
        {"psnr": math.inf},
        {"quality": 5, "size": 100},
    ],
)
def test_aims_out_of_range_are_refused(aim: dict) -> None:
    with pytest.raises(ConfigError):
        Aim(**aim)


def test_a_model_of_one_rate_has_no_dial(codec: Codec) -> None:
    for aim in ({"quality": 3}, {"size": 1000}, {"bpp": 1}, {"psnr": 30}):
        with pytest.raises(ConfigError, match="has one rate"):
            codec.encode(PICTURE, **aim)


def test_a_file_and_its_model_agree_on_having_rates(many: Codec, codec: Codec) -> None:
    for maker, rate, words in ((many, None, "has no rate"), (codec, 5, "has a rate")):
        parsed = container.read(maker.encode(PICTURE))
        altered = container.write(replace(parsed, header=replace(parsed.header, rate=rate)))
        with pytest.raises(BitstreamError, match=words):
            maker.decode(altered)


def test_another_rate_in_the_header_is_found(many: Codec) -> None:
    """The digest covers it: nothing else would tell a picture of the wrong gains."""
    data = bytearray(many.encode(PICTURE, 40))
    rate = container.read(bytes(data)).header.rate
    place = bytes(data).index(rate.to_bytes(2, "little"), 9)
    data[place] ^= 1
    data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "little")
    with pytest.raises(BitstreamError, match="other symbols"):
        many.decode(bytes(data))


@given(
    st.floats(0.2, 4), st.floats(0.05, 0.95), st.floats(10, 1e6), st.sampled_from([1, 100, 4000])
)
def test_the_search_finds_sizes_of_any_curve(
    power: float, share: float, base: float, coarse: int
) -> None:
    """Convex, concave, in steps: never above, and within the tolerance where a rate is."""
    tried = []

    def size(rate: int) -> float:
        tried.append(rate)
        return base * (1 + 50 * (rate // coarse * coarse / LARGEST_RATE) ** power)

    limit = base * (1 + 50 * share)
    rate = largest_within(size, limit, "x")
    assert size(rate) <= limit
    if size(rate) < (1 - SIZE_TOLERANCE) * limit:
        # There is none between.
        assert rate == LARGEST_RATE or size(rate + 1) > limit
    assert len(tried) < 40


@given(st.floats(20, 45), st.floats(0.3, 3))
def test_the_search_finds_qualities(least: float, power: float) -> None:
    def quality(rate: int) -> float:
        return 18 + 30 * (rate / LARGEST_RATE) ** power

    rate = smallest_reaching(quality, least, "x")
    assert quality(rate) >= least
    assert quality(rate) <= least + PSNR_TOLERANCE or quality(rate - 1) < least


def test_the_command_line(run: Run, picture: Path, folder: Path, tmp_path: Path) -> None:
    model, coded = folder / "many.safetensors", tmp_path / "a.hpcm"
    code, said, _ = run("encode", picture, "-o", coded, "-m", model, "-q", "72.5", "--verify")
    assert code == 0
    assert "quality 72.5" in said
    assert "quality  72.50" in run("info", coded)[1]
    assert run("decode", coded, "-m", model, "-o", tmp_path / "a.png")[0] == 0
    size = coded.stat().st_size
    assert run("encode", picture, "-o", coded, "-m", model, "--size", f"{size - 5}B")[0] == 0
    assert coded.stat().st_size <= size - 5
    refused(run("encode", picture, "-o", coded, "-m", model, "--size", "20"), "photo.png", "20 are")
    refused(run("encode", picture, "-o", coded, "-m", model, "-q", "0"), "--quality")
    refused(run("encode", picture, "-o", coded, "-m", model, "--psnr", "nan"), "--psnr")
    refused(run("encode", picture, "-o", coded, "-m", model, "-q", "5", "--bpp", "1"), "one of")
    refused(run("encode", picture, "-o", coded, "-m", "tiny", "-q", "5"), "has one rate")


@pytest.mark.parametrize(
    ("arguments", "options", "in_python", "in_the_command"),
    [
        ({"quality": 101}, "-q 101", "quality: 101 is not", "--quality: 101 is not"),
        ({"psnr": -2.0}, "--psnr -2", "psnr: -2.0 is not", "--psnr: -2.0 is not"),
        (
            {"quality": 5, "bpp": 1},
            "-q 5 --bpp 1",
            "quality and bpp: give one",
            "--quality and --bpp: give one",
        ),
        ({"engine": "jax"}, "--engine jax", "engine: 'jax' is not", "--engine: 'jax' is not"),
        (
            {"engine": "numpy", "device": "cuda"},
            "--engine numpy --device cuda",
            "engine and device: numpy runs",
            "--engine and --device: numpy runs",
        ),
        (
            {"portable": False, "exact_pixels": True},
            "--fast --exact-pixels",
            "exact_pixels: need",
            "--exact-pixels: need",
        ),
    ],
)
def test_an_error_names_the_argument_or_the_option(
    arguments: dict[str, Any],
    options: str,
    in_python: str,
    in_the_command: str,
    run: Run,
    picture: Path,
    folder: Path,
    tmp_path: Path,
) -> None:
    model = folder / "many.safetensors"
    aims = {name: value for name, value in arguments.items() if name in ("quality", "psnr", "bpp")}
    others = {name: value for name, value in arguments.items() if name not in aims}
    with pytest.raises(ArgumentError, match=f"^{in_python}"):
        Codec.load(model, **others).encode(photo(40, 50), **aims)
    result = run("encode", picture, "-o", tmp_path / "a.hpcm", "-m", model, *options.split())
    refused(result, f"hpcm-scale: {in_the_command}")
    assert not (tmp_path / "a.hpcm").exists()


def test_files_share_a_total_size(run: Run, folder: Path, tmp_path: Path) -> None:
    pictures = []
    for seed in range(3):
        pictures.append(tmp_path / f"{seed}.png")
        Image.fromarray(photo(130, 140, seed)).save(pictures[-1])
    out, model = tmp_path / "out/", folder / "many.safetensors"

    def total(*options: object) -> int:
        assert run("encode", *pictures, "-o", f"{out}/", "-m", model, "--force", *options)[0] == 0
        return sum(path.stat().st_size for path in out.iterdir())

    asked = (total("-q", 1) + total("-q", 100)) // 2
    got = total("--total-size", asked)
    assert (1 - SIZE_TOLERANCE) * asked - 6 <= got <= asked
    rates = {container.read(path.read_bytes()).header.rate for path in out.iterdir()}
    assert len(rates) == 1
    refused(
        run("encode", *pictures, "-o", f"{out}/", "-m", model, "--force", "--total-size", "50"),
        "--total-size",
    )


def test_a_model_of_many_rates_is_found_first(
    run: Run, picture: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(folder / "one.safetensors", seed=5)
    monkeypatch.setenv("HPCM_MODELS", str(folder))
    code, said, _ = run("encode", picture, "-o", tmp_path / "a.hpcm", "-q", "90")
    assert code == 0
    assert "quality 90.0" in said


def test_quality_of_a_rate() -> None:
    assert quality_of(0) == 1
    assert quality_of(LARGEST_RATE) == 100
    assert Aim(quality=quality_of(12345)).rate() == 12345
