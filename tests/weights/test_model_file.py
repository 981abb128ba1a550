import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hpcm_scale.config import ModelConfig
from hpcm_scale.entropy.exact.scaled_weights import ScaledWeights
from hpcm_scale.entropy.table_building import build_tables
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import load_model, save_model
from hpcm_scale.weights.stored_model import files_of, models_in, read_info, read_stored

CONFIG = model_config(
    "base",
    overrides={
        "latent_channels": 8,
        "hyper_channels": 4,
        "widths": [4, 4, 8],
        "hyper_width": 4,
        "heads": 2,
    },
)


def _state(config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(config).state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, _state(), CONFIG, lmbda=0.013, record={"steps": 7, "data": "photos"})
    return path


def _rewrite(path: Path, tensors: dict | None = None, metadata: dict | None = None) -> None:
    """Change parts of a model file behind the back of its identity."""
    with safe_open(path, "pt") as stored:
        every = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        described = stored.metadata()
    save_file(every | (tensors or {}), path, described | (metadata or {}))


def test_a_model_comes_back_as_it_was_saved(path: Path) -> None:
    loaded = load_model(path)
    assert loaded.info.config == CONFIG
    assert loaded.info.lmbda == 0.013
    assert loaded.info.record == {"steps": 7, "data": "photos"}
    assert loaded.info.label == "base-0.013"
    state = _state()
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, state[name])
    expected = build_tables(loaded.network)
    assert loaded.tables.digest() == expected.digest() == loaded.info.tables_hash
    assert read_info(path) == loaded.info


def test_tables_are_read_not_recomputed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcm_scale.entropy.table_building._frequencies", None)
    assert load_model(path).tables.y.frequencies.size > 1000


def test_identity_follows_weights_not_the_record(path: Path, tmp_path: Path) -> None:
    identity = read_info(path).identity
    other = tmp_path / "other.safetensors"
    same = save_model(other, _state(), CONFIG, lmbda=0.5, record={"steps": 8})
    assert same.identity == identity
    state = _state()
    bias = state["h_s.0.0.bias"]
    bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    assert save_model(other, state, CONFIG).identity != identity
    renamed = CONFIG.model_copy(update={"hyper_alignment": "official"})
    assert save_model(other, _state(), renamed).identity != identity
    state = _state()
    state["z_prior.scale"][0] = 3
    assert save_model(other, state, CONFIG).tables_hash != read_info(path).tables_hash


def test_half_precision_parameters_are_stored_in_single(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in _state().items()}
    save_model(tmp_path / "m.safetensors", state, CONFIG)
    network = load_model(tmp_path / "m.safetensors").network
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name].float())


def test_a_half_sized_file_is_of_rounded_parameters(path: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    written = save_model(half, _state(), CONFIG, lmbda=0.013, half=True)
    parameters = sum(tensor.numel() for tensor in _state().values())
    assert path.stat().st_size - half.stat().st_size == pytest.approx(2 * parameters, abs=500)
    loaded = load_model(half)
    rounded = {name: tensor.half().float() for name, tensor in _state().items()}
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, rounded[name])
    whole = tmp_path / "rounded.safetensors"
    assert save_model(whole, rounded, CONFIG).identity == written.identity == loaded.info.identity


def test_a_file_in_bytes_is_of_the_integers_that_coding_takes(tmp_path: Path) -> None:
    small, half = tmp_path / "bytes.safetensors", tmp_path / "half.safetensors"
    written = save_model(small, _state(), CONFIG, in_bytes=True)
    rounded = save_model(half, _state(), CONFIG, half=True)
    assert written.arithmetic == rounded.arithmetic
    assert small.stat().st_size < half.stat().st_size
    loaded, before = load_model(small), load_model(half)
    assert loaded.info.identity == written.identity
    taken = moved = 0
    for (name, tensor), other in zip(
        loaded.network.state_dict().items(), before.network.state_dict().values(), strict=True
    ):
        if torch.equal(tensor, other):
            continue
        taken += tensor.numel()
        rows = (weight.numpy().reshape(len(tensor), -1) for weight in (tensor, other))
        ours, theirs = (ScaledWeights(w, np.zeros(len(w), np.float32), name) for w in rows)
        assert np.array_equal(
            ours.unit, (np.abs(tensor.numpy()).reshape(len(tensor), -1).max(1) / 127)
        )
        # Units have fewer digits: a weight half-way between two integers may become the other.
        assert np.abs(ours.weight - theirs.weight).max() <= 1
        moved += (ours.weight != theirs.weight).sum()
    assert taken > 1000
    assert moved < taken / 200
    assert read_stored(small, "np").tensors.keys() == read_stored(half, "np").tensors.keys()


