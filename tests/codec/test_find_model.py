"""The models that a command finds: bundled ones, one's own, and what lies among them."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from hpcm_scale.codec.find_model import find_model
from hpcm_scale.weights.stored_model import BUNDLED, models_in, read_info
from tests.codec.conftest import Run, refused, save_tiny


def test_a_quality_and_a_model_of_one_rate_are_not_both_given(run: Run, picture: Path) -> None:
    refused(run("encode", picture, "-q", "1", "--model", "tiny"), "quality", "one rate")


def test_own_models_stand_beside_the_bundled(
    run: Run,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundled = next(iter(models_in(BUNDLED)))
    coded = tmp_path / "a.hpcm"
    monkeypatch.delenv("HPCM_MODELS")
    assert run("encode", picture, "-o", coded, "--model", bundled)[0] == 0
    own = tmp_path / "own"
    own.mkdir()
    save_tiny(own / "mine.safetensors")
    monkeypatch.setenv("HPCM_MODELS", str(own))
    assert run("decode", coded, "-o", tmp_path / "a.png")[0] == 0  # found by its identity
    assert run("encode", picture, "-o", coded, "--model", bundled)[0] == 0
    assert "model tiny-0.013" in run("encode", picture, "-o", coded)[1]
    (own / "mine.safetensors").rename(own / f"{bundled}.safetensors")
    assert read_info(find_model(bundled)).config.name == "tiny"  # one's own comes first


def test_a_bad_file_among_ones_models_is_noted(
    run: Run,
    picture: Path,
    tmp_path: Path,
    models: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    save_tiny(own / "mine.safetensors")
    with safe_open(models / "tiny.safetensors", "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    faults = {
        "text": {"lmbda": '"x"'},
        "deep": {"config": "[" * 100_000 + "]" * 100_000},
        "deep record": {"record": '{"a":' * 50_000 + "1" + "}" * 50_000},
        "no record": {"record": "3"},
        "digits": {"lmbda": "9" * 5000},
    }
    for name, fault in faults.items():
        save_file(tensors, own / f"{name}.safetensors", metadata | fault)
    (own / "index.safetensors.index.json").write_text("[" * 100_000)
    monkeypatch.setenv("HPCM_MODELS", str(own))
    code, said, _ = run("encode", picture, "-o", tmp_path / "a.hpcm")
    assert code == 0
    assert "model tiny-0.013" in said
    for name in (*faults, "index"):
        assert sum(f"{name}.safetensors" in note for note in caplog.messages) == 1
