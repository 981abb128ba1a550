"""Batches for training, endless and resumable, and whole images for validation."""

import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hpcm_scale.config import DataConfig
from hpcm_scale.data.augment import random_crop
from hpcm_scale.data.images import BadImage, decode_crop, decode_whole, image_suffix, require_size
from hpcm_scale.data.manifest import NAME, Split
from hpcm_scale.data.order import Order, owned_positions, require_divisor
from hpcm_scale.data.remote import Cache, is_remote
from hpcm_scale.data.shards import ShardReader, check_files, read_manifest, sample_key
from hpcm_scale.errors import DataError

log = logging.getLogger(__name__)

# Samples the rate of bad ones is taken over at least, so that one early bad sample ends no run.
RATE_WINDOW = 1000
NO_SHARED_MEMORY = (
    "/dev/shm: has no room for the crops that data.workers hand over ({}); free or enlarge it "
    "(mount -o remount,size=4G /dev/shm; docker run --shm-size=4g), or set data.workers: 0"
)
# Open shards of a reader at most: the usual limit of a process is 1024 files.
OPEN_LIMIT = 512


@dataclass
class ReaderBatch:
    """The part of one reader in one global batch: possibly nothing, always delivered."""

    positions: np.ndarray
    """(n,) int64, ascending."""
    samples: np.ndarray
    """(n,) int64: the samples decoded, which are the neighbours of bad ones."""
    crops: torch.Tensor
    """(n, 3, crop, crop) uint8."""
    bad: list[str]
    """One report for each undecodable sample met."""
    error: str | None = None
    """Why the reader cannot go on; an exception would arrive wrapped in a worker's traceback."""