def test_bytes_without_their_units_are_refused(tmp_path: Path) -> None:
    small = tmp_path / "bytes.safetensors"
    save_model(small, _state(), CONFIG, in_bytes=True)
    with safe_open(small, "pt") as stored:
        name = next(n for n in stored.keys() if n.endswith(".unit"))  # noqa: SIM118
    for wrong in (torch.zeros(3), torch.zeros(1, dtype=torch.float16)):
        _rewrite(small, {name: wrong})
        with pytest.raises(CheckpointError, match="belongs to no weight in bytes"):
            load_model(small)
    elic = model_config("elic", width=0.05)
    with pytest.raises(CheckpointError, match="no weights that coding takes as bytes"):
        save_model(tmp_path / "e.safetensors", build(elic).state_dict(), elic, in_bytes=True)


def test_every_damaged_part_is_found(path: Path) -> None:
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    spots = [*range(0, header, 199), *rng.integers(header, len(whole), 40).tolist()]
    for at in spots:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        try:
            load_model(path)
        except CheckpointError as error:
            message = str(error)
        else:
            # Only what does not decide how pictures are coded may change: record, λ.
            assert at < header
            continue
        assert message.startswith(str(path))
    for length in (0, 7, header - 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_model(path)


def test_changed_weights_or_tables_are_found_by_the_identity(path: Path) -> None:
    with safe_open(path, "pt") as stored:
        frequencies = stored.get_tensor("coding.y.frequencies").clone()
    frequencies[:2] += torch.tensor([1, -1], dtype=torch.int32)
    _rewrite(path, {"coding.y.frequencies": frequencies})
    with pytest.raises(CheckpointError, match="is damaged: its contents have identity"):
        load_model(path)


def test_files_that_are_not_models_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model file"):
        load_model(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="no such model file"):
        load_model(tmp_path)
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(1)}, plain)
    with pytest.raises(CheckpointError, match=r"plain\.safetensors: is not a model"):
        load_model(plain)
    _rewrite(path, metadata={"config": "{"})
    with pytest.raises(CheckpointError, match="damaged metadata"):
        load_model(path)
    fields = json.loads(CONFIG.model_dump_json()) | {"surprise": 1}
    _rewrite(path, metadata={"config": json.dumps(fields)})
    with pytest.raises(CheckpointError, match="surprise: unknown key"):
        load_model(path)


