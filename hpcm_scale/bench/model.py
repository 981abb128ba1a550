"""Speed of a network on this machine, part by part, and its share of the peak."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hpcm_scale.config import ModelConfig
from hpcm_scale.models.codec_network import CodecNetwork, noise_shapes
from hpcm_scale.models.peak import peak_rate, sgemm_rate
from hpcm_scale.models.zoo import build
from hpcm_scale.units import GIB, peak_rss

CROPS, CROP = 4, 256
"""The training step that is measured: crops and their side."""


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of products and convolutions, two to a multiply-accumulate."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Part:
    """Something to time."""

    name: str
    run: Callable[[], object]
    flops: int


def bench_model(
    config: ModelConfig, width: int, height: int, repeats: int, train: bool, compiled: bool
) -> Table:
    """Median times of a picture's parts and of a training step, with random weights.

    Every repeat measures the sgemm peak again beside each part: on a shared machine only the
    ratio of two times taken together means something.

    Args:
        width, height: of the picture; multiples of the network's image_multiple.
        train: also time forward and backward of 4 crops of 256×256, without checkpointing.
        compiled: run the transforms through torch.compile.

    Raises:
        DataError: if the network cannot take a picture of that size.
    """
    torch.manual_seed(0)
    network = build(config)
    x = torch.rand(1, 3, height, width).contiguous(memory_format=torch.channels_last)
    network.check_sides(x)
    if compiled:
        for transform in (network.g_a, network.g_s, network.h_a, network.h_s):
            transform.compile()
    parts = _picture(network.eval(), x)
    if train:
        parts.append(_training_step(network))
    times: dict[str, list[float]] = {part.name: [] for part in parts}
    shares: dict[str, list[float]] = {part.name: [] for part in parts}
    peaks, fastest = [], []
    for _ in range(repeats):
        fastest.append(peak_rate("cpu", torch.float32))
        for part in parts:
            peaks.append(sgemm_rate())
            start = perf_counter()
            part.run()
            times[part.name].append(perf_counter() - start)
            shares[part.name].append(part.flops / times[part.name][-1] / peaks[-1])

    table = Table(title=f"{config.name}, {width}x{height}, medians of {repeats}")
    for column in ("part", "GFLOP", "seconds", "GFLOP/s", "of sgemm peak"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in parts:
        seconds = median(times[part.name])
        table.add_row(
            part.name,
            f"{part.flops / 1e9:.1f}",
            f"{seconds:.3f}",
            f"{part.flops / seconds / 1e9:.0f}",
            f"{median(shares[part.name]):.0%}",
        )
    resident = peak_rss() / GIB
    table.caption = (
        f"{torch.get_num_threads()} threads, sgemm {median(peaks) / 1e9:.0f} GFLOP/s by torch.mm, "
        f"{median(fastest) / 1e9:.0f} by oneDNN, peak memory {resident:.2f} GiB"
    )
    return table


def _picture(network: CodecNetwork, x: Tensor) -> list[Part]:
    """The parts of coding one picture, each on what the one before gave, and all of them."""

    def coded(params: Tensor) -> Tensor:
        return network.code_steps(params, lambda _step, _scale, mean: mean.round() + mean)

    def whole() -> Tensor:
        return network.g_s(coded(network.h_s(network.h_a(network.g_a(x)).round())))

    with torch.no_grad():
        y = network.g_a(x)
        z = network.h_a(y)
        params = network.h_s(z)
        y_hat = coded(params)
    runs: dict[str, Callable[[], object]] = {
        "g_a": lambda: network.g_a(x),
        "h_a": lambda: network.h_a(y),
        "h_s": lambda: network.h_s(z),
        "context": lambda: coded(params),
        "g_s": lambda: network.g_s(y_hat),
        "forward": whole,
    }
    return [
        Part(name, torch.inference_mode()(run), operations(torch.no_grad()(run)))
        for name, run in runs.items()
    ]


def _training_step(network: CodecNetwork) -> Part:
    """Forward and backward of a batch of crops."""
    config = network.config
    x = torch.rand(CROPS, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    y, z = noise_shapes(config, CROPS, CROP, CROP)
    noise = (torch.rand(y) - 0.5, torch.rand(z) - 0.5)

    def step() -> None:
        output = network.train()(x, noise)
        (output.bits.mean() + (output.x_hat - x).square().mean()).backward()
        network.zero_grad(set_to_none=True)

    with torch.no_grad():
        forward = operations(lambda: network(x, noise))
    return Part(f"train, {CROPS} crops of {CROP}", step, 3 * forward)
