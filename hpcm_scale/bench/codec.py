"""Coding times on this machine, and their share of its arithmetic peak."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from hpcm_scale.bench.model import operations
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.coding_result import Timing
from hpcm_scale.codec.find_model import find_model
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.errors import DataError
from hpcm_scale.models.peak import ProductRates
from hpcm_scale.units import GIB, peak_rss, processor
from hpcm_scale.weights.model_file import load_model

_PARTS = ("network", "entropy")


def bench_files(
    inputs: Sequence[str],
    model: str | None,
    repeats: int,
    device: str,
    memory: int,
    portable: bool,
    busy: int = 0,
) -> Table:
    """`bench_codec` of picture files and a model as `find_model` takes it.

    Args:
        busy: also compare the processor time with that beside so many processes that do nothing
            but count.

    Raises:
        DataError: if the pictures are not all of one size.
    """
    pictures = [read_picture(source) for source in inputs]
    for source, picture in zip(inputs, pictures, strict=True):
        if picture.pixels.shape != pictures[0].pixels.shape:
            raise DataError(
                f"{source}: is {picture.width}x{picture.height}, {inputs[0]} is "
                f"{pictures[0].width}x{pictures[0].height}; give pictures of one size"
            )
    loaded = load_model(find_model(model), device)
    codecs = {"fast": Codec(loaded, portable=False, memory=memory)}
    if portable:
        codecs["portable"] = Codec(loaded, memory=memory, exact_pixels=False)
        exact = Codec(loaded, memory=memory)
        if exact.makes_exact_pixels():
            codecs["pixels"] = exact
    table = bench_codec(codecs, pictures, repeats)
    if busy:
        name, codec = list(codecs.items())[-1]
        table.caption = f"{table.caption}\n{_beside_others(name, codec, pictures, repeats, busy)}"
    return table


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that only count, for as long as the block runs."""
    processes = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(number)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _beside_others(
    name: str, codec: Codec, pictures: Sequence[Picture], repeats: int, busy: int
) -> str:
    """A line on what busy cores cost: processor time alone, and beside busy processes, in turn."""

    def spent() -> float:
        start = time.process_time()
        for picture in pictures:
            codec.decompress(codec.compress(picture).data)
        return time.process_time() - start

    alone, beside = [], []
    for _ in range(repeats):
        alone.append(spent())
        with busy_processes(busy):
            beside.append(spent())
    ratio = median(b / a for a, b in zip(alone, beside, strict=True))
    return (
        f"{name} encode and decode: {median(alone):.2f} s of processor time, {median(beside):.2f} "
        f"beside {busy} busy process{'es' * (busy > 1)} ({ratio:.2f} times)"
    )


def bench_codec(codecs: Mapping[str, Codec], pictures: list[Picture], repeats: int) -> Table:
    """Encode and decode every picture `repeats` times with every codec, in turn.

    Every decode is checked to give the same pixels. Rates of large products are measured between
    the repeats, so that a busy machine slows all alike.

    Args:
        codecs: by what they are called, of one model; the first is what the others compare with.
            It runs in floating point, and its operations are the model's.
        pictures: of one size.

    Returns:
        a table of medians: seconds in all, in the network and in entropy coding; the network's
        share of the rates of a large product in fp32 and in the fastest arithmetic of this
        processor; the time over the first codec's, taken in the same repeat.
    """
    first = next(iter(codecs))
    encoded = {name: [codec.compress(p) for p in pictures] for name, codec in codecs.items()}
    decoded = {
        name: [codecs[name].decompress(e.data).picture.pixels for e in results]
        for name, results in encoded.items()
    }
    flops = {
        "encode": operations(lambda: codecs[first].compress(pictures[0])),
        "decode": operations(lambda: codecs[first].decompress(encoded[first][0].data)),
    }
    timings: dict[tuple[str, str], list[Timing]] = {
        (verb, name): [] for verb in flops for name in codecs
    }
    products, rates = ProductRates(), []
    for _ in range(repeats):
        for i, picture in enumerate(pictures):
            rates.append(products.measure())
            for name, codec in codecs.items():
                timings["encode", name].append(codec.compress(picture).timing)
                again = codec.decompress(encoded[name][i].data)
                timings["decode", name].append(again.timing)
                if not np.array_equal(again.picture.pixels, decoded[name][i]):
                    raise AssertionError("two decodes of one file differ")

    size = f"{pictures[0].width}x{pictures[0].height}"
    label = codecs[first].info.label
    table = Table(title=escape(f"{label}, {len(pictures)} pictures of {size}, medians"))
    columns = ("", "seconds", "network", "coding", "of fp32", "of peak")
    for column in columns + ((f"over {first}",) if len(codecs) > 1 else ()):
        table.add_column(column, justify="left" if not column else "right")
    for (verb, name), found in timings.items():
        network, entropy = (median(getattr(t, part) for t in found) for part in _PARTS)
        # All pictures of a bench are of one size, and so is their arithmetic.
        achieved = [flops[verb] / t.network for t in found]
        shares = [
            median(rate / of(known) for rate, known in zip(achieved, rates, strict=True))
            for of in (lambda known: known["fp32"], lambda known: max(known.values()))
        ]
        ratio = median(
            t.total / reference.total
            for t, reference in zip(found, timings[verb, first], strict=True)
        )
        table.add_row(
            f"{verb} {name}",
            f"{median(t.total for t in found):.3f}",
            f"{network:.3f}",
            f"{entropy:.4f}",
            *(f"{share:.0%}" for share in shares),
            f"{ratio:.2f}" if name != first else "",
        )
    resident = peak_rss() / GIB
    pixels = sum(picture.width * picture.height for picture in pictures)
    bpp = ", ".join(
        f"{8 * sum(len(e.data) for e in results) / pixels:.4f} bpp {name}"
        for name, results in encoded.items()
    )
    table.caption = (
        f"{processor()}, {torch.get_num_threads()} threads; {products}; "
        f"{flops['encode'] / 1e9:.0f} and {flops['decode'] / 1e9:.0f} GFLOP a picture, "
        f"peak memory {resident:.2f} GiB, {bpp}"
    )
    return table
