"""Rates of batches, beside plain webdataset and a folder of files on the same images."""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.table import Table
from torch.utils.data import DataLoader, Dataset, RandomSampler
from webdataset.compat import WebDataset

from hpcm_scale.config import DataConfig
from hpcm_scale.data.augment import Crop
from hpcm_scale.data.images import decode_crop, decode_whole, open_image
from hpcm_scale.data.manifest import Manifest, Split
from hpcm_scale.data.shard import COLUMNS
from hpcm_scale.data.shards import ShardReader, check_files, read_manifest
from hpcm_scale.data.stream import TrainStream

BATCH = 16
WARM_UP = 4  # batches before the clock starts: worker start-up and what they have prefetched
Decoder = Callable[[bytes, int], np.ndarray]


def decode_then_crop(data: bytes, side: int) -> np.ndarray:
    """Decode as a plain loader does: the whole image, then a random crop, mirrored or not."""
    pixels = decode_whole(data)
    top = random.randint(0, pixels.shape[1] - side)
    left = random.randint(0, pixels.shape[2] - side)
    pixels = pixels[:, top : top + side, left : left + side]
    return np.ascontiguousarray(pixels[:, :, ::-1] if random.random() < 0.5 else pixels)


def crop_while_decoding(data: bytes, side: int) -> np.ndarray:
    """The same by this program's decoder, which stops below the crop."""
    with open_image(data) as image:
        width, height = image.size
    left, top = random.randint(0, width - side), random.randint(0, height - side)
    return decode_crop(data, width, height, Crop(left, top, side, random.random() < 0.5))


class FolderDataset(Dataset):
    """One file an image, as a torch map-style dataset."""

    def __init__(self, paths: list[Path], decoder: Decoder, side: int) -> None:
        self.paths, self.decoder, self.side = paths, decoder, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.decoder(self.paths[index].read_bytes(), self.side))


def _folder_batches(
    paths: list[Path], decoder: Decoder, side: int, workers: int
) -> Iterator[torch.Tensor]:
    dataset = FolderDataset(paths, decoder, side)
    sampler = RandomSampler(dataset, num_samples=1 << 30, replacement=True)
    return iter(DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers))


def _webdataset_batches(
    urls: list[str], decoder: Decoder, side: int, workers: int
) -> Iterator[Any]:
    def crop(sample: dict[str, Any]) -> torch.Tensor:
        return torch.from_numpy(decoder(sample["image"], side))

    dataset: Any = (  # its stages are added to the class at run time
        cast(Any, WebDataset)(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(256)
        .rename(image="png;jpg;jpeg;webp")
        .map(crop)
        .batched(BATCH, collation_fn=torch.stack)
        .repeat()
    )
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))


