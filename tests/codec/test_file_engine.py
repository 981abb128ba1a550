"""Which engine decodes where none is named: NumPy as long as it costs less, and can."""

import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcm_scale import conformance
from hpcm_scale.codec import commands, file_engine
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.engines import choose
from hpcm_scale.codec.engines.choose import NUMPY_WORK, Name, cheaper_engine
from hpcm_scale.codec.file_engine import engine_for_files
from hpcm_scale.weights.stored_model import bundled_model
from tests.codec.conftest import Run

MODEL = "w0.125-0.013"
PEER = Path(conformance.__file__).parent / "peers" / "models" / "elic.safetensors.xz"
Coded = Callable[..., str]


@pytest.fixture
def coded(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Coded:
    """A function that makes a file of 64×64 pixels by a bundled model, and gives its name."""

    def make(name: str = "small", portable: bool = True, exact: bool | None = None) -> str:
        codec = Codec.load(bundled_model(MODEL), portable=portable, exact_pixels=exact)
        path = tmp_path / f"{name}.hpcm"
        path.write_bytes(codec.encode(make_photo(64, 64)))
        return str(path)

    return make


def test_numpy_takes_work_up_to_the_bound() -> None:
    assert cheaper_engine(NUMPY_WORK) == "numpy"
    assert cheaper_engine(NUMPY_WORK + 1) == "torch"


def test_without_torch_numpy_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "has_torch", lambda: False)
    monkeypatch.setattr(file_engine, "has_torch", lambda: False)
    assert cheaper_engine(2 * NUMPY_WORK) == "numpy"
    assert engine_for_files(["-"]) == "numpy"


def test_the_work_is_pixels_times_bytes_of_all_files(
    coded: Coded, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = coded()
    assert engine_for_files([file, file]) == "numpy"
    one = 64 * 64 * bundled_model(MODEL).stat().st_size
    for module in (choose, file_engine):
        monkeypatch.setattr(module, "NUMPY_WORK", one)
    assert engine_for_files([file]) == "numpy"
    assert engine_for_files([file, file]) == "torch"


def test_torch_takes_what_is_not_exact(coded: Coded) -> None:
    exact = coded()
    assert engine_for_files([coded("inexact", exact=False)]) == "torch"
    assert engine_for_files([coded("fast", portable=False)]) == "torch"
    assert engine_for_files([exact, coded("inexact", exact=False)]) == "torch"
    assert engine_for_files(["-"]) == "torch"


def test_a_peer_is_left_to_torch(coded: Coded, tmp_path: Path) -> None:
    peer = tmp_path / PEER.stem
    peer.write_bytes(lzma.decompress(PEER.read_bytes()))
    assert engine_for_files([coded()], str(peer)) == "torch"


def test_unreadable_files_do_not_decide(tmp_path: Path, coded: Coded) -> None:
    broken = tmp_path / "broken.hpcm"
    broken.write_bytes(b"no file")
    assert engine_for_files([str(broken), str(tmp_path / "none.hpcm")]) == "numpy"
    assert engine_for_files([str(broken), coded("fast", portable=False)]) == "torch"


@pytest.mark.parametrize("engine", [None, "torch", "numpy"])
def test_an_engine_that_is_named_is_taken(
    coded: Coded, run: Run, monkeypatch: pytest.MonkeyPatch, engine: str | None
) -> None:
    seen: list[Name] = []
    loaded = commands._loaded
    monkeypatch.setattr(
        commands,
        "_loaded",
        lambda path, options: (seen.append(options.engine), loaded(path, options))[1],
    )
    named = [] if engine is None else ["--engine", engine]
    code, _, error = run("decode", coded(), "--threads", "1", *named)
    assert (code, error) == (0, "")
    assert seen == [engine or "numpy"]
