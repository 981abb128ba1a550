"""How long coding takes on this machine, and what share of its arithmetic peak that is."""

import resource
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from rich.table import Table

from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.commands import find_model
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.codec.results import Timing
from hpcm_scale.errors import DataError
from hpcm_scale.models.bench import operations, sgemm_rate

_PARTS = ("network", "entropy")


def bench_files(
    inputs: Sequence[str], model: str | None, repeats: int, device: str, memory: int
) -> Table:
    """`bench_codec` of picture files and a model as `find_model` takes it.

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
    return bench_codec(Codec.load(find_model(model), device, memory), pictures, repeats)


def bench_codec(codec: Codec, pictures: list[Picture], repeats: int) -> Table:
    """Encode and decode every picture `repeats` times, in turn.

    Every decode is checked to give the same pixels. The sgemm peak is measured between the
    repeats, so that a busy machine slows both.

    Returns:
        a table of medians: seconds in all, in the network and in entropy coding; the network's
        share of the sgemm peak.
    """
    encoded = [codec.compress(picture) for picture in pictures]
    files = [result.data for result in encoded]
    decoded = [codec.decompress(data).picture.pixels for data in files]
    flops = {
        "encode": operations(lambda: codec.compress(pictures[0])),
        "decode": operations(lambda: codec.decompress(files[0])),
    }
    timings: dict[str, list[Timing]] = {"encode": [], "decode": []}
    shares: dict[str, list[float]] = {"encode": [], "decode": []}
    peaks = []
    for _ in range(repeats):
        for i, picture in enumerate(pictures):
            peaks.append(sgemm_rate())
            results = {
                "encode": codec.compress(picture).timing,
                "decode": (again := codec.decompress(files[i])).timing,
            }
            if not np.array_equal(again.picture.pixels, decoded[i]):
                raise AssertionError("two decodes of one file differ")
            for verb, timing in results.items():
                timings[verb].append(timing)
                # All pictures of a bench are of one size, and so is their arithmetic.
                shares[verb].append(flops[verb] / timing.network / peaks[-1])

    size = f"{pictures[0].width}x{pictures[0].height}"
    table = Table(title=f"{codec.info.label}, {len(pictures)} pictures of {size}, medians")
    for column in ("", "seconds", "network", "entropy coding", "of total", "of sgemm peak"):
        table.add_column(column, justify="left" if not column else "right")
    for verb, found in timings.items():
        network, entropy = (median(getattr(t, part) for t in found) for part in _PARTS)
        table.add_row(
            verb,
            f"{median(t.network + t.entropy for t in found):.3f}",
            f"{network:.3f}",
            f"{entropy:.4f}",
            f"{entropy / (network + entropy):.1%}",
            f"{median(shares[verb]):.0%}",
        )
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    bits = sum(8 * len(data) for data in files) / sum(r.width * r.height for r in encoded)
    table.caption = (
        f"{torch.get_num_threads()} threads, sgemm {median(peaks) / 1e9:.0f} GFLOP/s, "
        f"{flops['encode'] / 1e9:.0f} and {flops['decode'] / 1e9:.0f} GFLOP a picture, "
        f"peak memory {resident:.2f} GiB, {bits:.4f} bpp"
    )
    return table
