"""Coordinate check: what a few steps change in each kind of layer's output, against the width.

Where the parametrization is right the change does not depend on the width (arXiv 2203.03466,
appendix D.1), and the learning rate that suits one width suits another.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from hpcm_scale.config import DataConfig, ModelChoice, RunConfig
from hpcm_scale.config.run import OptimizerConfig
from hpcm_scale.models.blocks.residual import ResidualPair
from hpcm_scale.models.codec_network import CodecNetwork, noise_shapes
from hpcm_scale.models.zoo import build, chosen_model
from hpcm_scale.training.loss import RateDistortion, training_loss
from hpcm_scale.training.parameter_groups import FACTOR, parameter_groups
from hpcm_scale.training.parametrization import scale_initial, scalings

Parametrization = Literal["standard", "mup"]
PARAMETRIZATIONS: tuple[Parametrization, ...] = ("standard", "mup")
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, ResidualPair)
"""Modules whose outputs are looked at."""
GOAL = 0.05
"""Largest slope of a right parametrization, positive or negative."""
PICTURE = 3
"""Channels of one."""
STRIDE = 7
"""Distance between the kept values of an output: every 7th."""
LEAST = 1e-12
"""Change of what does not change, whose logarithm is taken."""


@dataclass(frozen=True)
class Check:
    """Networks that are trained, and how far."""

    variant: str = "base"
    widths: Sequence[float] = (0.05, 0.075, 0.1, 0.15, 0.25)
    base_width: float = 0.1
    seeds: int = 8
    steps: int = 4
    lr: float = 2e-4
    batch: int = 2
    eps: float = 1e-8
    """Adam's ε, the trainer's. Gradients of query and key are below it at first."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network's configuration, as in `model.overrides`."""

    def run(self, parametrization: Parametrization, width: float) -> RunConfig:
        """The run whose first steps are looked at; it reads no data."""
        base_width = self.base_width if parametrization == "mup" else None
        return RunConfig(
            name="check",
            data=DataConfig(train="-"),
            model=ModelChoice(variant=self.variant, width=width, overrides=dict(self.overrides)),
            optimizer=OptimizerConfig(
                lr=self.lr, parametrization=parametrization, base_width=base_width
            ),
            steps=self.steps,
            batch=self.batch,
        )


class Change(NamedTuple):
    """Root mean square change of the outputs of a kind of layer; geometric mean over its layers."""

    own: float
    """Change by the layer's own weights, on inputs as they were before training."""
    total: float
    """With the inputs as they have become."""


def measure(check: Check, parametrization: Parametrization) -> dict[str, np.ndarray]:
    """Changes of each kind of layer: (seeds, widths, 2), own and total."""
    found: dict[str, np.ndarray] = {}
    empty = np.full((check.seeds, len(check.widths), 2), np.nan)
    for j, width in enumerate(check.widths):
        for seed in range(check.seeds):
            for kind, change in changes(check, parametrization, width, seed).items():
                found.setdefault(kind, empty.copy())[seed, j] = change
    return found


def changes(
    check: Check, parametrization: Parametrization, width: float, seed: int
) -> dict[str, Change]:
    """Train one network a few steps, and compare what its layers make of other pictures."""
    run = check.run(parametrization, width)
    torch.manual_seed(seed)
    network = build(chosen_model(run.model))
    factors = scalings(run, network.config)
    if factors:
        scale_initial(network, factors)
    before = deepcopy(network)
    seen, shown = (
        pictures(check.batch, network.image_multiple, number)
        for number in (seed, check.seeds + seed)
    )
    _train(network, run, seen, seed, check.eps)
    squares: dict[str, list[tuple[float, float]]] = defaultdict(list)
    own = _own_changes(before, network, shown)
    outputs = [_outputs(each, shown) for each in (before, network)]
    for name, module in _layers(network):
        was, now = (torch.cat(each[name]) for each in outputs)
        squares[_kind(name, module)].append((own[name], (now - was).square().mean().item()))
    first = dict(before.named_parameters())
    for name, parameter in network.named_parameters():
        if parameter.numel() == max(parameter.shape):  # a value for each channel
            moved = (parameter - first[name]).square().mean().item()
            squares["biases and scales"].append((moved, moved))
    return {
        kind: Change(*np.exp(np.log(np.maximum(values, LEAST)).mean(axis=0) / 2))
        for kind, values in squares.items()
    }


