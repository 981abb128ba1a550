"""The base of every codec network: transforms, hyperprior, rates of a walk over its steps.

One walk over the coding steps (`CodecNetwork.code_steps`) serves training, encoding and decoding;
they differ in the callback that turns a step's (scale, mean) into its ŷ.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpcm_scale.config import ModelConfig
from hpcm_scale.errors import DataError
from hpcm_scale.models.density import (
    GENERALIZED_GAUSSIAN,
    HyperPrior,
    ScaleDensity,
    ste_quantise,
    ste_round,
    upcast_half,
)
from hpcm_scale.models.gains import Gains
from hpcm_scale.models.geometry import HYPER_STRIDE, LATENT_STRIDE
from hpcm_scale.models.slices import joined
from hpcm_scale.models.transforms import ModuleCall, call

Code = Callable[[int, Tensor, Tensor], Tensor]
"""(step, scale, mean) -> ŷ of that step; dense (B, C_k, h_k, w_k) all three."""


class Output(NamedTuple):
    """Result of one pass over a batch."""

    x_hat: Tensor
    """(B, 3, H, W), reconstruction; not clamped."""
    bits: Tensor
    """(B, scales + 1): bits of y in each scale, smallest first, then of z."""
    auxiliary: Tensor | None = None
    """The loss of the z prior's own parameters, a scalar; None where the prior has none."""
    bit_map: Tensor | None = None
    """(B, H/16, W/16), where asked for: bits of y at each latent position, over all channels."""


