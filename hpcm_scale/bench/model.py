"""Speed of a network on this machine, part by part, and its share of the peak."""

from collections import defaultdict
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
from hpcm_scale.models.peak import ProductRates
from hpcm_scale.models.torch_internals import has_native_bf16
from hpcm_scale.models.zoo import build
from hpcm_scale.planning.launches import count_launches
from hpcm_scale.units import GIB, peak_rss, processor

CROPS, CROP = 4, 256
"""The training step that is measured: crops and their side."""
TRANSFORMS = ("g_a", "g_s")
"""Parts of a picture that may be computed in bf16; the others decide symbols."""


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of products and convolutions, two to a multiply-accumulate."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a model that is timed."""

    name: str
    run: Callable[[], object]
    flops: int
    precision: str
    """fp32 or bf16."""


def bench_model(
    config: ModelConfig, width: int, height: int, repeats: int, train: bool, compiled: bool
) -> Table:
    """Median times of a picture's parts and of a training step, with random weights.

    In fp32, and transforms and step in bf16 too where the processor has it. Every repeat measures
    the rates of large products again beside each part: on a shared machine only the ratio of two
    times taken together means something.

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
    if has_native_bf16():
        half = build(config).to(torch.bfloat16)
        parts += [part for part in _picture(half.eval(), x.bfloat16()) if part.name in TRANSFORMS]
        if train:
            parts.append(_training_step(half))
    times, products = defaultdict(list), ProductRates()
    shares: dict[Part, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(repeats):
        for part in parts:
            rates = products.measure()
            start = perf_counter()
            part.run()
            seconds = perf_counter() - start
            times[part].append(seconds)
            best = max(rates.values())
            shares[part].append(
                (part.flops / seconds / rates[part.precision], part.flops / seconds / best)
            )

    table = Table(title=f"{config.name}, {width}x{height}, medians of {repeats}")
    table.add_column("part")
    table.add_column("arithmetic")
    for column in ("GFLOP", "seconds", "GFLOP/s", "of a product in it", "of the fastest"):
        table.add_column(column, justify="right")
    for part in parts:
        seconds = median(times[part])
        of_own, of_best = (median(share) for share in zip(*shares[part], strict=True))
        table.add_row(
            *(part.name, part.precision),
            f"{part.flops / 1e9:.1f}",
            f"{seconds:.3f}",
            f"{part.flops / seconds / 1e9:.0f}",
            *(f"{of_own:.0%}", f"{of_best:.0%}"),
        )
    table.caption = (
        f"{processor()}, {torch.get_num_threads()} threads; {products}; "
        f"peak memory {peak_rss() / GIB:.2f} GiB; a training step dispatches "
        f"{count_launches(config, CROP, False)} operations on an accelerator"
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
    precision = _precision(x)
    return [
        Part(name, torch.inference_mode()(run), operations(torch.no_grad()(run)), precision)
        for name, run in runs.items()
    ]


def _precision(x: Tensor) -> str:
    return "bf16" if x.dtype == torch.bfloat16 else "fp32"


def _training_step(network: CodecNetwork) -> Part:
    """Forward and backward of a batch of crops."""
    config = network.config
    x = torch.rand(CROPS, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    x = x.to(next(network.parameters()).dtype)
    y, z = noise_shapes(config, CROPS, CROP, CROP)
    noise = (torch.rand(y) - 0.5, torch.rand(z) - 0.5)

    def step() -> None:
        output = network.train()(x, noise)
        (output.bits.mean() + (output.x_hat - x).square().mean()).backward()
        network.zero_grad(set_to_none=True)

    with torch.no_grad():
        forward = operations(lambda: network(x, noise))
    return Part(f"train, {CROPS} crops of {CROP}", step, 3 * forward, _precision(x))
