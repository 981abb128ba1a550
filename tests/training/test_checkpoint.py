"""Which checkpoints count, which are kept, and what is noticed of a damaged one."""

import json
import tempfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.errors import CheckpointError
from hpcm_scale.training import checkpoint
from hpcm_scale.training.async_checkpoint_writer import CheckpointWriter


def make(run: Path, step: int, whole: bool = True) -> Path:
    folder = checkpoint.folder_of(run, step)
    folder.mkdir(parents=True)
    content = f"states of step {step}".encode()
    (folder / "states.pt").write_bytes(content)
    if whole:
        files = {"states.pt": {"bytes": len(content), "crc32": zlib.crc32(content)}}
        checkpoint.complete(folder, {"step": step, "files": files})
    return folder


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), unique_by=lambda pair: pair[0]),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 10)),
)
def test_pruning_keeps_the_newest_whole_ones_and_the_multiples(made, keep, keep_every):
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        for step, whole in made:
            make(run, step, whole)
        whole = sorted(step for step, is_whole in made if is_whole)
        checkpoint.prune(run, keep, keep_every)
        left = {found.step for found in checkpoint.checkpoints(run)}
        kept = set(whole[-keep:]) | {s for s in whole if keep_every and s % keep_every == 0}
        assert kept <= left
        # what is not whole stays only if it may be one that is being written
        assert all(step > max(whole, default=0) for step in left - kept)
        if whole:
            assert checkpoint.newest(run).name == f"step-{whole[-1]:08d}"


def test_a_checkpoint_is_whole_only_with_its_record(tmp_path):
    make(tmp_path, 10)
    unfinished = make(tmp_path, 20, whole=False)
    assert checkpoint.newest(tmp_path).name == "step-00000010"
    assert "was not written to its end" in checkpoint.damage(checkpoint.checkpoints(tmp_path)[1])
    with pytest.raises(CheckpointError, match="was not written to its end"):
        checkpoint.at(unfinished)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.at(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
        (lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]), "checksum"),
    ],
)
def test_damage_is_named(tmp_path, harm, said):
    folder = make(tmp_path, 3)
    assert checkpoint.damage(checkpoint.at(folder)) is None
    harm(folder / "states.pt")
    wrong = checkpoint.damage(checkpoint.at(folder))
    assert "states.pt" in wrong
    assert said in wrong


@pytest.mark.parametrize("background", [True, False])
def test_the_writer_keeps_the_values_of_the_moment(tmp_path, background):
    writer = CheckpointWriter(background)
    writer.start(tmp_path)
    weights = torch.arange(5.0)
    state = {"module": {"w": weights}, "list": [1, (weights, "text")]}
    writer.save(state, str(tmp_path / "states.pt"))
    if background:
        weights += 100  # training goes on while the thread writes
    writer.save_tensors(tmp_path / "ema.safetensors", {"w": weights}, {"world": "1"})
    writer.finish()
    writer.wait()
    assert writer.error is None
    read = torch.load(tmp_path / "states.pt", weights_only=True)
    assert read["module"]["w"].tolist() == [0, 1, 2, 3, 4]
    assert read["list"][1][0].tolist() == [0, 1, 2, 3, 4]
    for name, entry in writer.files.items():
        content = (tmp_path / name).read_bytes()
        assert entry == {"bytes": len(content), "crc32": zlib.crc32(content)}
    assert len(writer.files) == 2


def test_a_full_disk_is_kept_as_the_error_and_no_file_is_listed(tmp_path):
    writer = CheckpointWriter(background=True)
    writer.start(tmp_path)
    (tmp_path / "states.pt").symlink_to("/dev/full")
    writer.save({"w": torch.zeros(1000)}, str(tmp_path / "states.pt"))
    writer.save({"w": torch.zeros(1000)}, str(tmp_path / "after.pt"))
    writer.finish()
    writer.wait()
    assert isinstance(writer.error, (OSError, RuntimeError))
    assert writer.files == {}
    assert json.dumps(str(writer.error))
