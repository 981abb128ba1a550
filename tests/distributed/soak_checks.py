"""What has to hold after a soak, each found by another way than the trainer's."""

import io
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from hpcm_scale.data.augment import random_crop
from hpcm_scale.data.images import BadImage, decode_crop
from hpcm_scale.data.shards import read_manifest
from hpcm_scale.training.checkpoint import at, damage, newest
from hpcm_scale.training.export import export_run
from hpcm_scale.training.zero_checkpoint import master_weights
from tests.distributed.soak_faults import Injected
from tests.distributed.soak_job import BATCH, CROP, RANKS, SEED, Job, order_of

FLIPS = True


class Check(NamedTuple):
    """One fact about the soak."""

    name: str
    holds: bool
    detail: str


def planned(dataset: Path, steps: int) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """Samples of each (step, rank), and the CRC-32 of their crops (3, CROP, CROP) uint8.

    From the order as a pure function, and the shards' members by name: no index, no offsets, whole
    pictures decoded.
    """
    pictures = []
    shards = [shard for shard in read_manifest(str(dataset)).shards if shard.split == "train"]
    for shard in shards:
        with tarfile.open(dataset / shard.path) as tar:
            for name in shard.names:
                picture = Image.open(io.BytesIO(tar.extractfile(name).read()))
                pictures.append(np.asarray(picture.convert("RGB")))
    order = order_of(dataset)
    plan = {}
    for step in range(steps):
        epochs, samples = order.at(np.arange(step * BATCH, (step + 1) * BATCH))
        crops = []
        for epoch, sample in zip(epochs.tolist(), samples.tolist(), strict=True):
            height, width, _ = pictures[sample].shape
            crop = random_crop(width, height, CROP, FLIPS, SEED, epoch, sample)
            left, top, right, bottom = crop.box
            pixels = pictures[sample][top:bottom, left:right]
            pixels = pixels[:, ::-1] if crop.mirrored else pixels
            crops.append(zlib.crc32(np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()))
        for rank in range(RANKS):
            plan[step, rank] = samples[rank::RANKS].tolist(), crops[rank::RANKS]
    return plan


def sequence(job: Job) -> tuple[dict[tuple[int, int], tuple[list[int], list[int], float]], int]:
    """What a run has consumed at last in each (step, rank), with the loss; and the repeats of a
    step that differ from it."""
    last: dict[tuple[int, int], tuple[list[int], list[int], float]] = {}
    different = 0
    for rank in range(RANKS):
        for line in job.consumed(rank):
            key = line["step"], rank
            value = line["samples"], line["crops"], line["loss"]
            different += key in last and last[key] != value
            last[key] = value
    return last, different


def same(a: Any, b: Any) -> tuple[int, int]:
    """Values in the tensors of two nested states, and how many of them differ in any bit."""
    if isinstance(a, torch.Tensor):
        a, b = (x.detach().contiguous().flatten().view(torch.uint8) for x in (a, b))
        return a.numel(), int((a != b).sum()) if a.shape == b.shape else a.numel()
    if isinstance(a, dict):
        pairs = [(a[key], b[key]) for key in a] if a.keys() == b.keys() else None
    elif isinstance(a, list | tuple):
        pairs = [*zip(a, b, strict=True)] if len(a) == len(b) else None
    else:
        return 0, 0
    if pairs is None:
        return 1, 1
    counts = [same(x, y) for x, y in pairs]
    return sum(n for n, _ in counts), sum(n for _, n in counts)


