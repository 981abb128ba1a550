"""Progressive files: a payload for each scale, previews of their beginnings, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.errors import BitstreamError
from hpcm_scale.units import psnr_of
from tests.codec.conftest import Run, photo, refused


@pytest.fixture(params=["torch", "numpy"])
def coder(models: Path, request: pytest.FixtureRequest) -> Codec:
    return Codec.load(models / "tiny.safetensors", engine=request.param)


@pytest.mark.parametrize("size", [(300, 260), (1, 1), (16, 400)])
def test_the_whole_file_is_the_same_picture(coder: Codec, size: tuple[int, int]) -> None:
    picture = photo(*size)
    plain, progressive = coder.encode(picture), coder.encode(picture, progressive=True)
    header = container.read(progressive).header
    assert header.scales == 3
    # Lengths of two more payloads, and what two more states of the coder leave unused.
    assert len(progressive) - len(plain) <= 2 + 12
    ours, theirs = (np.asarray(coder.decode(data)).astype(int) for data in (plain, progressive))
    assert np.array_equal(ours, theirs)


def test_scales_of_tiles_come_scale_by_scale(models: Path) -> None:
    coder = Codec.load(models / "tiny.safetensors", memory=1 << 20)
    picture = photo(600, 300)
    data = coder.encode(picture, progressive=True)
    parsed = container.read(data)
    assert parsed.header.tiles > 1
    assert len(parsed.payloads) == 3 * parsed.header.tiles
    assert coder.decode(data).size == (300, 600)
    # Cut where the last scale of any tile begins, all of the picture has a preview.
    last = sum(map(len, parsed.payloads[-parsed.header.tiles :]))
    beginning = data[: len(data) - 4 - last]
    shown = np.asarray(coder.preview(beginning))
    assert np.array_equal(shown, np.asarray(coder.preview(data)))


def test_a_preview_is_between_nothing_and_the_whole(models: Path) -> None:
    coder = Codec.load(models / "tiny.safetensors")
    picture = photo(256, 256)
    data = coder.encode(picture, progressive=True)
    whole = np.asarray(coder.decode(data))
    sizes = [len(payload) for payload in container.read(data).payloads]
    head = len(data) - 4 - sum(sizes)
    previews = []
    for scales in (1, 2):
        beginning = data[: head + sum(sizes[:scales])]
        previews.append(psnr_of(whole, np.asarray(coder.preview(beginning))))
        # A byte less is a scale less.
        if scales == 2:
            shorter = coder.preview(beginning[:-1])
            assert psnr_of(whole, np.asarray(shorter)) == previews[0]
    assert previews[0] < previews[1] < np.inf
    with pytest.raises(BitstreamError, match="before its smallest scale ends"):
        coder.preview(data[: head + sizes[0] - 1])


def test_what_is_not_progressive_has_no_preview(codec: Codec) -> None:
    with pytest.raises(BitstreamError, match="not progressive"):
        codec.preview(codec.encode(photo(64, 64)))


def _is_shown(codec: Codec, data: bytes) -> bool:
    """Whether some bytes give a preview; they may be refused, and nothing else may happen."""
    try:
        codec.preview(data)
    except BitstreamError:
        return False
    return True


def test_a_file_cut_short_is_never_taken_for_the_whole(codec: Codec) -> None:
    data = codec.encode(photo(64, 64), progressive=True)
    shown = []
    for end in range(len(data)):
        with pytest.raises(BitstreamError):
            codec.decode(data[:end])
        shown.append(_is_shown(codec, data[:end]))
    # A preview from some length on, and from every longer beginning.
    assert shown == sorted(shown)
    assert 0 < sum(shown) < len(data)


def test_mutated_beginnings_are_refused_or_shown(codec: Codec) -> None:
    data = codec.encode(photo(40, 70), progressive=True)
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(300):
        mutated = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            mutated[place] ^= 1 << rng.integers(8)
        shown += _is_shown(codec, bytes(mutated[: rng.integers(len(data))]))
    assert 0 < shown < 300


def test_other_numbers_of_scales_are_refused(codec: Codec) -> None:
    data = bytearray(codec.encode(photo(64, 64), progressive=True))
    for place, value in ((5, 2), (5, 0), (6, 1), (6, 17), (6, 2)):
        altered = data.copy()
        altered[place] = value
        with pytest.raises(BitstreamError):
            codec.preview(bytes(altered))


def test_the_command_line(run: Run, picture: Path, tmp_path: Path) -> None:
    coded = tmp_path / "a.hpcm"
    assert run("encode", picture, "-o", coded, "-m", "tiny", "--progressive", "--verify")[0] == 0
    assert "progressive" in run("info", coded)[1]
    code, said, _ = run("decode", coded, "--preview")
    assert code == 0
    assert "PREVIEW of 2 of 3 scales, not checked" in said
    assert Image.open(tmp_path / "a-preview.png").size == (60, 40)
    coded.write_bytes(coded.read_bytes()[:-5])
    refused(run("decode", coded, "-o", tmp_path / "b.png"), "truncated", "--preview")
    code, said, _ = run("decode", coded, "--preview", "-o", tmp_path / "c.png")
    assert code == 0
    assert "PREVIEW" in said
    plain = tmp_path / "p.hpcm"
    run("encode", picture, "-o", plain, "-m", "tiny")
    refused(run("decode", plain, "--preview"), "not progressive")