def test_parameters_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    state = _state()
    missing = {name: t for name, t in state.items() if name != "z_prior.mean"}
    with pytest.raises(CheckpointError, match=r"1 missing \['z_prior.mean'\]"):
        save_model(path, missing, CONFIG)
    with pytest.raises(CheckpointError, match=r"1 unknown \['extra'\]"):
        save_model(path, state | {"extra": torch.zeros(1)}, CONFIG)
    with pytest.raises(CheckpointError, match=r"z_prior.mean has shape \(1, 5, 1, 1\)"):
        save_model(path, state | {"z_prior.mean": torch.zeros(1, 5, 1, 1)}, CONFIG)
    with pytest.raises(CheckpointError, match=r"z_prior\.mean holds values that are not finite"):
        save_model(path, state | {"z_prior.mean": torch.full((1, 4, 1, 1), np.nan)}, CONFIG)
    with pytest.raises(CheckpointError, match=r"m\.pt: does not end in \.safetensors"):
        save_model(tmp_path / "m.pt", state, CONFIG)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same model in shards; the path is that of the index."""
    target = tmp_path / "shards" / "model.safetensors"
    saved = save_model(target, _state(), CONFIG, lmbda=0.013, shard_size=60_000)
    return saved.path


def test_shards_hold_the_model_of_one_file(path: Path, sharded: Path) -> None:
    assert sharded.name == "model.safetensors.index.json"
    index = json.loads(sharded.read_text())
    names = sorted({*index["weight_map"].values()})
    count = len(names)
    assert count > 2
    assert names == [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    assert files_of(sharded) == [sharded, *(sharded.parent / name for name in names)]
    total, state = 0, _state()
    for name in names:
        with safe_open(sharded.parent / name, "pt") as stored:
            for tensor in stored.keys():  # noqa: SIM118
                assert index["weight_map"][tensor] == name
                values = stored.get_tensor(tensor)
                total += values.nbytes
                if tensor in state:
                    assert torch.equal(values, state[tensor])
            held = [stored.get_slice(t).get_shape() for t in stored.keys()]  # noqa: SIM118
            assert len(held) == 1 or 4 * sum(map(np.prod, held)) <= 60_000
    assert index["metadata"]["total_size"] == total
    whole, loaded = load_model(path), load_model(sharded)
    assert loaded.info.identity == whole.info.identity == read_info(sharded).identity
    assert loaded.info.label == "base-0.013"
    first = read_info(sharded.parent / names[0])
    assert (first.identity, first.tables_hash) == (loaded.info.identity, whole.info.tables_hash)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)


def test_a_shard_that_is_missing_swapped_or_elsewhere_is_named(sharded: Path) -> None:
    second = next(sharded.parent.glob("*-00002-of-*"))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name}: no such model file"):
        load_model(sharded)
    second.write_bytes(next(sharded.parent.glob("*-00001-of-*")).read_bytes())
    with pytest.raises(CheckpointError, match=rf"{second.name}: lacks .*, which its index says"):
        load_model(sharded)
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"index\.json: is damaged: its contents"):
        load_model(sharded)
    second.write_bytes(content)
    assert load_model(sharded)
    index = json.loads(sharded.read_text())
    index["weight_map"]["z_prior.mean"] = "../model.safetensors"
    sharded.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is not the name of a file beside it"):
        load_model(sharded)
    for text in ("{", "[]", "{}", '{"metadata": 3, "weight_map": {}}'):
        sharded.write_text(text)
        with pytest.raises(CheckpointError, match="is not the index of a model"):
            read_info(sharded)
    with pytest.raises(CheckpointError, match="no such model file"):
        load_model(sharded.parent / "other.safetensors.index.json")


def test_a_folders_models_are_listed_without_their_shards(sharded: Path) -> None:
    small = sharded.parent / "small.safetensors"
    save_model(small, _state(), CONFIG, shard_size=10**9)  # fits: no index
    assert models_in(sharded.parent) == {"model": sharded, "small": small}


def test_a_model_that_fails_its_check_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()
    seen = []

    def check(finished: Path) -> None:
        seen.append(load_model(finished).info.identity)
        raise CheckpointError("not as it should be")

    for shard_size in (None, 60_000):
        with pytest.raises(CheckpointError, match="not as it should be"):
            save_model(path, _state(), CONFIG, shard_size=shard_size, check=check)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
    assert seen == [read_info(path).identity] * 2


def test_parameters_in_another_type_are_refused(path: Path) -> None:
    with safe_open(path, "pt") as stored:
        other = stored.get_tensor("g_a.0.0.bias").bfloat16()
    _rewrite(path, {"g_a.0.0.bias": other})
    with pytest.raises(CheckpointError, match=r"g_a\.0\.0\.bias is not in float32"):
        load_model(path)


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """In a process of its own, whose peak is that of the loading."""
    config = model_config("base")
    path = tmp_path / "base.safetensors"
    save_model(path, build(config).state_dict(), config)
    program = (
        "import resource, sys\n"
        "from hpcm_scale.weights.model_file import load_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); model = load_model(sys.argv[1]); print(peak() - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 1.15 * path.stat().st_size


FIELDS = [
    *("latent_channels", "hyper_channels", "hyper_width", "heads", "expansion", "partial_ratio"),
    *(f"{name}.{i}" for name in ("widths", "windows", "analysis_depths", "synthesis_depths",
                                 "hyper_depths", "adaptor_depths") for i in (0, 1)),
    *("shared_s12.before", "shared_s12.after", "shared_s3.before", "shared_s3.out"),
]  # fmt: skip


@pytest.mark.parametrize("value", [10**5, 8 * 10**9, 10**30])
@pytest.mark.parametrize("field", FIELDS)
def test_no_size_in_a_configuration_is_believed(path: Path, field: str, value: int) -> None:
    """Refused by what the file holds, before anything of that size is made."""
    values = json.loads(CONFIG.model_dump_json())
    *parents, last = field.split(".")
    part = values
    for name in parents:
        part = part[name]
    part[int(last) if isinstance(part, list) else last] = value
    _rewrite(path, metadata={"config": json.dumps(values)})
    start = time.monotonic()
    with pytest.raises(CheckpointError) as refused:
        load_model(path)
    assert time.monotonic() - start < 10  # a bound on hanging, not a measure of speed
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("half", [False, True])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, half: bool) -> None:
    """Also where the identity fits them: whoever made the file meant it."""
    path = tmp_path / "m.safetensors"
    save_model(path, _state(), CONFIG, half=half)
    for name in ("g_s.0.0.bias", "z_prior.mean", "steps.3.scale", "h_s.0.0.weight"):
        with safe_open(path, "pt") as stored:
            tensor = stored.get_tensor(name).clone()
        tensor.view(-1)[-1] = value
        other = tmp_path / "other.safetensors"
        other.write_bytes(path.read_bytes())
        _rewrite(other, {name: tensor})
        with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
            load_model(other)
    with safe_open(path, "pt") as stored:
        boundaries = stored.get_tensor("coding.y.boundaries").clone()
    boundaries[-1] = float("inf")
    _rewrite(path, {"coding.y.boundaries": boundaries})
    with pytest.raises(CheckpointError, match="boundaries of scales and offsets are not finite"):
        load_model(path)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(("lmbda", text) for text in ('"x"', "[]", "-1", "0", "true", "NaN", "1e999", "9" * 5000)),
        *(("record", text) for text in ("3", "[]", "null", '{"a":' * 50_000)),
        *(("config", text) for text in ("[" * 100_000, "[]", "3", "null", '{"architecture": []}')),
        *(("identity", text) for text in ("", "xyz", "A" * 64)),
        *(("tables_hash", text) for text in ("", "0" * 63)),
    ],
)
def test_metadata_of_other_kinds_is_refused(path: Path, field: str, text: str) -> None:
    _rewrite(path, metadata={field: text})
    for read in (read_info, load_model):
        with pytest.raises(CheckpointError) as refused:
            read(path)
        assert str(refused.value).startswith(f"{path}: has damaged metadata")
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 700


def test_an_index_of_anything_is_refused_in_one_line(sharded: Path) -> None:
    whole = json.loads(sharded.read_text())
    faults = [
        "[" * 100_000,
        json.dumps(whole | {"metadata": {**whole["metadata"], "config": 3}}),
        json.dumps(whole | {"metadata": {**whole["metadata"], "config": "\ud800"}}),
        json.dumps(whole | {"weight_map": {"a": 3}}),
        json.dumps(whole | {"weight_map": {"a": "..\0.safetensors"}}),
        json.dumps(whole | {"metadata": []}),
    ]
    for text in faults:
        sharded.write_text(text)
        with pytest.raises(CheckpointError) as refused:
            load_model(sharded)
        assert "\n" not in str(refused.value)


def test_labels_hold_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    config = CONFIG.model_copy(update={"name": "\x1b[31mred\u202e\x07"})
    save_model(path, _state(), config, lmbda=0.5)
    assert read_info(path).label == "\ufffd[31mred\ufffd\ufffd-0.5"