class TrainStream:
    """Endless training batches of one rank, the same sequence on every number of ranks and workers.

    Iterating yields dicts: "crop" (B, 3, crop, crop) uint8 with B = global_batch // world_size,
    "sample" (B,) int64 dataset-wide sample ids, "epoch" int (of the batch's first sample in the
    global order), "step" int (batches delivered before this one). The global batch is what a
    single rank would get: of W ranks, rank k holds its rows k, k+W, k+2W, ... An epoch is every
    sample exactly once; batches run over its end, nothing is dropped or repeated.

    For gradient accumulation, cut the batch: `for micro in batch["crop"].split(micro_batch)`.
    Crops stay uint8 until they are on the device: `x.to(device, non_blocking=True) / 255`.

    `state_dict` describes the batches delivered by the iterator, not what workers have prefetched:
    saved after a batch, it continues with the next one, on any world size and with any number of
    workers. Load it before iterating; a new `iter()` starts from the current state.

    Args:
        seed: of the run; keys shard order, shuffling, crops and flips.
        global_batch: samples of an optimizer step over all ranks.
        rank, world_size: of this process among the data-parallel ranks.

    Raises:
        DataError: if the dataset is missing or damaged, its images are smaller than the crop, or
            batch, ranks, workers and streams do not divide as they must. While iterating: a
            shard cannot be read, or too many samples cannot be decoded.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch <= 0 or global_batch % world_size:
            raise DataError(
                f"a global batch of {global_batch} cannot be shared by {world_size} ranks; "
                f"make it a multiple of {world_size}"
            )
        require_divisor(data.streams, world_size, data.workers)
        self.data, self.seed, self.global_batch = data, seed, global_batch
        self.rank, self.world_size = rank, world_size
        self.cache = _cache_for(data, data.train)
        self.split = read_manifest(data.train, self.cache).split("train", data.train)
        require_size(self.split.smallest_side(), data.crop, data.train)
        check_files(data.train, self.split)
        self.order = Order(
            [shard.samples for shard in self.split.shards], data.streams, seed, data.shuffle_buffer
        )
        _require_room(data, data.train, self.split, data.streams // world_size)
        self.step = 0
        self.consumed = 0  # samples, over all ranks
        self.bad = 0  # undecodable samples this rank has met since it started
        self._seen = 0  # samples this rank has received since it started

    def state_dict(self) -> dict[str, int]:
        """Position of the stream and the settings it must be resumed with; equal on all ranks."""
        return {
            "step": self.step,
            "samples": self.consumed,
            "seed": self.seed,
            "streams": self.data.streams,
            "shuffle_buffer": self.data.shuffle_buffer,
            "dataset": self.split.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a state.

        Raises:
            DataError: if the order is another one: other dataset, seed, streams or shuffle_buffer.
        """
        for name, mine in self.state_dict().items():
            if name not in state:
                raise DataError(f"data state: {name!r} is missing")
            if name not in ("step", "samples") and state[name] != mine:
                raise DataError(
                    f"data state: {name} was {state[name]} and is now {mine}; "
                    "a run keeps its dataset, seed, streams and shuffle_buffer to the end"
                )
        self.step, self.consumed = state["step"], state["samples"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        readers = max(self.data.workers, 1)
        # Each loader item is one reader's part of one batch, handed over in turn: items
        # t*readers .. (t+1)*readers - 1 are batch t, with no queue of ours and no reordering.
        parts = iter(
            DataLoader(
                _ReaderBatches(self),
                batch_size=None,
                num_workers=self.data.workers,
                worker_init_fn=_ignore_signals,
                prefetch_factor=2 if self.data.workers else None,
                # A forked worker shares the poll set of the connections fsspec has open here, and
                # takes them out of it when it ends: the next remote read would wait for ever.
                multiprocessing_context=(
                    "spawn" if self.data.workers and is_remote(self.data.train) else None
                ),
                # Its own: from the global one it would draw a seed, and a resumed run would draw
                # once more than one that never stopped.
                generator=torch.Generator(),
            )
        )
        while True:
            batch = self._assemble([next(parts) for _ in range(readers)])
            self.step += 1
            self.consumed += self.global_batch
            yield batch

    def _assemble(self, parts: list[ReaderBatch]) -> dict[str, Any]:
        for part in parts:
            for report in part.bad:
                log.warning("%s", report)
            self.bad += len(part.bad)
            if part.error is not None:
                raise DataError(part.error)
        size = self.global_batch // self.world_size
        self._seen += size
        if self.bad > self.data.max_bad_rate * max(self._seen, RATE_WINDOW):
            raise DataError(
                f"{self.data.train}: {self.bad} of {self._seen} samples could not be decoded, "
                f"above data.max_bad_rate = {self.data.max_bad_rate}; "
                "see the warnings above and run `hpcm-scale verify`"
            )
        side = self.data.crop
        crops = torch.empty(
            (size, 3, side, side), dtype=torch.uint8, pin_memory=torch.cuda.is_available()
        )
        samples = torch.empty(size, dtype=torch.int64)
        first = min(int(part.positions[0]) for part in parts if len(part.positions))
        for part in parts:
            rows = (part.positions - first) // self.world_size
            # NumPy copies in this thread; torch would wake all of the trainer's for a small copy.
            crops.numpy()[rows] = part.crops.numpy()
            samples.numpy()[rows] = part.samples
        epoch = self.consumed // self.order.total
        return {"crop": crops, "sample": samples, "epoch": epoch, "step": self.step}


def _ignore_signals(_: int) -> None:
    """Ignore the signals that tell the trainer to save: it still needs batches then."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class _ReaderBatches(IterableDataset):
    """The parts of one reader, from a stream's current position on, in a worker process."""

    def __init__(self, stream: TrainStream) -> None:
        self.data, self.seed, self.order, self.split = (
            stream.data,
            stream.seed,
            stream.order,
            stream.split,
        )
        self.start, self.global_batch = stream.consumed, stream.global_batch
        self.rank, self.world_size, self.cache = stream.rank, stream.world_size, stream.cache

    def __iter__(self) -> Iterator[ReaderBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # Worker j of rank k: its positions ≡ k + W·j (mod W·workers) are ≡ k (mod W), the rank's.
        index, count = self.rank + self.world_size * worker, self.world_size * workers
        streams = self.data.streams // count
        at_once = min(_shards_at_once(self.data, self.split, streams), OPEN_LIMIT)
        reader = ShardReader(self.data.train, self.split, at_once, self.cache)
        start = self.start
        while True:
            stop = start + self.global_batch
            yield self._part(reader, owned_positions(start, stop, index, count))
            start = stop

    def _part(self, reader: ShardReader, positions: np.ndarray) -> ReaderBatch:
        side = self.data.crop
        crops = torch.empty((len(positions), 3, side, side), dtype=torch.uint8)
        epochs, samples = self.order.at(positions)
        part = ReaderBatch(positions, samples, crops, bad=[])
        if get_worker_info():
            try:
                # Left to the queue that hands it over, a failure would only be printed, and the
                # trainer would wait for the batch for ever.
                crops.share_memory_()
            except RuntimeError as error:
                part.error = NO_SHARED_MEMORY.format(str(error).rpartition(": ")[2])
                part.crops = torch.empty(0)
                return part
        try:
            for row, epoch in enumerate(epochs):
                crop, decoded = self._decode(reader, int(epoch), int(samples[row]), part.bad)
                crops.numpy()[row] = crop
                samples[row] = decoded
        except DataError as error:
            part.error = str(error)
        return part

    def _decode(
        self, reader: ShardReader, epoch: int, sample: int, bad: list[str]
    ) -> tuple[np.ndarray, int]:
        """The crop of a sample, or of the next decodable one of its shard, and which it is."""
        number, row = self.split.locate(sample)
        shard = self.split.shards[number]
        for step in range(shard.samples):
            near = (row + step) % shard.samples
            neighbour = sample - row + near
            width, height = int(shard.widths[near]), int(shard.heights[near])
            # Keyed by the sample asked for: a neighbour standing in is cropped somewhere else
            # than where it is cropped in its own turn.
            crop = random_crop(
                width, height, self.data.crop, self.data.flips, self.seed, epoch, sample
            )
            try:
                return decode_crop(reader.read(neighbour), width, height, crop), neighbour
            except BadImage as error:
                key = sample_key(shard.names[near])
                bad.append(f"{self.data.train}/{shard.path}: sample {key!r} is bad: {error}")
        raise DataError(f"{self.data.train}/{shard.path}: no sample of this shard can be decoded")


def _shards_at_once(data: DataConfig, split: Split, streams: int) -> int:
    """The number of shards `streams` streams read from at a time: those a shuffled block spans."""
    block = 2 + data.shuffle_buffer * len(split.shards) // split.samples
    return min(streams * block, len(split.shards))


def _cache_for(data: DataConfig, root: str) -> Cache | None:
    """Cache on this host of a dataset behind a URL; None for a local folder."""
    return Cache(data.cache, int(data.cache_gb * 1e9)) if is_remote(root) else None


def _require_room(data: DataConfig, root: str, split: Split, streams: int) -> None:
    """Check that the cache of a dataset behind a URL is large enough.

    Raises:
        DataError: if the cache could not hold the shards that a rank which reads `streams` streams
            of a URL reads at a time.
    """
    largest = max(shard.bytes for shard in split.shards)
    at_once = _shards_at_once(data, split, streams)
    if is_remote(root) and largest * at_once > int(data.cache_gb * 1e9):
        raise DataError(
            f"data.cache_gb: {data.cache_gb} cannot hold the {at_once} shards that a rank reads "
            f"at a time; give {largest * at_once / 1e9:.3g} for each rank of the host"
        )


@dataclass
class WholeImage:
    """An image of a validation set."""

    image: torch.Tensor
    """(3, H, W) uint8."""
    sample: int
    """Number of the image in the set."""
    key: str
    """Name of the image, without folder and suffix."""
    counted: bool
    """False for a stand-in that only keeps the ranks in step: leave it out of averages."""


def read_images(
    source: DataConfig | str | Path, split: str = "val", rank: int = 0, world_size: int = 1
) -> Iterator[WholeImage]:
    """The images of a set, whole, in order: those numbered rank, rank + world_size, ...

    Every rank gets equally many, ceil(n / world_size), so that a collective in each step hangs
    no one; where its own run out, the first image stands in with counted=False. Sums over the
    counted images of all ranks, divided by their number, are the exact averages of the set.

    Args:
        source: a run's data section; or a packed dataset's folder or URL; or a plain folder
            of images, where `split` is ignored.

    Raises:
        DataError: if there is no such set, it is empty, or an image cannot be decoded: an average
            over fewer images would pass for one over all.
    """
    data = source if isinstance(source, DataConfig) else DataConfig(train=str(source))
    root = data.train if data.val is None or split == "train" else data.val
    if not is_remote(root) and not (Path(root) / NAME).exists():
        images = _FolderImages(root)
    else:
        images = _SplitImages(data, root, split)
    for start in range(0, images.samples, world_size):
        counted = start + rank < images.samples
        sample = start + rank if counted else 0
        key, where = images.named(sample)
        try:
            image = torch.from_numpy(decode_whole(images.read(sample)))
        except BadImage as error:
            raise DataError(f"{where}: cannot be decoded ({error})") from None
        yield WholeImage(image, sample, key, counted)


class _SplitImages:
    """The images of a packed split."""

    def __init__(self, data: DataConfig, root: str, name: str) -> None:
        cache = _cache_for(data, root)
        manifest = read_manifest(root, cache)
        if root == data.val and name not in manifest.splits():
            name = "train"  # a dataset given for validation alone need not have been split
        self.split = manifest.split(name, root)
        check_files(root, self.split)
        self.samples = self.split.samples
        _require_room(data, root, self.split, 1)
        self.reader = ShardReader(root, self.split, 1, cache)

    def named(self, sample: int) -> tuple[str, str]:
        """Key, and location for messages."""
        number, row = self.split.locate(sample)
        shard = self.split.shards[number]
        name = shard.names[row]
        return sample_key(name), f"{self.reader.root}/{shard.path}: {name}"

    def read(self, sample: int) -> bytes:
        """The bytes of the image's file."""
        return self.reader.read(sample)


class _FolderImages:
    """The image files of a plain folder, by name."""

    def __init__(self, root: str) -> None:
        folder = Path(root)
        self.paths = []
        if folder.is_dir():
            self.paths = sorted(path for path in folder.iterdir() if image_suffix(path.name))
        if not self.paths:
            raise DataError(f"{root}: is neither a packed dataset nor a folder with images")
        self.samples = len(self.paths)

    def named(self, sample: int) -> tuple[str, str]:
        return self.paths[sample].stem, str(self.paths[sample])

    def read(self, sample: int) -> bytes:
        path = self.paths[sample]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
