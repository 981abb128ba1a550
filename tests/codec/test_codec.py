import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.coding_result import unheard
from hpcm_scale.codec.engines import torch_engine
from hpcm_scale.codec.engines.torch_engine import TorchTransforms, reach_of
from hpcm_scale.codec.images import picture_of
from hpcm_scale.codec.tiled_transforms import analyse, synthesise
from hpcm_scale.codec.tiles import coding_tiles
from hpcm_scale.entropy.parameters import FloatParameters, StepCoding
from hpcm_scale.errors import BitstreamError, CheckpointError, DataError
from hpcm_scale.weights.identity import hash_of, identity_of
from hpcm_scale.weights.model_file import load_model
from tests.codec.conftest import watch_symbols

Photo = Callable[..., np.ndarray]


@pytest.mark.parametrize("size", [(256, 256), (1, 1), (1, 300), (257, 255), (16, 17), (300, 64)])
def test_decoded_symbols_equal_the_encoded(
    codec: Codec, make_photo: Photo, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    seen = watch_symbols(monkeypatch)
    data = codec.encode(make_photo(*size))
    encoded = seen[:]
    seen.clear()
    image = codec.decode(data)
    assert image.size == size[::-1]
    assert len(seen) == len(encoded) == 12  # z and 11 steps
    assert all(np.array_equal(a, b) for a, b in zip(seen, encoded, strict=True))


def test_only_latents_that_touch_the_picture_are_coded(
    codec: Codec, make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_symbols(monkeypatch)
    codec.encode(make_photo(100, 70))  # 7 x 5 latents, 2 x 2 hyper-latents
    config = codec.info.config
    assert seen[0].size == 4 * config.hyper_channels
    assert sum(s.size for s in seen[1:]) == 35 * config.latent_channels


def test_the_codec_gives_what_the_network_s_forward_does(
    models: Path, fast_codec: Codec, make_photo: Photo
) -> None:
    codec = fast_codec
    pixels = make_photo(256, 512)
    network = load_model(models / "tiny.safetensors").network
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        output = network(x.contiguous(memory_format=torch.channels_last))
    expected = output.x_hat[0].clamp(0, 1).mul(255).permute(1, 2, 0).numpy()
    encoded = codec.compress(picture_of(pixels), estimate=True)
    decoded = codec.decompress(encoded.data).picture.pixels
    assert np.abs(decoded - expected).max() <= 0.51  # rounding to 8 bits
    assert encoded.estimated_bits == pytest.approx(float(output.bits.sum()), rel=1e-3)


def test_real_size_is_near_the_information_content(codec: Codec, make_photo: Photo) -> None:
    encoded = codec.compress(picture_of(make_photo(256, 512)), estimate=True)
    assert len(encoded.data) - encoded.payload_bytes <= 29
    # Untrained, a few per cent of the symbols are escapes, which cost more than estimated.
    assert 0.98 < 8 * encoded.payload_bytes / encoded.estimated_bits < 1.1


def test_another_model_is_refused_with_both_identities(
    codec: Codec, other_codec: Codec, make_photo: Photo
) -> None:
    data = codec.encode(make_photo(64, 64))
    with pytest.raises(BitstreamError) as refused:
        other_codec.decode(data)
    assert codec.identity.hex() in str(refused.value)
    assert other_codec.identity.hex() in str(refused.value)


class _OtherArithmetic(FloatParameters):
    """The path of a machine whose sums end in other last bits: scales off by up to 2e-5."""

    def walk(self, z_symbols: Tensor, code: Callable[..., Tensor]) -> Tensor:
        noise = torch.Generator().manual_seed(0)

        def elsewhere(step: int, coding: StepCoding) -> Tensor:
            off = 1 + 4e-5 * (torch.rand(coding.scale.shape, generator=noise) - 0.5)
            scale = (coding.scale * off).contiguous()
            moved = torch.bucketize(scale, self._boundaries, out_int32=True)
            return code(step, coding._replace(table=moved))

        return super().walk(z_symbols, elsewhere)


def test_other_arithmetic_is_an_error_or_the_same_picture(
    models: Path, make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(models / "tiny.safetensors")
    here, elsewhere = Codec(model, portable=False), Codec(model, portable=False)
    here.encode(make_photo(16, 16))  # its arithmetic is made now
    monkeypatch.setattr(torch_engine, "FloatParameters", _OtherArithmetic)
    outcomes = set()
    for seed in range(30):
        data = here.encode(make_photo(200, 200, seed))
        try:
            picture = elsewhere.decode(data)
        except BitstreamError as error:
            outcomes.add(str(error).split(" (")[0])
        else:
            assert np.array_equal(picture, here.decode(data))
            outcomes.add("same")
    refusal = (
        "decodes to other symbols than were encoded: it was encoded with --fast, and this "
        "machine's floating-point results differ from the encoder's"
    )
    assert outcomes == {"same", refusal}


def _forged(codec: Codec, data: bytes, **changes: object) -> bytes:
    parsed = container.read(data)
    header = replace(parsed.header, **changes)
    if not header.portable:
        header = replace(header, pixel_digest=None)
    return container.write(replace(parsed, header=header))


def test_an_absurd_header_is_refused_unallocated(codec: Codec, make_photo: Photo) -> None:
    data = codec.encode(make_photo(16, 16))
    for width, height in ((65535, 65535), (20000, 20000), (4000, 3000)):
        start = time.monotonic()
        with pytest.raises(BitstreamError, match=r"claims|above"):
            codec.decode(_forged(codec, data, width=width, height=height))
        assert time.monotonic() - start < 1


def test_tiles_without_payload_are_refused(codec: Codec, make_photo: Photo) -> None:
    # An empty stack gives symbols without end: a few bytes would make a picture of any size.
    parsed = container.read(codec.encode(make_photo(16, 16)))
    for side, tiles in ((256, 1), (4096, 64)):
        tile = None if tiles == 1 else (512, 512)
        header = replace(parsed.header, width=side, height=side, tile=tile)
        data = container.write(replace(parsed, header=header, payloads=(b"",) * tiles))
        with pytest.raises(BitstreamError, match="claims"):
            codec.decode(data)


def test_tiles_that_do_not_suit_the_network_are_refused(codec: Codec, make_photo: Photo) -> None:
    data = codec.encode(make_photo(16, 16))
    with pytest.raises(BitstreamError, match="not multiples of 256"):
        codec.decode(_forged(codec, data, tile=(64, 256)))


def test_tiles_too_large_for_memory_are_refused(
    codec: Codec, models: Path, make_photo: Photo
) -> None:
    data = codec.encode(make_photo(300, 600))
    with pytest.raises(BitstreamError, match=r"GiB to decode.*--memory"):
        Codec.load(models / "tiny.safetensors", memory=1 << 20).decode(data)


def test_a_file_that_claims_the_other_arithmetic_is_refused(
    codec: Codec, fast_codec: Codec, make_photo: Photo
) -> None:
    fast = fast_codec
    with pytest.raises(BitstreamError, match="though its arithmetic is exact"):
        codec.decode(_forged(codec, fast.encode(make_photo(16, 16)), portable=True))
    with pytest.raises(BitstreamError, match="was encoded with --fast"):
        codec.decode(_forged(codec, codec.encode(make_photo(16, 16)), portable=False))


def test_a_codec_decodes_files_of_either_arithmetic(
    codec: Codec, fast_codec: Codec, make_photo: Photo
) -> None:
    fast, image = fast_codec, make_photo(100, 200)
    assert container.read(codec.encode(image)).header.portable
    data = fast.encode(image)
    assert not container.read(data).header.portable
    assert np.array_equal(codec.decode(data), fast.decode(data))
    assert np.array_equal(fast.decode(codec.encode(image)), codec.decode(codec.encode(image)))


@pytest.mark.parametrize("size", [(600, 900), (257, 1030)])
def test_coding_in_tiles_changes_little_of_the_picture(
    codec: Codec, models: Path, make_photo: Photo, size: tuple[int, int]
) -> None:
    pixels = make_photo(*size)
    whole = np.asarray(codec.decode(codec.encode(pixels)))
    small = Codec.load(models / "tiny.safetensors", memory=1 << 20)
    data = small.encode(pixels)
    assert container.read(data).header.tiles > 3
    tiled = np.asarray(small.decode(data))
    assert tiled.shape == whole.shape
    # The latents are the same, but rounded about other means.
    assert np.abs(tiled.astype(int) - whole).mean() < 2


def test_transforms_in_pieces_give_what_they_give_whole(
    models: Path, make_model: Callable[..., object], make_photo: Photo, tmp_path: Path
) -> None:
    """The pieces overlap by all that a transform sees, so that no seam can appear."""
    deep = tmp_path / "deep.safetensors"
    make_model(deep, synthesis_depths=[1, 2, 3, 2], analysis_depths=[2, 2, 2, 2])
    for path in (models / "tiny.safetensors", deep):
        transforms = TorchTransforms(load_model(path).network)
        pixels = make_photo(512, 768)
        with torch.inference_mode():
            whole, pieces = (analyse(transforms, pixels, memory) for memory in (1 << 30, 1 << 20))
            assert (whole - pieces).abs().max() < 1e-4 * whole.abs().max()
            x, x_pieces = (
                synthesise(transforms, whole.round(), (512, 768), False, unheard, memory).astype(
                    int
                )
                for memory in (1 << 30, 1 << 20)
            )
        # Sums in another order may round a pixel to its neighbouring level.
        assert np.abs(x - x_pieces).max() <= 1
        assert (x != x_pieces).mean() < 1e-3


def test_analysis_in_bfloat16_changes_choices_alone(
    models: Path, codec: Codec, make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = make_photo(256, 512)
    single = codec.encode(pixels)
    monkeypatch.setattr(torch_engine, "has_native_bf16", lambda: True)
    encoder = Codec.load(models / "tiny.safetensors")
    transforms = TorchTransforms(load_model(models / "tiny.safetensors").network)
    with torch.inference_mode():
        y = analyse(transforms, pixels, 1 << 30)
    assert y.dtype == torch.float32
    encoded = encoder.compress(picture_of(pixels), reconstruct=True)
    assert encoded.data != single
    assert len(encoded.data) == pytest.approx(len(single), rel=0.01)
    decoded = np.asarray(codec.decode(encoded.data))
    assert np.array_equal(decoded, encoded.reconstruction)
    errors = [
        np.square(one - pixels.astype(float)).mean()
        for one in (decoded, np.asarray(codec.decode(single)))
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


def test_the_reach_is_what_the_transforms_see(models: Path, make_photo: Photo) -> None:
    """Changing one pixel, or one latent, changes nothing further away than the reach."""
    network = load_model(models / "tiny.safetensors").network
    pixels = make_photo(512, 512)
    changed = pixels.copy()
    changed[256, 256] ^= 255
    with torch.inference_mode():
        y, y_changed = (analyse(TorchTransforms(network), p, 1 << 30) for p in (pixels, changed))
        rows = (y != y_changed).any(dim=1)[0].nonzero()
        assert len(rows) > 1
        assert (16 * (rows - 16).abs()).max() <= reach_of(network.g_a)
        y_changed = y.clone()
        y_changed[..., 16, 16] += 100
        x, x_changed = (network.g_s(v) for v in (y, y_changed))
        rows = (x != x_changed).any(dim=1)[0].nonzero()
        assert (rows - 256).max() - 15 <= reach_of(network.g_s)
        assert (256 - rows).max() <= reach_of(network.g_s)


@pytest.mark.parametrize(
    ("size", "tile"), [((1, 1), None), ((16384, 16384), (2048, 2048)), ((700, 513), (256, 512))]
)
def test_tiles_cover_every_latent_of_the_picture_once(
    size: tuple[int, int], tile: tuple[int, int] | None
) -> None:
    height, width = -(-size[0] // 16), -(-size[1] // 16)
    covered = np.zeros((height + 256, width + 256), np.int8)
    for t in coding_tiles(*size, 256, tile):
        place = t.place
        assert place.height % 16 == place.width % 16 == 0
        rows, columns = t.inside
        covered[place.top : place.top + rows, place.left : place.left + columns] += 1
    assert (covered[:height, :width] == 1).all()
    assert covered.sum() == height * width


def test_grey_alpha_and_profile_come_back(codec: Codec, make_photo: Photo) -> None:
    pixels = make_photo(120, 90)
    alpha = (np.indices((120, 90)).sum(0) % 256).astype(np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels[..., 0])):
        plain = np.asarray(codec.decode(codec.encode(image)))
        image.putalpha(Image.fromarray(alpha))
        image.info["icc_profile"] = b"profile" * 99
        decoded = codec.decode(codec.encode(image))
        assert decoded.mode == image.mode
        assert decoded.info["icc_profile"] == b"profile" * 99
        assert np.array_equal(decoded.getchannel("A"), alpha)
        assert np.array_equal(np.asarray(decoded)[..., :-1].squeeze(), plain)


def test_a_diverged_model_is_named_not_encoded(models: Path, make_photo: Photo) -> None:
    model = load_model(models / "tiny.safetensors")
    with torch.no_grad():
        model.network.g_a[-1][0].weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"tiny.safetensors: .*diverged"):
        Codec(model).encode(make_photo(64, 64))


def test_absurd_windows_are_refused_before_any_picture(models: Path, tmp_path: Path) -> None:
    """No parameter depends on them, and the identity fits: only the codec is in the way."""
    source, path = models / "tiny.safetensors", tmp_path / "m.safetensors"
    with safe_open(source, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    config = json.dumps(json.loads(metadata["config"]) | {"windows": [4, 10**6, 8]})
    network = {name: t for name, t in tensors.items() if not name.startswith("coding.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in network.items()}
    hashes = {name: hash_of(tensor.numpy()) for name, tensor in network.items()}
    identity = identity_of(
        config, shapes, hashes, load_model(source).tables, metadata.get("arithmetic")
    )
    save_file(tensors, path, metadata | {"config": config, "identity": identity})
    assert load_model(path).info.identity == identity
    with pytest.raises(CheckpointError, match=r"m\.safetensors: needs pictures padded to"):
        Codec.load(path)