def pictures(count: int, side: int, seed: int) -> Tensor:
    """Smooth noise of several scales: (count, 3, side, side) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((count, 3, side, side), 0.5)
    for grid in (2, 4, 8, 16, 32, side):
        noise = torch.rand(count, 3, grid, grid, generator=generator) - 0.5
        x += 0.9 * grid**-0.5 * F.interpolate(noise, size=(side, side), mode="bicubic")
    return x.clamp(0, 1)


def _train(network: CodecNetwork, run: RunConfig, x: Tensor, seed: int, eps: float) -> None:
    """The first steps of a run on one batch, by torch's Adam."""
    groups = parameter_groups(network, run.optimizer, scalings(run, network.config))
    for group in groups:
        if group[FACTOR] is not None:
            group["lr"] = group[FACTOR] * run.optimizer.lr
    adam = torch.optim.Adam(groups, run.optimizer.lr, run.optimizer.betas, eps)
    objective = RateDistortion(run.loss)
    generator = torch.Generator().manual_seed(seed)
    shapes = noise_shapes(network.config, *x.shape[:1], *x.shape[2:])
    for _ in range(run.total_steps(1.0)):
        y, z = (torch.rand(shape, generator=generator) - 0.5 for shape in shapes)
        output = network(x, (y, z))
        adam.zero_grad()
        training_loss(objective.per_image(output, x), output).backward()
        nn.utils.clip_grad_norm_(network.parameters(), run.optimizer.grad_clip_norm)
        adam.step()


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, each) for name, each in network.named_modules() if isinstance(each, LAYERS))


@torch.no_grad()
def _watched(network: CodecNetwork, x: Tensor, watch: Callable[[str, Any, Tensor], None]) -> None:
    """Tell `watch` the name, the inputs and the output of every call of a layer."""

    def hook(name: str, _: nn.Module, inputs: Any, output: Tensor) -> None:
        watch(name, inputs, output)

    hooks = [module.register_forward_hook(partial(hook, name)) for name, module in _layers(network)]
    network(x)
    for handle in hooks:
        handle.remove()


def _outputs(network: CodecNetwork, x: Tensor) -> dict[str, list[Tensor]]:
    """Some values of each layer's output, call by call; of a residual pair's without its skip."""
    found: dict[str, list[Tensor]] = defaultdict(list)

    def watch(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(network.get_submodule(name), ResidualPair):
            output = output - inputs[0]
        found[name].append(output.flatten()[::STRIDE].clone())

    _watched(network, x, watch)
    return found


def _own_changes(before: CodecNetwork, after: CodecNetwork, x: Tensor) -> dict[str, float]:
    """Mean square change of every layer's output with the inputs that it had before."""
    sums: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def watch(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        change = after.get_submodule(name)(*inputs) - output
        sums[name].append((change.square().sum().item(), change.numel()))

    _watched(before, x, watch)
    return {name: np.divide(*np.sum(parts, axis=0)) for name, parts in sums.items()}


def _kind(name: str, module: nn.Module) -> str:
    """Kind of a layer, by its place in the network."""
    path = name.split(".")
    kind = type(module).__name__
    if "fusions" in path:
        return f"{kind}, {path[-1]}"
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.groups > 1:
            return f"{kind}, depthwise"
        ends = (module.in_channels, module.out_channels)
        if PICTURE in ends and ends[0] != ends[1]:
            return f"{kind}, {'from' if ends[0] == PICTURE else 'to'} the picture"
    return kind


def slopes(values: np.ndarray, widths: Sequence[float]) -> tuple[float, float]:
    """Slope of the logarithm of (seeds, widths) changes against that of the width.

    Returns:
        Mean over the seeds, and its standard error (NaN with one seed).
    """
    found = np.polyfit(np.log(widths), np.log(values).T, 1)[0]
    error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.nan
    return float(found.mean()), float(error)


def steepest(found: Mapping[str, np.ndarray], widths: Sequence[float]) -> tuple[float, float]:
    """Largest slope, positive or negative, of own and of total changes over all kinds."""
    own, total = (
        max((slopes(values[..., i], widths)[0] for values in found.values()), key=abs)
        for i in (0, 1)
    )
    return own, total


def table(found: Mapping[str, np.ndarray], check: Check, parametrization: Parametrization) -> Table:
    """Own changes of each kind at each width, and the slopes of own and total changes."""
    shown = Table(title=f"{check.variant}, {parametrization}: change of outputs by width")
    shown.add_column("layers")
    for column in (*(f"{width:g}" for width in check.widths), "slope", "slope of total"):
        shown.add_column(column, justify="right")
    for kind, values in found.items():
        own = np.exp(np.log(values[..., 0]).mean(axis=0))
        fitted = (slopes(values[..., i], check.widths) for i in (0, 1))
        shown.add_row(
            kind,
            *(f"{value:.3g}" for value in own),
            *(f"{slope:+.3f}" + f" ± {error:.3f}" * (error == error) for slope, error in fitted),
        )
    own, total = steepest(found, check.widths)
    shown.caption = (
        f"{check.steps} steps of {check.batch} pictures, lr {check.lr:g}, {check.seeds} seeds "
        f"(± standard error); columns: changes by a layer's own weights; steepest {own:+.3f}, of "
        f"total {total:+.3f}; goal: within ±{GOAL:g}"
    )
    return shown
