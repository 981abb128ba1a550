"""Exact pixels: what EXACT.md says, the same by either engine, their digest checked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.engines.choose import load_engine
from hpcm_scale.config import HpcmConfig
from hpcm_scale.entropy.exact.pixels import MOST_OCTAVES, inverse_gains, pixel_weights
from hpcm_scale.errors import BitstreamError, CheckpointError, ConfigError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import save_model
from hpcm_scale.weights.stored_model import read_info
from tests.codec.conftest import Run, refused, synthesise_in_pieces
from tests.entropy.divisions import NearestQuotients
from tests.entropy.pixel_reference import pixels_of, power

Photo = Callable[..., np.ndarray]
ENGINES = ("torch", "numpy")
KINDS = {
    "base": {},
    "kernel 2": {"outer_kernel": 2, "expansion": 2, "partial_ratio": 2},
    "rates": {"rates": (0.002, 0.02, 0.2), "lmbda": None, "fusion": "psi"},
    "no blocks": {"synthesis_depths": (0, 0, 1, 1), "fusion": "psi"},
}


@pytest.fixture(scope="module", params=KINDS)
def path(
    request: pytest.FixtureRequest,
    make_model: Callable[..., object],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model whose pictures are not flat."""
    path = tmp_path_factory.mktemp("exact") / "model.safetensors"
    make_model(path, **KINDS[request.param])
    return path


def _latents(channels: int) -> np.ndarray:
    """ŷ (1, M, 4, 6) of ordinary and of extreme values, as multiples of 1/1024."""
    rng = np.random.default_rng(1)
    y_hat = np.rint(rng.laplace(0, 2**13, (1, channels, 4, 6)))
    y_hat[0, :, 1, 2] = np.rint(rng.laplace(0, 2**24, channels))
    y_hat[0, :, 2, 2] = rng.choice([-(2.0**40), 2.0**40, 0], channels)
    return (y_hat / 1024).astype(np.float32)


@pytest.mark.parametrize("grey", [False, True])
def test_pixels_are_what_the_reference_computes(path: Path, grey: bool) -> None:
    info = read_info(path)
    assert isinstance(info.config, HpcmConfig)
    with safe_open(path, "np") as stored:
        names = [key for key in stored.keys() if not key.startswith("coding.")]  # noqa: SIM118
        parameters = {key: stored.get_tensor(key).astype(np.float32) for key in names}
    y_hat = _latents(info.config.latent_channels)
    for rate in (0, 12345, 40000, 65535) if info.config.rates else (None,):
        integers = (y_hat[0].astype(np.float64) * 1024).astype(np.int64)
        expected = pixels_of(parameters, info.config, integers, rate, grey)
        assert expected.std() > 5
        for name in ENGINES:
            engine = load_engine(path, name)
            with engine.computing(), NearestQuotients():
                latents = torch.from_numpy(y_hat) if name == "torch" else y_hat
                found = engine.exact_pixels(latents, grey, rate)
            assert np.array_equal(found, expected), (name, rate)


@pytest.mark.parametrize(
    "size",
    [(130, 257), *(pytest.param(size, marks=pytest.mark.long) for size in ((1, 1), (40, 300)))],
)
def test_every_engine_and_piece_gives_one_picture(
    path: Path, size: tuple[int, int], make_photo: Photo
) -> None:
    for image in (Image.fromarray(make_photo(*size)), Image.fromarray(make_photo(*size)[..., 1])):
        makers = [Codec.load(path, engine=name) for name in ENGINES]
        files = [maker.encode(image, progressive=size[0] == 40) for maker in makers]
        headers = [container.read(data).header for data in files]
        assert all(header.pixel_digest is not None for header in headers)
        for data in files:
            pictures = [np.asarray(maker.decode(data)) for maker in makers]
            with pytest.MonkeyPatch.context() as patch:
                synthesise_in_pieces(patch)
                pictures += [np.asarray(maker.decode(data)) for maker in makers]
            assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


def test_tiles(models: Path, make_photo: Photo) -> None:
    codecs = [Codec.load(models / "tiny.safetensors", engine=e, memory=1 << 16) for e in ENGINES]
    data = codecs[0].encode(make_photo(300, 530))
    assert container.read(data).header.tiles > 3
    ours, theirs = (np.asarray(codec.decode(data)) for codec in codecs)
    assert np.array_equal(ours, theirs)


