"""The conformance kit: both engines pass it, and what it expects is what EXACT.md says."""

import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from hpcm_scale.codec import container
from hpcm_scale.codec.coding_result import Timing
from hpcm_scale.codec.engines.choose import load_engine
from hpcm_scale.codec.engines.engine import Engine
from hpcm_scale.codec.tile_coding import TileCoder
from hpcm_scale.codec.tiles import coding_tiles
from hpcm_scale.config import HpcmConfig
from hpcm_scale.conformance import check
from hpcm_scale.conformance.check import check_kit, fault_of
from hpcm_scale.conformance.kit import (
    FOLDER,
    PEERS,
    Case,
    cases,
    contents,
    model_file,
    opened,
    refused,
)
from hpcm_scale.entropy.coder import SymbolDigest
from hpcm_scale.entropy.exact.parameters import ARCHITECTURES
from hpcm_scale.weights.stored_model import read_info
from tests.codec.conftest import Run, models, run
from tests.conformance.third import decoded, parameters_of
from tests.entropy.exact_reference import Code, Reference, over_power
from tests.entropy.peer_blocks import Blocks
from tests.entropy.peer_flic import Flic, walk_flic
from tests.entropy.peer_walks import WALKS
from tests.entropy.pixel_reference import pixels_of
from tests.entropy.test_exact_elic import Reference as Elic

__all__ = ["models", "run"]
CASES, PEER_CASES = cases(), cases(PEERS)


def test_the_kit_holds_every_kind_of_file() -> None:
    assert len(CASES) + len(refused()) >= 60
    assert sum(case.pixels is not None for case in CASES) > 10
    headers = {case.name: container.read(contents(case.name)).header for case in CASES}
    assert all(header.portable for header in headers.values())
    assert any(header.tiles > 4 for header in headers.values())
    assert sum(header.scales > 1 for header in headers.values()) > 3
    for case in CASES:
        assert headers[case.name].pixel_digest == case.pixels
    assert {case.mode for case in CASES} == {"L", "LA", "RGB", "RGBA"}
    assert len({header.rate for header in headers.values()}) > 4
    files = {path.stem for path in (FOLDER / "files").iterdir()}
    assert files == {case.name for case in CASES} | set(refused())
    infos = [read_info(path) for path in (FOLDER / "models").iterdir()]
    assert {info.path.stem for info in infos} == {case.model for case in CASES}
    assert {info.arithmetic.version for info in infos} == {1, 2}
    assert any(info.arithmetic.wide for info in infos)
    assert {dtype for info in infos for dtype in _dtypes(info.path)} == {"F16", "I8", "F32", "I32"}
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 3 << 20


def _dtypes(path: Path) -> set[str]:
    with safe_open(path, "np") as stored:
        return {stored.get_slice(key).get_dtype() for key in stored.keys()}  # noqa: SIM118


def test_the_peers_part_holds_every_peer() -> None:
    headers = {case.name: container.read(contents(case.name, PEERS)).header for case in PEER_CASES}
    assert all(header.portable for header in headers.values())
    assert any(header.tiles > 4 for header in headers.values())
    assert {path.stem for path in (PEERS / "files").iterdir()} == headers.keys()
    with opened(PEERS) as folder:
        infos = [read_info(path) for path in (folder / "models").iterdir()]
    assert {info.path.stem for info in infos} == {case.model for case in PEER_CASES}
    architectures = {info.config.architecture for info in infos}
    assert architectures == set(ARCHITECTURES) - {"hpcm", "dcvc-dc-intra"}
    assert {info.arithmetic.version for info in infos} == {1, 2}
    assert any(info.arithmetic.wide for info in infos)
    size = sum(path.stat().st_size for path in PEERS.rglob("*") if path.is_file())
    assert size < 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "numpy"])
def test_the_engine_conforms(engine: str) -> None:
    found = list(check_kit(engine))
    assert [checked for checked in found if checked.fault is not None] == []
    peers = len(PEER_CASES) if engine == "torch" else 0
    assert len(found) == len(CASES) + len(refused()) + peers


