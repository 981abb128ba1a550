"""The base of every codec network: transforms, hyperprior, rates of a walk over its steps.

One walk over the coding steps (`CodecNetwork.code_steps`) serves training, encoding and decoding;
they differ in the callback that turns a step's (scale, mean) into its ŷ.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpcm_scale.config import ModelConfig
from hpcm_scale.errors import DataError
from hpcm_scale.models.density import (
    GENERALIZED_GAUSSIAN,
    HyperPrior,
    ScaleDensity,
    ste_round,
    upcast_half,
)
from hpcm_scale.models.transforms import HYPER_STRIDE, LATENT_STRIDE, ModuleCall, call

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
        """The scale each step belongs to, in coding order, counted from 0."""
        ...

    def split(self, y: Tensor) -> list[Tensor]:
        """(B, M, H, W) -> one dense (B, C_k, h_k, w_k) tensor a step, in coding order."""
        ...

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
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
        self.run: ModuleCall = call

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
        self.run = CheckpointEvery(int(every)) if every else call

    def forward(
        self,
        x: Tensor,
        noise: tuple[Tensor, Tensor] | None = None,
        with_map: bool = False,
    ) -> Output:
        """Price and reconstruct a batch.

        Args:
            x: (B, 3, H, W) RGB in [0, 1]; H and W multiples of `image_multiple`.
            noise: uniform in [−½, ½) for y (B, M, H/16, W/16) and z (B, N, H/64, W/64): the
                training rate. None prices the rounded symbols, what a file costs.
            with_map: also return where the bits of y went.

        Raises:
            DataError: if a side is not a multiple of `image_multiple`.
        """
        self.check_sides(x)
        if isinstance(self.run, CheckpointEvery):
            self.run.calls = 0
        y = self.g_a(x, self.run)
        z = self.h_a(y, self.run)
        z_hat, z_bits, auxiliary = self.z_prior(z, None if noise is None else noise[1])
        params = self.h_s(z_hat, self.run)

        targets = self.partition.split(y)
        noises = None if noise is None else self.partition.split(noise[0])
        scale_of = self.partition.step_scales
        spent = [z_bits.new_zeros(x.shape[0]) for _ in range(self.scales)]
        spent_at: list[Tensor] = []

        def code(step: int, scale: Tensor, mean: Tensor) -> Tensor:
            mean = upcast_half(mean)
            residual = upcast_half(targets[step])
            if self.centred:
                residual = residual - mean
            symbols = ste_round(residual)
            rated = symbols if noises is None else residual + noises[step]
            coded = symbols + mean if self.centred else symbols
            if not self.centred:
                rated = rated - mean
            s = scale_of[step]
            cost = self.density.bits(rated, upcast_half(scale))
            spent[s] = spent[s] + cost.flatten(1).sum(1)
            if with_map:
                spent_at.append(cost)
            return coded.to(y.dtype)

        y_hat = self.code_steps(params, code)
        x_hat = self.g_s(y_hat, self.run)
        bit_map = self.partition.join(spent_at).sum(1) if with_map else None
        bits = torch.stack([*spent, z_bits.flatten(1).sum(1)], dim=1)
        return Output(x_hat, bits, auxiliary, bit_map)

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


class CheckpointEvery:
    """A `ModuleCall` that recomputes every k-th of its modules in the backward pass."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.calls = 0

    def __call__(self, module: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % self.every:
            return module(*inputs)
        # Non-reentrant: the reentrant form loses the parameters ZeRO-3 gathers for a shared net.
        return checkpoint(module, *inputs, use_reentrant=False)
