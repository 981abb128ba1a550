"""Manifests whose samples lie in tables beside them: the same dataset, opened by mapping."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcm_scale.config import DataConfig
from hpcm_scale.data import manifest as manifests
from hpcm_scale.data.manifest import NAME, TABLE_FILES, Manifest
from hpcm_scale.data.remote import Cache
from hpcm_scale.data.sample_table import ROW
from hpcm_scale.data.shard import COLUMNS
from hpcm_scale.data.shards import ShardReader, read_manifest
from hpcm_scale.data.stream import TrainStream
from hpcm_scale.data.verify import verify
from hpcm_scale.errors import DataError

GOLDEN = Path(__file__).parent / "golden/manifest_1.json"
GOLDEN_FINGERPRINT = 278172584318216


@pytest.fixture
def both(dataset: Path, tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    """A dataset whose manifest.json holds all, and the same with tables."""
    plain, tabled = tmp_path / "plain", tmp_path / "tabled"
    shutil.copytree(dataset, plain)
    shutil.copytree(dataset, tabled)
    monkeypatch.setattr(manifests, "TABLES_FROM", 1)
    read_manifest(str(tabled)).write(tabled)
    assert len(list(tabled.glob(TABLE_FILES))) == 2
    return plain, tabled


def test_tables_say_what_json_says(both):
    plain, tabled = (read_manifest(str(folder)) for folder in both)
    assert json.loads((both[1] / NAME).read_text())["format"] == "hpcm_scale dataset 2"
    assert plain.totals() == tabled.totals()
    for ours, theirs in zip(plain.shards, tabled.shards, strict=True):
        assert list(theirs.names) == list(ours.names)
        assert theirs.names[-1] == ours.names[-1]
        assert ours.least_side == theirs.least_side
        for column in ("offsets", "sizes", "widths", "heights", "crcs"):
            assert np.array_equal(getattr(ours, column), getattr(theirs, column)), column
    for name in plain.splits():
        splits = plain.split(name, ""), tabled.split(name, "")
        assert splits[0].fingerprint() == splits[1].fingerprint()
        assert splits[1].recorded is not None
        readers = [ShardReader(str(f), s, 1, None) for f, s in zip(both, splits, strict=True)]
        for sample in range(splits[0].samples):
            assert readers[0].read(sample) == readers[1].read(sample)
    assert verify(str(both[1])) == []


def test_a_manifest_of_format_1_opens_and_keeps_its_order(tmp_path, monkeypatch):
    """golden/manifest_1.json was written before there were tables and checksums."""
    shutil.copy(GOLDEN, tmp_path / NAME)
    old = read_manifest(str(tmp_path))
    train = old.split("train", "")
    assert {name: t["samples"] for name, t in old.totals().items()} == {"train": 33, "val": 4}
    assert old.shards[0].names[2] == "photo0_2-4da63db8c076d93f.png"
    assert (int(old.shards[0].offsets[2]), int(old.shards[0].sizes[2])) == (6656, 1582)
    assert all(shard.crcs is None for shard in old.shards)
    assert train.fingerprint() == GOLDEN_FINGERPRINT  # what checkpoints of its runs hold
    monkeypatch.setattr(manifests, "TABLES_FROM", 1)
    old.write(tmp_path)
    new = read_manifest(str(tmp_path))
    assert new.tables
    assert new.totals() == old.totals()
    assert new.split("train", "").fingerprint() == GOLDEN_FINGERPRINT
    assert all(shard.crcs is None for shard in new.shards)


def test_a_run_goes_on_when_its_set_gets_tables(both):
    """The order of samples and what a checkpoint holds of it are the same."""
    streams = [
        TrainStream(DataConfig(train=str(f), crop=16, streams=2, workers=0), seed=3, global_batch=4)
        for f in both
    ]
    state = streams[0].state_dict() | {"step": 2, "samples": 8}
    for stream in streams:
        stream.load_state_dict(state)
    batches = [next(iter(stream)) for stream in streams]
    assert batches[0]["sample"].tolist() == batches[1]["sample"].tolist()


def test_a_url_keeps_its_tables_in_the_cache(both, tmp_path):
    url = both[1].as_uri()
    plain = read_manifest(str(both[0])).split("train", "")
    for cache in (None, Cache(tmp_path / "cache", 10**9)):
        split = read_manifest(url, cache).split("train", "")
        assert [list(shard.names) for shard in split.shards] == [
            list(shard.names) for shard in plain.shards
        ]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_names_beyond_ascii_come_back(both, tmp_path):
    manifest = read_manifest(str(both[0]))
    first = manifest.shards[0]
    names = [f"bild-ä{i}/ö.png" for i in range(first.samples)]
    changed = Manifest((replace(first, names=names),), "test")
    changed.write(tmp_path)
    assert list(read_manifest(str(tmp_path)).shards[0].names) == names


def test_writing_again_leaves_only_what_is_referred_to(both):
    folder = both[1]
    manifest = read_manifest(str(folder))
    Manifest(manifest.shards[1:], "test").write(folder)
    kept = {entry["file"] for entry in json.loads((folder / NAME).read_text())["tables"]}
    assert {path.name for path in folder.glob(TABLE_FILES)} == kept
    # What was mapped before is still there for those who have it.
    assert len(list(manifest.shards[0].names)) == manifest.shards[0].samples


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda rows, names: rows.unlink(), r"cannot be read \(No such file.*copy both"),
        (lambda rows, names: rows.write_bytes(rows.read_bytes()[:-4]), "bytes, manifest.json says"),
        (lambda rows, names: rows.write_bytes(bytes(len(rows.read_bytes()))), "is damaged"),
        (lambda rows, names: names.unlink(), r"-names.npy: cannot be read"),
    ],
)
def test_tables_that_do_not_fit_are_one_line(both, harm, said):
    rows, names = sorted(both[1].glob(TABLE_FILES), key=lambda path: len(path.name))
    harm(rows, names)
    with pytest.raises(DataError, match=said) as caught:
        read_manifest(str(both[1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("offset", 2**40, "has samples outside its"),
        ("offset", -1, "has samples outside its"),
        ("size", 2**32 - 1, "has samples outside its"),
    ],
)
def test_rows_that_lead_out_of_a_shard_are_not_read(both, field, value, said):
    rows = min(both[1].glob(TABLE_FILES), key=lambda path: len(path.name))
    table = np.load(rows).copy()
    assert table.dtype == ROW
    table[field][0] = value
    np.save(rows, table)
    split = read_manifest(str(both[1])).split("train", "")
    first = next(n for n in range(split.samples) if split.shards[split.locate(n)[0]].samples)
    damaged = min(
        (s for s in (split, read_manifest(str(both[1])).split("val", "")) if s.shards),
        key=lambda s: s.shards[0].path != read_manifest(str(both[1])).shards[0].path,
    )
    reader = ShardReader(str(both[1]), damaged, 1, None)
    with pytest.raises(DataError, match=said):
        reader.read(first)


@pytest.mark.parametrize(
    "change",
    [
        {"tables": []},
        {"tables": [{"file": "../x.npy", "bytes": 1, "sha256": ""}] * 2},
        {"tables": [{"file": "x.npy"}] * 2},
        {"fingerprints": {"train": "12"}},
    ],
)
def test_a_damaged_head_is_refused(both, change):
    path = both[1] / NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError):
        read_manifest(str(both[1]))


def _resident_growth(folder: str) -> int:
    """Bytes of private memory that opening a dataset and reading its first sample takes."""

    def private() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    before = private()
    split = read_manifest(folder).split("train", "")
    assert split.shards[0].names[0]
    return 1024 * (private() - before)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps")
def test_many_samples_take_no_memory_of_each_process(dataset: Path, tmp_path: Path):
    shard = next(s for s in read_manifest(str(dataset)).shards if s.split == "train")
    rows = np.resize(np.arange(shard.samples), 10_000)
    columns = {c: getattr(shard, c)[rows] for c in (*COLUMNS, "crcs")}
    names = [shard.names[row] for row in rows]
    shards = [replace(shard, path=f"{n:06d}.tar", names=names, **columns) for n in range(100)]
    Manifest(tuple(shards), "test").write(tmp_path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown = pool.apply(_resident_growth, (str(tmp_path),))
    assert grown < 8 << 20  # a million rows are 32 MB