def _case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def test_the_first_step_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case("base-64x64")
    engine = load_engine(model_file("base"), "numpy")
    assert fault_of(engine, case, contents(case.name)) is None
    fuse = type(engine._network).fuse

    def off_by_one(self: Any, s: int, psi: np.ndarray, context: np.ndarray) -> np.ndarray:
        result = fuse(self, s, psi, context)
        return result + np.float32(3000) if s == 1 else result

    monkeypatch.setattr(type(engine._network), "fuse", off_by_one)
    # Fusion of S2's first step, step 2, is what step 3 reads.
    fault = fault_of(engine, case, contents(case.name))
    assert fault is not None
    assert fault.startswith(("tile 0, step 3: other", "tile 0, step 4: other"))


def test_another_model_s_file_differs_at_once() -> None:
    case, other = _case("base-64x64"), load_engine(model_file("official"), "numpy")
    fault = fault_of(other, case, contents(case.name))
    assert fault is not None
    assert fault == "tile 0, step 0: other tables"  # z has the same tables in both


def test_the_verb(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kit"
    code, said, error = run("conform", "--write", folder)
    assert code == 0, error
    pages = ("CONFORMANCE.md", "FORMAT.md", "EXACT.md")
    for page in pages:
        linked = re.findall(r"\(([^()]*\.md)\)", (folder / page).read_text(encoding="utf-8"))
        assert set(linked) <= set(pages)
    assert cases(folder) == CASES
    assert cases(folder / "peers") == PEER_CASES
    assert all(model_file(case.model, folder / "peers").is_file() for case in PEER_CASES)
    assert run("conform", "--write", folder)[0] == 2
    # A kit of two files, of which one expects other symbols.
    small = tmp_path / "small"
    (small / "models").mkdir(parents=True)
    shutil.copy(model_file("base"), small / "models")
    shutil.copytree(folder / "files", small / "files")
    expected = json.loads((folder / "expected.json").read_text())
    names = ["base-1x1", "base-64x64"]
    expected["files"] = {name: expected["files"][name] for name in names}
    expected["files"]["base-64x64"]["groups"][5][1] ^= 1
    expected["refused"] = {}
    (small / "expected.json").write_text(json.dumps(expected))
    monkeypatch.setattr(check.check_kit, "__defaults__", ("cpu", small))
    code, said, error = run("conform", "--engine", "numpy", "-v")
    assert code == 2
    assert "base-1x1: as it should be" in said
    assert "base-64x64: tile 0, step 4: other symbols" in said
    assert "1 of 2 files differ" in error


COMPUTED = ("-made", "-extreme", "-pixels")


@pytest.mark.parametrize("name", [c.name for c in CASES if c.name.endswith(COMPUTED)])
def test_the_kit_is_what_the_reference_computes(name: str) -> None:
    """Tables, latents and exact pixels, from symbols, by an implementation that shares no code."""
    case = _case(name)
    path = model_file(case.model)
    info, parameters = read_info(path), _parameters(path)
    assert isinstance(info.config, HpcmConfig)
    wide = info.arithmetic.wide if info.arithmetic.version == 2 else None
    engine = load_engine(path, "numpy")
    walk = Reference(parameters, info.config, wide).walk
    y_hat = latents_by(walk, engine, case, contents(name))
    if case.pixels is not None:
        header = container.read(contents(name)).header
        (tile,) = coding_tiles(header.height, header.width, engine.transforms.image_multiple, None)
        rows, columns = tile.inside
        rounded = y_hat.astype(np.float32).astype(np.int64)[:, :rows, :columns]
        grey = case.mode.startswith("L")
        found = pixels_of(parameters, info.config, rounded, header.rate, grey)
        assert zlib.crc32(found[: header.height, : header.width].tobytes()) == case.pixels


@pytest.fixture(scope="module")
def peers() -> Iterator[Path]:
    """The peers' part of the kit, its models as they load."""
    with opened(PEERS) as folder:
        yield folder


@pytest.mark.parametrize("name", [c.name for c in PEER_CASES if c.name.endswith(COMPUTED)])
def test_the_peers_part_is_what_the_reference_computes(name: str, peers: Path) -> None:
    case = next(case for case in PEER_CASES if case.name == name)
    path = model_file(case.model, peers)
    info, parameters = read_info(path), _parameters(path)
    wide = info.arithmetic.wide if info.arithmetic.version == 2 else None
    config: Any = info.config

    def walk(z_symbols: np.ndarray, code: Code) -> np.ndarray:
        if case.model == "elic":
            return Elic(parameters, config.groups).walk(z_symbols, code)
        blocks, steps = (Flic, walk_flic) if case.model == "flic" else (Blocks, WALKS[case.model])
        return steps(blocks(parameters, wide), config, z_symbols, code).transpose(2, 0, 1)

    latents_by(walk, load_engine(path, "torch"), case, contents(name, peers))


def _parameters(path: Path) -> dict[str, np.ndarray]:
    """A model file's parameters in single precision."""
    with safe_open(path, "np") as stored:
        return parameters_of({key: stored.get_tensor(key) for key in stored.keys()})  # noqa: SIM118


def latents_by(
    walk: Callable[[np.ndarray, Code], np.ndarray], engine: Engine, case: Case, data: bytes
) -> np.ndarray:
    """ŷ (M, h, w), over 1024, of the symbols in a file of one tile, by a reference's walk.

    Its tables and latents are the case's.
    """
    parsed = container.read(data)
    header = parsed.header
    (tile,) = coding_tiles(header.height, header.width, engine.transforms.image_multiple, None)
    symbols: list[np.ndarray] = []
    coder = TileCoder(engine, lambda _, values: symbols.append(values))
    with engine.computing():
        coder.decode(
            tile,
            parsed.payloads,
            SymbolDigest(0),
            Timing(),
            True,
            progressive=header.scales > 1,
        )
    masks, tables = engine.masks(tile), []

    def code(step: int, sigma: np.ndarray, mu: np.ndarray) -> np.ndarray:
        mask = masks[step][0]
        index = below(engine.tables.boundaries, sigma[mask])
        if engine.tables.offsets is not None:
            apart = np.abs(mu - 1024 * over_power(mu, 10))[mask]
            index = index * engine.tables.per_scale + below(engine.tables.offsets, apart)
        tables.append(zlib.crc32(index.astype("<u2").tobytes()))
        placed = np.zeros(sigma.shape, np.int64)
        placed[mask] = symbols[step + 1]
        return placed

    rows, columns = tile.hyper_inside
    n = engine.info.config.hyper_channels
    z_symbols = np.zeros((n, tile.place.height // 4, tile.place.width // 4), np.int64)
    z_symbols[:, :rows, :columns] = symbols[0].reshape(n, rows, columns)
    y_hat = walk(z_symbols, code)
    assert tables == [group.tables for group in case.groups[1:]]
    latents = y_hat.astype(np.float32) / np.float32(1024)
    assert zlib.crc32(np.ascontiguousarray(latents, "<f4").tobytes()) == case.latents
    return y_hat


def below(boundaries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many of the boundaries are below each of the values, which are over 1024."""
    found, inverse = np.unique(values, return_inverse=True)
    counts = [sum(Fraction(float(b)) < Fraction(int(v), 1024) for b in boundaries) for v in found]
    return np.array(counts)[inverse]


SETTINGS = {
    "SSE": {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"},
    "AVX2": {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4"},
    "AVX-512": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "two threads": {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
}
TORCH_SETTINGS = {
    "SSE": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": "2"},
}


def some(settings: dict[str, dict[str, str]]) -> list[Any]:
    """The first of them and the last, others only in the long run."""
    first, *between, last = settings
    return [first, *(pytest.param(name, marks=pytest.mark.long) for name in between), last]


def _under(setting: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[2])} | setting
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("setting", some(SETTINGS))
def test_numpy_conforms_under_other_settings(setting: str) -> None:
    """Whatever kernels OpenBLAS and NumPy choose, and with threads."""
    if setting == "AVX-512" and "avx512vl" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no AVX-512 here")
    done = _under(SETTINGS[setting], "hpcm_scale", "conform", "--engine", "numpy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{len(CASES) + len(refused())} files are as they should be")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("setting", some(TORCH_SETTINGS))
def test_torch_conforms_under_other_settings(setting: str) -> None:
    names = [case.name for case in CASES if case.pixels is not None]
    names += [case.name for case in PEER_CASES]
    done = _under(TORCH_SETTINGS[setting], "tests.conformance.some", "torch", *names)
    assert done.stdout.splitlines()[1:] == [f"{name} None" for name in names], done.stderr


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_decoder_of_the_pages_alone_decodes_the_kit(name: str) -> None:
    case = _case(name)
    pixels = decoded(contents(name), model_file(case.model))
    assert (None if pixels is None else zlib.crc32(pixels.tobytes())) == case.pixels