def test_the_digest_is_checked(models: Path, make_photo: Photo, run: Run, tmp_path: Path) -> None:
    codec = Codec.load(models / "tiny.safetensors")
    parsed = container.read(codec.encode(make_photo(40, 70)))
    digest = parsed.header.pixel_digest
    assert digest is not None
    other = replace(parsed, header=replace(parsed.header, pixel_digest=digest ^ 1))
    path = tmp_path / "other.hpcm"
    path.write_bytes(container.write(other))
    refused(run("decode", path), "decodes to other pixels than were encoded")
    # Of a preview there is nothing to check.
    progressive = codec.encode(make_photo(40, 70), progressive=True)
    assert codec.preview(progressive).size == (70, 40)


def test_the_verbs(run: Run, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.hpcm"
    for option, said in (("--exact-pixels", "exact, CRC-32"), ("--no-exact-pixels", "to within a")):
        code, _, error = run("encode", picture, "-o", out, "-m", "tiny", "--verify", option)
        assert code == 0, error
        assert said in run("info", out)[1]
    refused(run("encode", picture, "-o", out, "-m", "tiny", "--exact-pixels", "--fast"), "--fast")


def test_flags(models: Path, make_photo: Photo) -> None:
    path = models / "tiny.safetensors"
    exact, plain = (
        Codec.load(path, exact_pixels=exact).encode(make_photo(20, 20)) for exact in (True, False)
    )
    assert len(exact) == len(plain) + 5
    assert container.read(plain).header.pixel_digest is None
    assert exact[:6] == plain[:4] + bytes([plain[4] | 0x80, 2])
    # Not portable; no flag at all; one that is not defined.
    for place, value in ((4, exact[4] & 0xFE), (5, 0), (5, 4), (5, 6)):
        altered = bytearray(exact)
        altered[place] = value
        with pytest.raises(BitstreamError, match="which this version does not define"):
            container.read(bytes(altered))
    with pytest.raises(ConfigError, match=r"^exact_pixels: .*portable=False"):
        Codec.load(path, portable=False, exact_pixels=True)


def test_a_model_whose_sums_could_overflow_has_none(
    models: Path, make_photo: Photo, tmp_path: Path
) -> None:
    info = read_info(models / "tiny.safetensors")
    state = build(info.config).state_dict()
    of_file = load_file(models / "tiny.safetensors")
    state |= {name: of_file[name].float() for name in state}
    state["g_s.2.0.pair.expand_weight"][0, 0] = 9000
    path = tmp_path / "large.safetensors"
    save_model(path, state, info.config, lmbda=0.013, record={})
    digest = container.read(Codec.load(models / "tiny.safetensors").encode(make_photo(20, 20)))
    for engine in ENGINES:
        data = Codec.load(path, engine=engine).encode(make_photo(20, 20))
        header = container.read(data).header
        assert header.pixel_digest is None
        with pytest.raises(CheckpointError, match=r"g_s\.2\.0\.pair\.expand"):
            Codec.load(path, engine=engine, exact_pixels=True).encode(make_photo(20, 20))
        forged = replace(digest, header=replace(digest.header, identity=header.identity))
        with pytest.raises(BitstreamError, match="has exact pixels, its model none"):
            Codec.load(path, engine=engine).decode(container.write(forged))


def test_architectures_without(tmp_path: Path) -> None:
    path = tmp_path / "elic.safetensors"
    config = model_config("elic", width=0.05)
    save_model(path, build(config).state_dict(), config, lmbda=0.013, record={})
    codec = Codec.load(path, exact_pixels=True)
    with pytest.raises(CheckpointError, match="has no exact arithmetic, so pixels have none"):
        codec.encode(np.zeros((16, 16, 3), np.uint8))


def test_gains() -> None:
    rng = np.random.default_rng(0)
    logs = rng.normal(0, 2, (5, 300)).astype(np.float32)
    for rate in (0, 1, 16383, 16384, 30000, 65534, 65535):
        place = rate * 4 / 65535
        low = min(int(place), 3)
        between = logs[low] * (1 - (place - low)) + logs[low + 1] * (place - low)
        assert inverse_gains(logs, rate) == pytest.approx(np.exp(-between), rel=1.5e-5)
    assert inverse_gains(np.zeros((2, 3), np.float32), 77).tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match=r"gains\.logs"):
        inverse_gains(np.full((2, 1), MOST_OCTAVES, np.float32), 0)
    # Every power there is, by forty decimal digits.
    every = np.rint(2.0 ** (24 - np.arange(0, 65536, 7) / 65536)).astype(int)
    assert every.tolist() == [power(f) for f in range(0, 65536, 7)]


def test_last_layers_that_are_too_large_are_refused() -> None:
    weight = np.full((16, 3, 4, 4), 3.0, np.float32)
    pixel_weights(weight, np.zeros(3, np.float32), "last")
    weight = np.full((4096, 3, 4, 4), 3.0, np.float32)
    with pytest.raises(CheckpointError, match="its levels could reach"):
        pixel_weights(weight, np.zeros(3, np.float32), "last")