class LatentPartition(Protocol):
    """The latents of an image as the dense tensors that the coding steps handle, and back."""

    @property
    def step_scales(self) -> tuple[int, ...]:
        """The scale each step belongs to, in coding order, counted from 0 and never falling."""
        ...

    def split(self, y: Tensor) -> list[Tensor]:
        """(B, M, H, W) -> one dense (B, C_k, h_k, w_k) tensor a step, in coding order."""
        ...

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        ...

    def line_up(self, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`joined` of what `split` gives, and that."""
        ...


def noise_shapes(
    config: ModelConfig, batch: int, height: int, width: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Shapes of y and z, and of their noise, for (batch, 3, height, width) images."""
    return (
        (batch, config.latent_channels, height // LATENT_STRIDE, width // LATENT_STRIDE),
        (batch, config.hyper_channels, height // HYPER_STRIDE, width // HYPER_STRIDE),
    )


Config = TypeVar("Config", bound=ModelConfig)
Partition = TypeVar("Partition", bound=LatentPartition)


class CodecNetwork(nn.Module, ABC, Generic[Config, Partition]):
    """A learned image codec; what extends it brings transforms, steps and the context model.

    Args:
        config: of the network.
        partition: how the latents fall into coding steps.
        g_a, g_s, h_a, h_s: analysis, synthesis, hyper-analysis and hyper-synthesis, each called
            with its input and the `ModuleCall` that runs its stages.
        z_prior: the density of z.
        density: the density of y.
    """

    centred = True
    """Whether symbols are round(y − mean); else they are round(y), and the mean moves the density
    alone."""
    global_context: ClassVar[bool] = False
    """Whether coding steps see the whole image, so that it is never cut into coding tiles."""
    repeats_modules: ClassVar[bool] = False
    """Whether large modules run many times in a pass, so that ZeRO-3 had better keep them gathered
    from one time to the next."""
    published_calls: ClassVar[Mapping[str, float]] = {}
    """Regular expressions of module names, and how many times as much as here the published program
    computes in them: at positions whose results nothing reads, say. No two may count the same
    arithmetic."""

    def __init__(
        self,
        config: Config,
        partition: Partition,
        *,
        g_a: nn.Module,
        g_s: nn.Module,
        h_a: nn.Module,
        h_s: nn.Module,
        z_prior: HyperPrior,
        density: ScaleDensity = GENERALIZED_GAUSSIAN,
    ) -> None:
        super().__init__()
        self.config = config
        self.partition = partition
        self.g_a = g_a
        self.g_s = g_s
        self.h_a = h_a
        self.h_s = h_s
        self.z_prior = z_prior
        self.density = density
        self.gains = Gains(config.latent_channels, config.rates) if config.rates else None
        self.run: ModuleCall = call
        self._plain: ModuleCall = call

    @property
    def scales(self) -> int:
        """Scales whose rates `Output.bits` tells apart."""
        return max(self.partition.step_scales) + 1

    @property
    def published_dead_parameters(self) -> int:
        """Parameters of the published program that this network does without.

        They are made of others, or no result depends on them; the papers count them.
        """
        return 0

    @property
    def stride(self) -> int:
        """Image positions per hyper-latent position, along each side."""
        return HYPER_STRIDE

    @property
    def image_multiple(self) -> int:
        """Multiple that an image's sides must be of."""
        return self.stride

    def checkpoint_activations(self, every: bool | int) -> None:
        """Recompute activations in the backward pass instead of storing them.

        Args:
            every: of each transform stage and coding step (True), of none (False), or of every
                k-th of them in the order of a pass.
        """
        self.run = CheckpointEvery(int(every), self._plain) if every else self._plain

    def compile_stages(self, graphs: bool, backend: str = "inductor") -> None:
        """Run transform stages and coding steps through torch.compile; before
        `checkpoint_activations`.

        Args:
            graphs: replay each as a CUDA graph; with activations that are kept, one pass a step.
            backend: of torch.compile.
        """
        self.run = self._plain = CompiledCall(graphs, backend)

    def forward(
        self,
        x: Tensor,
        noise: tuple[Tensor, Tensor] | None = None,
        with_map: bool = False,
        places: Tensor | None = None,
    ) -> Output:
        """Price and reconstruct a batch.

        Args:
            x: (B, 3, H, W) RGB in [0, 1]; H and W multiples of `image_multiple`.
            noise: uniform in [−½, ½) for y (B, M, H/16, W/16) and z (B, N, H/64, W/64): the
                training rate. None prices the rounded symbols, what a file costs.
            with_map: also return where the bits of y went.
            places: (B,) of each image among the network's rates, in [0, len(rates) − 1]; None for
                the middle. A network of one rate takes none.

        Raises:
            DataError: if a side is not a multiple of `image_multiple`.
        """
        self.check_sides(x)
        if isinstance(self.run, CheckpointEvery):
            self.run.calls = 0
        y = self.g_a(x, self.run)
        gain = self.gains_at(places, len(x))
        if gain is not None:
            y = y * gain.to(y.dtype)
        z = self.h_a(y, self.run)
        z_noise = None if noise is None else noise[1]
        together = self.z_prior.bits_given(self.density)
        how = {"apart": False} if together else {}
        z_hat, z_rate, auxiliary = self.z_prior(z, z_noise, **how)
        params = self.h_s(z_hat, self.run)

        values, targets = self.partition.line_up(upcast_half(y))
        scales: list[Tensor] = []
        means: list[Tensor] = []

        def code(step: int, scale: Tensor, mean: Tensor) -> Tensor:
            scales.append(scale)
            means.append(mean)
            return ste_quantise(targets[step], mean if self.centred else None).to(y.dtype)

        y_hat = self.code_steps(params, code)
        x_hat = self.g_s(y_hat if gain is None else y_hat / gain.to(y.dtype), self.run)
        # Estimated together: step by step it would be a hundred small operations a step.
        scale, mean = upcast_half(joined(scales)), joined(means)
        if noise is not None:
            values = values - mean + self.partition.line_up(noise[0])[0]
        elif self.centred:
            values = ste_round(values - mean)
        else:
            values = ste_round(values) - mean
        sizes = [part[0].numel() for part in targets]
        of_scale = [0] * self.scales
        for s, size in zip(self.partition.step_scales, sizes, strict=True):
            of_scale[s] += size
        if together:
            of_scale.append(z_rate[0].shape[1])
            values, scale = torch.cat([values, z_rate[0]], 1), torch.cat([scale, z_rate[1]], 1)
        cost = self.density.bits(values, scale)
        spent = [part.sum(1) for part in cost.split(of_scale, dim=1)]
        bits = torch.stack(spent if together else [*spent, z_rate.flatten(1).sum(1)], dim=1)
        bit_map = None
        if with_map:
            of_y = cost[:, : sum(sizes)]
            steps = zip(of_y.split(sizes, dim=1), targets, strict=True)
            maps = [flat.view_as(part.permute(0, 2, 3, 1)) for flat, part in steps]
            bit_map = self.partition.join([part.permute(0, 3, 1, 2) for part in maps]).sum(1)
        return Output(x_hat, bits, auxiliary, bit_map)

    def gains_at(self, places: Tensor | None, batch: int = 1) -> Tensor | None:
        """Factors of the latents before coding: (B, M, 1, 1); None of a network of one rate.

        Args:
            places: (B,) among the network's rates; None for the middle, `batch` times.
        """
        if self.gains is None:
            return None
        if places is None:
            middle = (len(self.config.rates) - 1) / 2
            places = torch.full((batch,), middle, device=self.gains.logs.device)
        return self.gains(places)

    def check_sides(self, x: Tensor) -> None:
        """Raises DataError unless the sides of x (B, 3, H, W) suit the grids and windows."""
        multiple = self.image_multiple
        if x.shape[-1] % multiple or x.shape[-2] % multiple:
            raise DataError(
                f"image: sides {x.shape[-2]}×{x.shape[-1]} are not multiples of {multiple}, "
                f"which {self.config.name}'s strides and windows need; pad it first"
            )

    @abstractmethod
    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w): what the hyperprior says of every latent.
            code: called once a step, in coding order, with dense scale and mean; returns ŷ.

        Returns:
            ŷ (B, M, h, w).
        """


class CompiledCall:
    """A `ModuleCall` that compiles each module at its first call, for the shapes it then sees.

    Where no gradient is asked for, as in validation, whose images are of many sizes, modules run as
    they are.
    """

    def __init__(self, graphs: bool, backend: str) -> None:
        mode = "reduce-overhead" if graphs else None
        self._options: dict[str, Any] = {"backend": backend, "mode": mode, "dynamic": False}
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}

    def __call__(self, module: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return module(*inputs)
        if module not in self._compiled:
            self._compiled[module] = torch.compile(self._own(module), **self._options)
        return self._compiled[module](*inputs)

    def _own(self, module: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`module` behind a code object of its own.

        torch keeps compiled versions by code object, eight at most, and all stages share one.
        """

        def run(*inputs: Any) -> Tensor:
            return module(*inputs)

        run.__code__ = run.__code__.replace(co_name=f"run_{len(self._compiled)}")
        return run


class CheckpointEvery:
    """A `ModuleCall` that recomputes every k-th of its modules in the backward pass."""

    def __init__(self, every: int, plain: ModuleCall) -> None:
        self.every, self.plain = every, plain
        self.calls = 0

    def __call__(self, module: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % self.every:
            return self.plain(module, *inputs)
        # Non-reentrant: the reentrant form loses the parameters ZeRO-3 gathers for a shared net.
        return checkpoint(self.plain, module, *inputs, use_reentrant=False)