def states(folder: Path, pattern: str) -> dict[str, Any]:
    """The files of a checkpoint that match, by name, as they were saved."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        if path.suffix == ".safetensors":
            found[path.name] = load_file(path)
            continue
        state = torch.load(path, weights_only=False)  # this soak has written it
        # Compared by name instead: DeepSpeed pads a rank's part with what the memory holds.
        state.get("optimizer_state_dict", {}).pop("fp32_flat_groups", None)
        found[path.name] = state
    return found


def check(
    clean: Job, faulty: Job, dataset: Path, steps: int, out: Path, injected: list[Injected]
) -> list[Check]:
    """All the facts."""
    checks = []

    def add(name: str, holds: bool, detail: str) -> None:
        checks.append(Check(name, bool(holds), detail))

    plan = planned(dataset, steps)
    (expected, _), (consumed, different) = sequence(clean), sequence(faulty)
    for name, found in (("clean", expected), ("faulty", consumed)):
        keys = plan.keys() | found.keys()
        wrong = [key for key in keys if plan.get(key) != found.get(key, ())[:2]]
        detail = f"{len(plan)} pieces of {steps} steps x {RANKS} ranks, {len(wrong)} wrong"
        add(f"the {name} run consumed the planned samples and crops", not wrong, detail)
    repeats = sum(len(faulty.consumed(rank)) for rank in range(RANKS)) - len(consumed)
    add("repeated steps repeat themselves", not different, f"{repeats} repeats, {different} differ")
    wrong = sum(expected.get(key) != consumed.get(key) for key in plan)
    add("samples, crops and losses of every step are the clean run's", not wrong, f"{wrong} differ")

    for kind in ("train", "val"):
        one, other = ([(r["step"], r["loss"]) for r in job.rows(kind)] for job in (clean, faulty))
        numbers = [step for step, _ in other]
        whole = kind == "val" or numbers == [*range(1, steps + 1)]
        wrong = sum(a != b for a, b in zip(one, other, strict=False))
        name = f"metrics.jsonl: the {kind} losses of both runs are equal"
        add(name, one == other and whole, f"{len(other)} rows, {wrong} differ")

    folders = [newest(job.run) for job in (clean, faulty)]
    ends = [at(folder) for folder in folders]
    ok = all(end.step == steps and damage(end) is None for end in ends)
    add("both runs end in a whole checkpoint of the last step", ok, folders[1].name)
    for name, pattern in (
        ("Adam's moments", "*optim_states.pt"),
        ("averaged weights", "ema-*.safetensors"),
        ("the networks' states and generators", "*model_states.pt"),
    ):
        one, other = (states(folder, pattern) for folder in folders)
        values, wrong = same(one, other)
        add(f"{name}: equal bit for bit", values and not wrong, f"{values} bytes, {wrong} differ")
    values, wrong = same(*(dict(master_weights(folder)) for folder in folders))
    add(
        "master weights: equal bit for bit", values and not wrong, f"{values} bytes, {wrong} differ"
    )
    for weights in ("ema", "raw"):
        files = [out / f"{name}-{weights}.safetensors" for name in ("clean", "faulty")]
        for job, file in zip((clean, faulty), files, strict=True):
            export_run(job.run, file, weights=weights, check=weights == "ema")
        values, wrong = same(*map(load_file, files))
        name = f"exported {weights} weights: equal bit for bit"
        add(name, values and not wrong, f"{values} bytes, {wrong} differ")

    bad = [fault.kind for fault in injected if not fault.as_expected]
    add("every fault ended as it should", not bad, ", ".join(bad) or f"{len(injected)} faults")
    left = sum(fault.left for fault in injected)
    add("no process outlived its job", not left, f"{left} did")
    return checks


def single_bytes(dataset: Path, count: int) -> dict[str, int]:
    """What the loader makes of one inverted byte of an image: noticed, no pixel of the crop
    changed, or pixels changed unnoticed. Uniform over samples, bytes and crops."""
    dice = np.random.default_rng(0)
    shards = [shard for shard in read_manifest(str(dataset)).shards if shard.split == "train"]
    found = {"noticed": 0, "no pixel changed": 0, "pixels changed unnoticed": 0}
    for number in range(count):
        shard = shards[dice.integers(len(shards))]
        row = dice.integers(shard.samples)
        offset, size = int(shard.offsets[row]), int(shard.sizes[row])
        with (dataset / shard.path).open("rb") as file:
            file.seek(offset)
            good = file.read(size)
        bad = bytearray(good)
        bad[dice.integers(size)] ^= 0xFF
        width, height = int(shard.widths[row]), int(shard.heights[row])
        crop = random_crop(width, height, CROP, FLIPS, SEED, 0, number)
        right = decode_crop(good, width, height, crop)
        try:
            wrong = decode_crop(bytes(bad), width, height, crop)
        except BadImage:
            found["noticed"] += 1
            continue
        equal = np.array_equal(right, wrong)
        found["no pixel changed" if equal else "pixels changed unnoticed"] += 1
    return found
