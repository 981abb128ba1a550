"""Datasets behind a URL, from a real local server that can be slow to give and quick to fail."""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import torch

from hpcm_scale.config import DataConfig
from hpcm_scale.data import remote
from hpcm_scale.data.remote import Cache
from hpcm_scale.data.shard import Shard
from hpcm_scale.data.shards import ShardReader, read_manifest
from hpcm_scale.data.stream import TrainStream, read_images
from hpcm_scale.errors import DataError


class Server(ThreadingHTTPServer):
    """Serves a folder; `drops` and `lies` say how often a path fails before it is served well."""

    daemon_threads = True

    def __init__(self, root: Path, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.ranges = root, ranges
        self.drops: Counter[str] = Counter()
        self.lies: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes, by path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/set"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        name = self.path.removeprefix("/set/")
        path = self.server.root / name
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, stop = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.server.ranges and asked:
            start = int(asked[1])
            stop = min(stop, int(asked[2]) + 1) if asked[2] else stop
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if not body:
            return
        if self.server.lies[name] > 0:
            self.server.lies[name] -= 1
            content = bytes(len(content))
        if self.server.drops[name] > 0:
            self.server.drops[name] -= 1
            self.wfile.write(content[start : (start + stop) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self.server.sent[name] += stop - start
        self.wfile.write(content[start:stop])


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(dataset: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(dataset, ranges=request.param)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACK_OFF", 0.001)


def config(root: str, cache: Path, workers: int = 0, cache_gb: float = 1) -> DataConfig:
    return DataConfig(
        train=root, crop=24, streams=12, shuffle_buffer=8, workers=workers,
        cache=str(cache), cache_gb=cache_gb,
    )  # fmt: skip


def batches(data: DataConfig, rank: int = 0, ranks: int = 1) -> list[dict]:
    stream = TrainStream(data, seed=7, global_batch=12, rank=rank, world_size=ranks)
    return list(islice(stream, 6))


def assert_same(found: list[dict], expected: list[dict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["sample"], other["sample"])
        assert torch.equal(one["crop"], other["crop"])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.distributed)])
def test_a_url_gives_the_batches_of_the_folder(dataset, server, tmp_path, workers: int):
    expected = batches(config(str(dataset), tmp_path))
    assert_same(batches(config(server.url, tmp_path, workers)), expected)
    split = read_manifest(str(dataset)).split("train", "")
    # Each shard travelled once, whatever the number of epochs, streams and workers.
    assert {n: b for n, b in server.sent.items() if n.startswith("train")} == {
        shard.path: shard.bytes for shard in split.shards
    }
    seen = [image.key for image in read_images(config(server.url, tmp_path))]
    assert seen == [image.key for image in read_images(str(dataset))]


def test_dropped_connections_are_tried_again(dataset, server, tmp_path, caplog):
    shards = read_manifest(str(dataset)).split("train", "").shards
    server.drops.update({"manifest.json": 1, shards[0].path: 2, shards[1].path: 4})
    server.lies.update({shards[2].path: 1})
    found = batches(config(server.url, tmp_path / "cache"))
    assert_same(found, batches(config(str(dataset), tmp_path)))
    assert "attempt 4 of 8 failed" in caplog.text
    assert "SHA-256" in caplog.text
    assert sum(server.drops.values()) + sum(server.lies.values()) == 0


def test_a_server_that_keeps_failing_is_a_clear_error(dataset, server, tmp_path):
    shard = read_manifest(str(dataset)).split("train", "").shards[0]
    server.drops[shard.path] = 1000
    with pytest.raises(DataError, match=rf"^http://\S+{shard.path}: could not be read in 8 att"):
        batches(config(server.url, tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob(f"*{shard.sha256}*.tar"))


def test_a_shard_that_is_not_the_manifests_is_a_clear_error(dataset, server, tmp_path):
    shard = read_manifest(str(dataset)).split("train", "").shards[0]
    server.lies[shard.path] = 1000
    with pytest.raises(DataError, match=r"8 attempts; the last one: its SHA-256 is not the man"):
        batches(config(server.url, tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.tar*"))


def test_what_is_not_there_is_a_clear_error_at_once(server, tmp_path):
    with pytest.raises(DataError, match=r"/nothing/manifest\.json: does not exist"):
        batches(config(f"{server.url}/nothing", tmp_path))


@pytest.mark.parametrize("url", ["nonsense://x/y", "http://127.0.0.1:9/set"])
def test_a_url_that_cannot_be_read_is_a_clear_error(url: str, tmp_path):
    with pytest.raises(DataError, match=re.escape(url)):
        batches(config(url, tmp_path))


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_buckets_are_reached_through_fsspec_by_url(protocol: str):
    """Without the extra package, or without the network: an error that says what is amiss."""
    with pytest.raises(DataError, match=rf"{protocol}://no-such-bucket-hpcm/set"):
        read_manifest(f"{protocol}://no-such-bucket-hpcm/set")


def make_shards(root: Path, sizes: list[int]) -> list[Shard]:
    shards = []
    for number, size in enumerate(sizes):
        content = bytes([number]) * size
        (root / f"{number}.tar").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        shards.append(Shard(f"{number}.tar", "train", size, digest, [], *[None] * 4))
    return shards


def cached(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def test_the_cache_keeps_its_bound_and_what_was_used_last(tmp_path, monkeypatch):
    shards = make_shards(tmp_path, [100, 200, 300, 400])
    fetched = []
    chunks = remote._chunks
    monkeypatch.setattr(
        remote, "_chunks", lambda url, limit: fetched.append(url[-5]) or chunks(url, limit)
    )
    cache = Cache(tmp_path / "cache", bound=650)
    held = []
    for number in (0, 1, 2, 0, 3, 0, 2, 3):
        file = cache.open(f"file://{tmp_path}/{number}.tar", shards[number])
        assert file.read() == bytes([number]) * shards[number].bytes
        held.append(file)
        assert cached(tmp_path / "cache") <= 650
    # 3 pushed out 1 and 2, the longest unused; 2 then pushed out 3, being needed again.
    assert "".join(fetched) == "012323"
    # Evicted entries stay readable where they are open.
    for file in held:
        file.seek(0)
        assert len(set(file.read())) == 1
        file.close()


def test_a_damaged_cache_entry_is_fetched_again(tmp_path):
    (shard,) = make_shards(tmp_path, [1000])
    cache = Cache(tmp_path / "cache", bound=2000)
    url = f"file://{tmp_path}/0.tar"
    cache.open(url, shard).close()
    (entry,) = (tmp_path / "cache").glob("*.tar")
    for damage in (b"\0" * 999, b"\1" * 1000, b""):
        entry.write_bytes(damage)
        with cache.open(url, shard) as file:
            assert file.read() == b"\0" * 1000


def test_a_shard_longer_than_its_entry_is_not_read_whole(tmp_path):
    (shard,) = make_shards(tmp_path, [1000])
    (tmp_path / "0.tar").write_bytes(b"\0" * 5000)
    with pytest.raises(DataError, match="longer than 1000 bytes"):
        Cache(tmp_path / "cache", bound=2000).open(f"file://{tmp_path}/0.tar", shard)


def test_a_cache_too_small_is_refused_before_the_run_starts(server, tmp_path):
    with pytest.raises(DataError, match=r"data\.cache_gb: 1e-06 cannot hold the \d shards"):
        batches(config(server.url, tmp_path, cache_gb=1e-6))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.long
def test_processes_that_want_one_shard_at_once_fetch_it_once(dataset, server, tmp_path):
    """Twelve readers of one host, each a process, from a cache that starts empty."""
    data = config(server.url, tmp_path / "cache", workers=6)
    whole = batches(config(str(dataset), tmp_path))
    for rank in range(2):
        mine = batches(data, rank, 2)
        for one, all_ranks in zip(mine, whole, strict=True):
            assert torch.equal(one["sample"], all_ranks["sample"][rank::2])
    for shard in read_manifest(str(dataset)).split("train", "").shards:
        assert server.sent[shard.path] == shard.bytes


def test_a_shard_is_opened_once_an_epoch(dataset, tmp_path, monkeypatch):
    """Opening a cached shard reads it whole, to verify it."""
    opened = Counter()
    original = Cache.open
    monkeypatch.setattr(
        Cache, "open", lambda self, u, s: opened.update([s.path]) or original(self, u, s)
    )
    data = DataConfig(
        train=f"file://{dataset}", crop=24, streams=2, workers=0, cache=str(tmp_path),
        shuffle_buffer=20,
    )  # fmt: skip
    stream = TrainStream(data, seed=7, global_batch=4)
    assert len(stream.split.shards) > 6
    list(islice(stream, stream.split.samples // 4))
    assert set(opened.values()) == {1}


def test_a_reader_keeps_few_shards_open(dataset):
    split = read_manifest(str(dataset)).split("train", "")
    reader = ShardReader(str(dataset), split, 2, cache=None)
    for sample in [*range(split.samples), *reversed(range(split.samples))]:
        reader.read(sample)
        assert len([file for file in reader._open.values() if not file.closed]) <= 2
