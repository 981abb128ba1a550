"""Files written tensor by tensor, read by safetensors itself."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hpcm_scale.weights.safetensors_writer import (
    TensorSpec,
    TensorWriter,
    placed_beside,
    rewrite_metadata,
    split,
)

SPECS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.builds(
        TensorSpec,
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.sampled_from(["float32", "int32"]),
    ),
    max_size=6,
)


@settings(max_examples=50)
@given(SPECS, st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=3))
def test_safetensors_reads_what_was_written(tmp_path_factory, specs, metadata):
    path = tmp_path_factory.mktemp("file") / "t.safetensors"
    generator = np.random.default_rng(0)
    arrays = {n: generator.integers(-99, 99, s.shape).astype(s.dtype) for n, s in specs.items()}
    metadata = metadata | {"identity": "0" * 8}
    with TensorWriter(path, specs, metadata) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    metadata["identity"] = "12345678"
    rewrite_metadata(path, specs, metadata)
    with safe_open(path, "np") as stored:
        assert stored.metadata() == metadata
        assert set(stored.keys()) == set(specs)
        for name, array in arrays.items():
            read = stored.get_tensor(name)
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 60))
def test_shards_keep_order_and_limit(counts, limit):
    specs = {str(i): TensorSpec((count,), "float32") for i, count in enumerate(counts)}
    shards = split(specs, limit)
    assert [name for shard in shards for name in shard] == list(specs)
    sizes = [sum(spec.nbytes for spec in shard.values()) for shard in shards]
    for i, (shard, size) in enumerate(zip(shards, sizes, strict=True)):
        assert size <= limit or len(shard) == 1 or max(s.nbytes for s in shard.values()) == size
        if i:  # a file is begun only when the one before is full
            assert sizes[i - 1] + next(iter(shard.values())).nbytes > limit
    assert split(specs, None) == [specs]


def test_a_tensor_out_of_turn_or_left_out_is_a_mistake(tmp_path):
    specs = {"a": TensorSpec((2,), "float32"), "b": TensorSpec((), "int32")}
    path = tmp_path / "t.safetensors"
    with pytest.raises(ValueError, match="was due"), TensorWriter(path, specs, {}) as writer:
        writer.write("b", np.zeros((), np.int32))
    with pytest.raises(ValueError, match="before its last tensor"):  # noqa: SIM117
        with TensorWriter(path, specs, {}) as writer:
            writer.write("a", np.zeros(2, np.float32))
    with TensorWriter(path, specs, {}) as writer:
        writer.write("a", np.zeros(2, np.float32))
        writer.write("b", np.zeros((), np.int32))
    with pytest.raises(ValueError, match="for a room of"):
        rewrite_metadata(path, specs, {"longer": "x" * 20})


def test_files_move_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="absent"), placed_beside(tmp_path / "a") as folder:
        shutil.copy(folder / "absent", folder / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with placed_beside(tmp_path / "a") as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("beside it")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "new"