def measure(batches: Iterator[Any], images: int) -> tuple[float, float]:
    """Seconds an image takes, and of this process's processor time, after a warm-up."""
    for _ in range(WARM_UP):
        next(batches)
    count = -(-images // BATCH)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    total = count * BATCH
    return (time.perf_counter() - wall) / total, (time.process_time() - processor) / total


def bench_data(root: str, side: int, images: int, repeats: int, workers: list[int]) -> Table:
    """Measure the stream of a local dataset against the alternatives, in turn, `repeats` times.

    Returns:
        Median images/s of each for each number of workers, and the processor time of an image
        (a steadier measure where other programs run), each with the ratio of ours to it.

    Raises:
        DataError: if the dataset cannot be read.
    """
    split = read_manifest(root).split("train", root)
    check_files(root, split)
    urls = [str(Path(root) / shard.path) for shard in split.shards]
    columns = [f"images/s, {n} workers" for n in workers]
    table = Table("loader", *columns, "CPU ms an image", title=f"crops of {side}x{side}")
    with tempfile.TemporaryDirectory() as folder:
        paths = _unpack(root, split, Path(folder))

        def ours(n: int) -> Iterator[Any]:
            data = DataConfig(train=root, crop=side, workers=n)
            return iter(TrainStream(data, seed=0, global_batch=BATCH))

        loaders: dict[str, Callable[[int], Iterator[Any]]] = {
            "hpcm_scale": ours,
            "webdataset, whole images": lambda n: _webdataset_batches(
                urls, decode_then_crop, side, n
            ),
            "webdataset, our decoder": lambda n: _webdataset_batches(
                urls, crop_while_decoding, side, n
            ),
            "folder, whole images": lambda n: _folder_batches(paths, decode_then_crop, side, n),
            "folder, our decoder": lambda n: _folder_batches(paths, crop_while_decoding, side, n),
        }
        times: dict[tuple[str, int], list[float]] = {}
        processor: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(repeats):
            for name, loader in loaders.items():
                for n in workers:
                    wall, own = measure(loader(n), images)
                    times.setdefault((name, n), []).append(wall)
                    if n == 0:  # only then is all the work in this process
                        processor[name].append(own)
        share = _decode_share(root, split, side, images)
    costs = [{name: statistics.median(times[name, n]) for name in loaders} for n in workers]
    if 0 in workers:
        costs.append({name: statistics.median(processor[name]) for name in loaders})
    for name in loaders:
        cells = [f"{1 / cost[name]:.1f}" for cost in costs[: len(workers)]]
        cells += [f"{1000 * cost[name]:.2f}" for cost in costs[len(workers) :]]
        if loaders[name] is not ours:
            ratios = [cost[name] / cost["hpcm_scale"] for cost in costs]
            cells = [f"{cell}  ({ratio:.2f}x)" for cell, ratio in zip(cells, ratios, strict=True)]
        table.add_row(name, *cells)
    table.caption = f"in brackets: ours over this loader; {100 * share:.0f} % of ours is decoding"
    return table


def bench_resume(root: str, side: int) -> Table:
    """Measure how long a run of a million samples takes to resume at 90 % of an epoch.

    The million is synthetic: 1000 names for the first shard of `root`, its images listed over and
    over, so that what is delivered in the end is read and decoded in earnest. `root` itself is
    measured beside it.
    """
    table = Table(
        "dataset", "samples", "manifest read, s", "first batch, s", title="resume at 90 %"
    )
    split = read_manifest(root).split("train", root)
    with tempfile.TemporaryDirectory() as folder:
        shard = split.shards[0]
        repeated = np.resize(np.arange(shard.samples), 1000)
        shards = []
        for number in range(1000):
            path = f"{number:06d}.tar"
            os.symlink(Path(root).absolute() / shard.path, Path(folder) / path)
            columns = {c: getattr(shard, c)[repeated] for c in COLUMNS}
            names = [shard.names[row] for row in repeated.tolist()]
            shards.append(replace(shard, path=path, names=names, crcs=None, **columns))
        Manifest(tuple(shards), "bench").write(Path(folder))
        for name, where in (("synthetic", folder), (root, root)):
            start = time.perf_counter()
            total = read_manifest(where).split("train", where).samples
            read = time.perf_counter() - start
            data = DataConfig(train=where, crop=side, workers=0)
            stream = TrainStream(data, seed=0, global_batch=BATCH)
            steps = int(0.9 * total / BATCH)
            start = time.perf_counter()
            stream.load_state_dict(stream.state_dict() | {"step": steps, "samples": steps * BATCH})
            next(iter(stream))
            first = time.perf_counter() - start
            table.add_row(name, f"{total}", f"{read:.2f}", f"{first:.2f}")
    return table


def _unpack(root: str, split: Split, folder: Path) -> list[Path]:
    """The split's images as files, named by number: names from a tar never become paths."""
    reader = ShardReader(root, split, 1, cache=None)
    paths = []
    for sample in range(split.samples):
        paths.append(folder / f"{sample:08d}")
        paths[-1].write_bytes(reader.read(sample))
    return paths


def _decode_share(root: str, split: Split, side: int, images: int) -> float:
    """Part of the stream's own processor time, without workers, that goes into decoding.

    Batch by batch the same images are decoded once more, so that both times see the same machine.
    """
    reader = ShardReader(root, split, 1, cache=None)
    data = DataConfig(train=root, crop=side, workers=0)
    batches = iter(TrainStream(data, seed=0, global_batch=BATCH))
    next(batches)
    streaming = decoding = 0.0
    for _ in range(-(-images // BATCH)):
        start = time.process_time()
        batch = next(batches)
        streaming += time.process_time() - start
        contents = [reader.read(sample) for sample in batch["sample"].tolist()]
        start = time.process_time()
        for content in contents:
            crop_while_decoding(content, side)
        decoding += time.process_time() - start
    return decoding / streaming
