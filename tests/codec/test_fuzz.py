"""Mutated files: every one is refused with a cause or decodes to the very picture it was made of.

HPCM_FUZZ=100000 python -m pytest tests/codec/test_fuzz.py     runs that many instead of 2000

HPCM_FUZZ_SEED=7 takes another seed, HPCM_FUZZ_SECONDS=1800 stops after that time, and
HPCM_FUZZ_RECORD=tests/codec writes what was run there, to fuzz_numpy_seed7.json and so on.
"""

import json
import os
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.errors import BitstreamError, CheckpointError
from hpcm_scale.numpy_engine.model import load_numpy
from hpcm_scale.units import processor
from hpcm_scale.weights.model_file import load_model
from tests.codec.pictures import XMP, exif_block

MUTATIONS = int(os.environ.get("HPCM_FUZZ", "2000"))
SEED = int(os.environ.get("HPCM_FUZZ_SEED", "0"))
MOST_SECONDS = float(os.environ.get("HPCM_FUZZ_SECONDS", "inf"))
RECORDS = os.environ.get("HPCM_FUZZ_RECORD")


def _mutated(data: bytes, others: list[bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """One kind of damage, by name, and the damaged file; half of them with a checksum that fits."""
    out = bytearray(data)
    kind = ("bits", "byte", "cut", "extend", "overwrite", "splice", "header", "insert")[
        rng.integers(8)
    ]
    at = int(rng.integers(len(out)))
    noise = rng.bytes(int(rng.integers(1, 9)))
    if kind == "bits":
        for bit in rng.integers(8 * len(out), size=rng.integers(1, 4)):
            out[bit // 8] ^= 1 << bit % 8
    elif kind == "byte":
        out[at] ^= int(rng.integers(1, 256))
    elif kind == "cut":
        del out[at:]
    elif kind == "extend":
        out += noise
    elif kind == "overwrite":
        out[at : at + len(noise)] = noise
    elif kind == "splice":
        other = others[rng.integers(len(others))]
        out[at:] = other[at:]
    elif kind == "header":
        out[int(rng.integers(3, 24))] = int(rng.integers(256))
    else:
        out[at:at] = noise
    if rng.random() < 0.5:
        out[-4:] = zlib.crc32(out[:-4]).to_bytes(4, "little")
        kind += ", resealed"
    return kind, bytes(out)


@pytest.fixture(scope="module", params=["torch", "numpy"])
def quick_codec(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., object],
) -> Codec:
    """Without attention, sides need only be multiples of 128: a decode takes milliseconds."""
    path = tmp_path_factory.mktemp("fuzz") / "psi.safetensors"
    make_model(path, fusion="psi", latent_channels=8, name="psi")
    return Codec.load(path, engine=request.param)


def test_no_mutated_file_passes_as_another_picture(
    request: pytest.FixtureRequest,
    quick_codec: Codec,
    make_photo: Callable[..., np.ndarray],
) -> None:
    codec, rng = quick_codec, np.random.default_rng(SEED)
    images = [Image.fromarray(make_photo(*size)) for size in ((40, 50), (64, 64), (90, 17))]
    images[1].info["icc_profile"] = b"profile"
    images[2].putalpha(Image.fromarray(make_photo(90, 17)[..., 0]))
    images.append(Image.fromarray(make_photo(33, 70)[..., 1]))
    images[0].info |= {"exif": exif_block(1), "xmp": XMP, "dpi": (300, 72), "gamma": 0.45455}
    images.append(Image.fromarray(make_photo(200, 300)))
    images[-1].info["exif"] = exif_block(None, ">")
    files = [codec.encode(image) for image in images]
    # Tiled: with less memory to work in.
    engine = request.node.callspec.params["quick_codec"]
    small = Codec.load(codec.info.path, memory=1 << 16, engine=engine)
    files.append(small.encode(images[-1]))
    assert container.read(files[-1]).header.tiles > 3
    files.append(codec.encode(images[4], progressive=True))
    plain = Codec.load(codec.info.path, engine=engine, exact_pixels=False)
    files.append(plain.encode(images[1]))
    assert [container.read(f).header.pixel_digest is None for f in files[-3:]] == [0, 0, 1]
    pictures = [codec.decode(data) for data in files]

    source = _source()
    outcomes, failures, slowest, began = Counter(), [], 0.0, time.monotonic()
    for i in range(MUTATIONS):
        if time.monotonic() - began > MOST_SECONDS:
            break
        which = int(rng.integers(len(files)))
        kind, data = _mutated(files[which], files, rng)
        start = time.process_time()
        try:
            found = codec.decode(data)
        except BitstreamError:
            outcomes[f"{kind}: refused"] += 1
        except Exception as error:  # noqa: BLE001 any other is a failure, and the next is tried
            failures.append(f"mutation {i}, {kind}: {type(error).__name__}: {error}")
        else:
            if _is_one_of(data, found, files, pictures):
                outcomes[f"{kind}: the same picture"] += 1
            else:
                failures.append(f"mutation {i}, {kind}: decodes to another picture")
        slowest = max(slowest, time.process_time() - start)
    for kind, count in sorted(outcomes.items()):
        print(f"{kind}: {count}")
    print(f"slowest {slowest:.2f} s")
    if RECORDS:
        record = _record(outcomes, failures, slowest, time.monotonic() - began)
        path = Path(RECORDS) / f"fuzz_{engine}_seed{SEED}.json"
        path.write_text(json.dumps({"engine": engine} | record | source, indent=1) + "\n")
    assert not failures
    assert outcomes.total() > 0
    assert slowest < 20  # a bound on hanging, not a measure of speed


def _is_one_of(
    data: bytes, found: Image.Image, files: list[bytes], pictures: list[Image.Image]
) -> bool:
    """Whether it is one of the files, unchanged or spliced into another whole, and decodes so."""
    if data not in files:
        return False
    same = pictures[files.index(data)]
    return (found.mode, found.info) == (same.mode, same.info) and np.array_equal(found, same)


def _source() -> dict[str, Any]:
    """The commit that is run, git's name of the package in it, whether the package was changed."""
    if not RECORDS:
        return {}
    commit, tree, changes = (
        subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
        for words in (
            ("rev-parse", "HEAD"),
            ("rev-parse", "HEAD:hpcm_scale"),
            ("status", "--porcelain", "--", "../../hpcm_scale"),
        )
    )
    return {"commit": commit, "package_tree": tree, "package_changed_since": bool(changes)}


def _record(
    outcomes: Counter, failures: list[str], slowest: float, seconds: float
) -> dict[str, Any]:
    """What was run."""
    return {
        "seed": SEED,
        "mutations_asked": MUTATIONS,
        "mutations_run": outcomes.total() + len(failures),
        "refused": sum(n for kind, n in outcomes.items() if kind.endswith("refused")),
        "same_picture": sum(n for kind, n in outcomes.items() if kind.endswith("picture")),
        "failures": failures,
        "slowest_processor_seconds": round(slowest, 3),
        "wall_seconds": round(seconds),
        "processor": processor(),
    }


def test_every_single_bit_and_every_length_is_checked(
    quick_codec: Codec, make_photo: Callable[..., np.ndarray]
) -> None:
    data = quick_codec.encode(make_photo(20, 20))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            quick_codec.decode(bytes(damaged))
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            quick_codec.decode(data[:length])


VALUES = (10**5, 8 * 10**9, 10**30, 0, -1, 1.5, "x", None, True, [], {}, float("nan"), [[[[1]]]])


def _mutated_metadata(metadata: dict[str, str], rng: np.random.Generator) -> tuple[str, dict]:
    """One fault in what a model says of itself, by name."""
    changed = dict(metadata)
    field = ("config", "config", "config", "lmbda", "record", "identity", "tables_hash", "format")[
        rng.integers(8)
    ]
    kind = ("value", "value", "value", "cut", "byte", "deep", "absent")[rng.integers(7)]
    text = metadata[field]
    at = int(rng.integers(len(text)))
    if kind == "value":
        value = VALUES[rng.integers(len(VALUES))]
        if field == "config":
            values = json.loads(text)
            name = list(values)[rng.integers(len(values))]
            inner = values[name]
            if isinstance(inner, list) and inner and rng.random() < 0.7:
                inner[rng.integers(len(inner))] = value
            elif isinstance(inner, dict) and inner and rng.random() < 0.7:
                inner[list(inner)[rng.integers(len(inner))]] = value
            else:
                values[name] = value
            changed[field] = json.dumps(values)
        else:
            changed[field] = json.dumps(value)
    elif kind == "cut":
        changed[field] = text[:at]
    elif kind == "byte":
        changed[field] = text[:at] + chr(int(rng.integers(1, 0x250))) + text[at + 1 :]
    elif kind == "deep":
        changed[field] = "[" * 20_000 + "]" * 20_000
    else:
        del changed[field]
    return f"{field}: {kind}", changed


@pytest.mark.parametrize("load", [load_model, load_numpy])
def test_no_mutated_model_metadata_passes_unseen(
    load: Callable[[Path], Any], make_model: Callable[..., object], tmp_path: Path
) -> None:
    """What a model says of itself is refused or changes nothing that decides how it codes."""
    path, changed = tmp_path / "psi.safetensors", tmp_path / "changed.safetensors"
    make_model(path, fusion="psi", latent_channels=8, name="psi")
    with safe_open(path, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    rng, outcomes, slowest = np.random.default_rng(0), Counter(), 0.0
    identity, reasons = load(path).info.identity, []
    for _ in range(MUTATIONS // 20):
        kind, values = _mutated_metadata(metadata, rng)
        save_file(tensors, changed, values)
        start = time.monotonic()
        try:
            info = load(changed).info
        except CheckpointError as error:
            reasons.append(str(error))
            outcomes["refused"] += 1
        else:
            assert info.identity == identity, kind
            outcomes["the same codec"] += 1
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 20  # a bound on hanging, not a measure of speed
    assert outcomes["refused"] > outcomes["the same codec"]
    assert not [reason for reason in reasons if "\n" in reason or len(reason) > 1000]
