"""How the conformance kit was made: python -m tests.conformance.make

It leaves models and files that are there as they are, and writes expected.json anew: what the
torch engine finds. Empty the folder first only when the format or the exact arithmetic changes on
purpose.
tests/conformance compares what is expected with the int64 reference.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.coding_result import unheard
from hpcm_scale.codec.engines.choose import load_engine
from hpcm_scale.codec.engines.engine import Coding
from hpcm_scale.codec.tiled_transforms import synthesise
from hpcm_scale.codec.tiles import coding_tiles
from hpcm_scale.conformance.decode import picture_in, watched
from hpcm_scale.conformance.kit import FOLDER, cells_of, contents, model_file
from hpcm_scale.entropy.coder import AnsEncoder, SymbolDigest, SymbolModels
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from tests.codec.conftest import photo, save_tiny
from tests.codec.pictures import XMP, exif_block, profile

SMALL = {
    "latent_channels": 8,
    "hyper_channels": 4,
    "widths": [4, 4, 8],
    "analysis_depths": [1, 1, 1, 0],
    "synthesis_depths": [1, 1, 1, 0],
    "hyper_depths": [1, 1],
    "shared_s12": {"before": 1, "after": 1},
    "shared_s3": {"before": 1, "after": 1},
}
MODELS: dict[str, dict[str, Any]] = {
    "base": {},
    "base-bytes": {},
    "mixed-bytes": {},
    "official": {"hyper_alignment": "official"},
    "psi": {"fusion": "psi"},
    "no-fusion": {"fusion": "none", "schedule": "4-3-3"},
    "no-hierarchy": {"hierarchical": False, "windows": [4, 4, 4], "schedule": "2-3-3"},
    "deep": {
        "adaptor_depths": [1, 1, 2],
        "shared_s12": {"before": 1, "after": 1, "out": 1},
        "shared_s3": {"before": 1, "after": 1, "out": 2},
        "partial_ratio": 2,
        "schedule": "2-3-12",
        "latent_channels": 16,
    },
    "narrow-context": {"context_channels": 12, "heads": 8},
    "rates": {"rates": [0.002, 0.02, 0.2], "lmbda": None},
    "kernel-2": {"outer_kernel": 2, "expansion": 2, "windows": [2, 4, 4]},
    "stored-bytes": {},
}
LATER: dict[str, dict[str, Any]] = {
    "wide-pair": {},
    "no-hyper-blocks": {"hyper_depths": [0, 0]},
}
"""Models that came later, of one file each."""
WIDE = frozenset({"merges.1", "steps.4.adaptor", "fusions.2.out", "shared_s3.before.0.depthwise"})
WIDE_PAIRS = frozenset(
    {"h_s.0.1.pair.expand", "shared_s12.before.0.pair.project", "shared_s3.after.0.pair.expand"}
)
ARITHMETIC = {
    "mixed-bytes": Arithmetic(2, WIDE),
    "wide-pair": Arithmetic(2, WIDE_PAIRS),
    **dict.fromkeys(
        ("base-bytes", "psi", "deep", "narrow-context", "rates", "stored-bytes", "no-hyper-blocks"),
        Arithmetic(2),
    ),
}
"""Of the models that are not of arithmetic 1."""
SIZES = ((1, 1), (1, 300), (300, 1), (16, 16), (17, 15), (64, 64), (65, 63), (130, 257), (256, 256))
"""Height and width of the pictures that "base" and "base-bytes" code."""


def main() -> None:
    """Write what is lacking of models and files, and expected.json."""
    for part in ("models", "files"):
        (FOLDER / part).mkdir(parents=True, exist_ok=True)
    of: dict[str, str] = {}

    def keep(name: str, model: str, data: bytes) -> None:
        of[name] = model
        _write_new(name, data)

    for i, (model, fields) in enumerate(MODELS.items()):
        _save_new(model, i, fields)
        whole, tiled = loaded(model), loaded(model, 1 << 16)
        sizes = SIZES if model.startswith("base") else ((40, 50), (129, 140))
        for height, width in sizes:
            keep(f"{model}-{height}x{width}", model, whole.encode(photo(height, width, i)))
        keep(f"{model}-tiled", model, tiled.encode(photo(70, 530, i)))
        keep(f"{model}-made", model, made(model, (40, 60), ordinary))
        keep(f"{model}-extreme", model, made(model, (50, 30), extreme))
    base = loaded("base")
    for name, image in kinds().items():
        keep(f"base-{name}", "base", base.encode(image))
    small = loaded("base", 1 << 16)
    keep("base-3x2-tiles", "base", small.encode(photo(300, 600, 7)))
    rates = loaded("rates")
    for quality in (1, 33.3, 75, 100):
        keep(f"rates-quality-{quality:g}", "rates", rates.encode(photo(60, 90, 3), quality))
    for name, (model, data) in pixels_and_scales().items():
        keep(name, model, data)
    for i, (model, fields) in enumerate(LATER.items(), len(MODELS)):
        _save_new(model, i, fields)
        keep(f"{model}-made", model, made(model, (40, 60), ordinary))
    bad = spoilt(contents("base-64x64")) | spoilt_pixels()
    expected = {"files": {name: case_of(name, model) for name, model in of.items()}}
    for name, (data, _) in bad.items():
        _write_new(name, data)
    expected |= {"refused": {name: ["base", reason] for name, (_, reason) in bad.items()}}
    text = json.dumps(expected, indent=1)
    (FOLDER / "expected.json").write_text(text + "\n")
    print(f"{len(of)} files that decode, {len(bad)} that must not")


def _save_new(model: str, seed: int, fields: dict[str, Any]) -> None:
    options = {"half": True, "arithmetic": ARITHMETIC.get(model, ORIGINAL)}
    options |= {"in_bytes": model == "stored-bytes"}
    if not model_file(model).exists():
        save_tiny(model_file(model), seed=seed, options=options, **{"name": model} | SMALL | fields)


def _write_new(name: str, data: bytes) -> None:
    path = FOLDER / "files" / f"{name}.hpcm"
    if not path.exists():
        path.write_bytes(data)


def loaded(model: str, memory: int = 2 << 30, exact_pixels: bool = False) -> Codec:
    """A codec of a model of the kit."""
    path = model_file(model)
    return Codec.load(path, memory=memory, engine="torch", exact_pixels=exact_pixels)


def pixels_and_scales() -> dict[str, tuple[str, bytes]]:
    """Files of exact pixels and progressive ones: name -> model, bytes."""
    found = {}
    for model in ("base", "base-bytes", "kernel-2", "deep", "rates"):
        codec = loaded(model, exact_pixels=True)
        found[f"{model}-pixels"] = (model, codec.encode(photo(45, 70, 8)))
        found[f"{model}-pixels-extreme"] = (model, made(model, (50, 30), extreme, pixels=True))
    base, tiled = (loaded("base", memory, exact_pixels=True) for memory in (2 << 30, 1 << 16))
    plane = Image.fromarray(photo(45, 70, 9)[..., 0])
    found["base-pixels-1x1"] = ("base", base.encode(photo(1, 1, 8)))
    found["base-pixels-grey"] = ("base", base.encode(plane))
    found["base-pixels-tiled"] = ("base", tiled.encode(photo(70, 530, 8)))
    for quality in (1, 100):
        data = loaded("rates", exact_pixels=True).encode(photo(60, 90, 3), quality)
        found[f"rates-pixels-quality-{quality}"] = ("rates", data)
    picture = photo(130, 257, 10)
    for model in ("base", "mixed-bytes", "no-hierarchy"):
        data = loaded(model).encode(picture, progressive=True)
        found[f"{model}-progressive"] = (model, data)
    data = loaded("base", 1 << 16).encode(photo(70, 530, 10), progressive=True)
    found["base-progressive-tiled"] = ("base", data)
    data = loaded("rates", exact_pixels=True).encode(picture, 40, progressive=True)
    found["rates-progressive-pixels"] = ("rates", data)
    return found


def kinds() -> dict[str, Image.Image]:
    """Pictures of every kind of section and flag."""
    found = {name: Image.fromarray(photo(45, 70, 5)) for name in ("alpha", "icc", "tags")}
    plane = Image.fromarray(photo(45, 70, 6)[..., 0])
    found["alpha"].putalpha(plane)
    found["icc"].info["icc_profile"] = profile(b"RGB ")
    found["tags"].info |= {"exif": exif_block(1), "xmp": XMP, "dpi": (300, 72)}
    found["grey"] = plane.copy()
    found["grey-alpha"] = plane.copy()
    found["grey-alpha"].putalpha(plane)
    everything = found["tags"].copy()
    everything.info |= found["tags"].info | found["icc"].info
    everything.putalpha(plane)
    return found | {"everything": everything}


def ordinary(rng: np.random.Generator, count: int) -> np.ndarray:
    """Symbols that now and then need an escape."""
    return np.rint(rng.laplace(0, 4, count)).astype(np.int32)


def extreme(rng: np.random.Generator, count: int) -> np.ndarray:
    """Symbols up to the largest there are, of either sign and of every length of an escape."""
    size = np.floor(2.0 ** rng.uniform(0, 30, count)).astype(np.int32)
    size[rng.random(count) < 0.05] = 2**30
    symbols = size * rng.choice([-1, 1], count).astype(np.int32)
    symbols[rng.random(count) < 0.5] = 0
    return symbols


def made(
    model: str,
    size: tuple[int, int],
    choose: Callable[[np.random.Generator, int], np.ndarray],
    pixels: bool = False,
    folder: Path = FOLDER,
) -> bytes:
    """A file of chosen symbols, that no picture gives; of exact pixels, if `pixels`.

    Args:
        folder: of the kit that the model is of.
    """
    engine = load_engine(model_file(model, folder), "torch")
    height, width = size
    multiple = engine.transforms.image_multiple
    (tile,) = coding_tiles(height, width, multiple, None)
    rng = np.random.default_rng(zlib.crc32(model.encode()))
    rate = 12345 if engine.info.config.rates else None
    identity = bytes.fromhex(engine.info.identity)[:4]
    unknown = 0 if pixels else None
    header = container.Header(
        identity, width, height, portable=True, rate=rate, pixel_digest=unknown
    )
    digest = SymbolDigest(container.digest_seed(container.Container(header, ())))
    groups: list[tuple[np.ndarray, np.ndarray, SymbolModels]] = []
    y_models, z_models = SymbolModels(engine.tables.y), SymbolModels(engine.tables.z)
    rows, columns = tile.hyper_inside
    n = engine.info.config.hyper_channels
    inside = choose(rng, n * rows * columns)
    z_symbols = np.zeros((1, n, tile.place.height // 4, tile.place.width // 4), np.int32)
    z_symbols[..., :rows, :columns] = inside.reshape(1, n, rows, columns)
    digest.update(inside)
    groups.append((inside, np.arange(n, dtype=np.uint16).repeat(rows * columns), z_models))
    masks = engine.masks(tile)

    def code(step: int, coding: Coding) -> np.ndarray:
        table = coding.table
        symbols = np.zeros(table.shape, np.int32)
        values = choose(rng, int(masks[step].sum()))
        symbols[masks[step]] = values
        digest.update(values)
        groups.append((values, table[masks[step]].astype(engine.tables.index_type), y_models))
        return symbols

    with engine.computing():
        y_hat = engine.walk(z_symbols, code, True)
        if pixels:
            exact = partial(engine.exact_pixels, rate=rate)
            found = synthesise(engine.transforms, y_hat, size, False, unheard, 2 << 30, exact)
            unknown = zlib.crc32(found.tobytes())
    encoder = AnsEncoder()
    for group in reversed(groups):
        encoder.push(*group)
    final = replace(header, digest=digest.value, pixel_digest=unknown)
    return container.write(container.Container(final, (encoder.payload(),)))


def spoilt_pixels() -> dict[str, tuple[bytes, str]]:
    """As `spoilt`, of files of exact pixels and progressive ones."""
    exact, progressive = (
        container.read(contents(f"base-{kind}")) for kind in ("pixels", "progressive")
    )
    digest = exact.header.pixel_digest
    assert digest is not None  # of a file with exact pixels
    data = contents("base-pixels")
    no_flag = data[:5] + b"\0" + data[6:-4]
    half = len(contents("base-progressive")) - len(progressive.payloads[-1]) - 4
    other = replace(exact, header=replace(exact.header, pixel_digest=digest ^ 1))
    return {
        "bad-pixels": (container.write(other), "the digest of its pixels does not fit"),
        "bad-more-flags": (
            no_flag + zlib.crc32(no_flag).to_bytes(4, "little"),
            "bit 7 of its flags is set, and no further flag",
        ),
        "bad-progressive-cut": (
            contents("base-progressive")[:half],
            "its last scale is lacking",
        ),
    }


def spoilt(data: bytes) -> dict[str, tuple[bytes, str]]:
    """Files that a decoder must refuse, and why, made of one that decodes."""

    def sealed(changed: bytes) -> bytes:
        return changed[:-4] + zlib.crc32(changed[:-4]).to_bytes(4, "little")

    def at(place: int, value: int) -> bytes:
        return data[:place] + bytes([value]) + data[place + 1 :]

    middle = len(data) // 2
    return {
        "bad-empty": (b"", "it is empty"),
        "bad-cut": (data[:-5], "it is cut off"),
        "bad-longer": (data + b"\0", "bytes follow its end"),
        "bad-magic": (sealed(at(0, 0x48 ^ 1)), "it begins otherwise"),
        "bad-version": (sealed(at(3, 9)), "its version is unknown"),
        "bad-flags": (sealed(at(4, data[4] | 0x80)), "bit 7 of its flags is set"),
        "bad-checksum": (at(middle, data[middle] ^ 4), "its checksum does not fit"),
        "bad-symbols": (sealed(at(middle, data[middle] ^ 4)), "its digest does not fit"),
        "bad-model": (sealed(at(5, data[5] ^ 1)), "another model made it"),
        "bad-size": (sealed(at(9, 0)), "its width is 0"),
    }


def case_of(name: str, model: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What the torch engine finds in a file of a kit."""
    engine, data = load_engine(model_file(model, folder), "torch"), contents(name, folder)
    seen = watched(engine, data)
    assert seen.error is None, (name, seen.error)
    picture = picture_in(engine, data)
    image = picture.to_pil()
    exact = container.read(data).header.pixel_digest
    assert exact in (None, zlib.crc32(picture.pixels.tobytes()))
    return {
        "model": model,
        "groups": [list(asdict(group).values()) for group in seen.groups],
        "latents": seen.latents,
        "mode": image.mode,
        "size": list(image.size),
        "cells": list(cells_of(picture)),
        "alpha": 0 if picture.alpha is None else zlib.crc32(picture.alpha.tobytes()),
        **({} if exact is None else {"pixels": exact}),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
