"""HPCM: transforms, hyperprior and the hierarchical progressive context model.

One walk over the coding steps (`HPCM.code_steps`) serves training, encoding and decoding; they
differ in the callback that turns a step's (scale, mean) into its ŷ. Source: arXiv 2507.19125.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpcm_scale.config import ModelConfig
from hpcm_scale.errors import DataError
from hpcm_scale.models import grids
from hpcm_scale.models.blocks import Conv1x1
from hpcm_scale.models.context import ContextStep, SharedNet, WindowFusion
from hpcm_scale.models.density import ZPrior, bits, round_through
from hpcm_scale.models.schedule import schedule_named
from hpcm_scale.models.transforms import (
    Run,
    analysis,
    directly,
    hyper_analysis,
    hyper_synthesis,
    synthesis,
)

Code = Callable[[int, Tensor, Tensor], Tensor]
"""(step, scale, mean) -> ŷ of that step; dense (B, C_k, h_k, w_k) all three."""


class Output(NamedTuple):
    """What one pass over a batch gives."""

    x_hat: Tensor
    """(B, 3, H, W), reconstruction; not clamped."""
    bits: Tensor
    """(B, scales + 1): bits of y in each scale, smallest first, then of z."""


class HPCM(nn.Module):
    """The codec network of one `ModelConfig` with architecture "hpcm"."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        m = config.latent_channels
        tables = schedule_named(config.schedule)
        self.schedule = grids.StepGrids(tables)
        self.g_a = analysis(config)
        self.g_s = synthesis(config)
        self.h_a = hyper_analysis(config)
        self.h_s = hyper_synthesis(config, 2 * m)
        self.z_prior = ZPrior(config.hyper_channels)
        self.shared_s12 = SharedNet(m, config.shared_s12)
        self.shared_s3 = SharedNet(m, config.shared_s3)
        # The first step of all takes its parameters straight from the hyperprior.
        self.steps = nn.ModuleList(
            ContextStep(m, config.adaptor_depths[scale]) for scale, _ in tables.steps[1:]
        )
        self.merges = nn.ModuleList(Conv1x1(2 * m, 2 * m) for _ in tables.scales[1:])
        self.fusions = nn.ModuleList(
            WindowFusion(2 * m, config.heads, window)
            for window in (config.windows if config.fusion == "attention" else ())
        )
        self.run: Run = directly

    @property
    def stride(self) -> int:
        """Image positions per hyper-latent position, along each side."""
        return 64

    @property
    def image_multiple(self) -> int:
        """What an image's sides must be multiples of: grids halve evenly and hold whole windows."""
        scales = self.schedule.schedule.scales
        multiple = self.stride
        for s, scale in enumerate(scales):
            pixels = 16 << (len(scales) - 1 - s)
            period = max(len(table[0]) for table in scale.steps)
            window = self.config.windows[s] if self.fusions else 1
            multiple = max(multiple, pixels * max(period, window))
        return multiple

    def checkpoint_activations(self, enabled: bool) -> None:
        """Recompute each transform stage and coding step in backward instead of storing it."""
        # Non-reentrant: the reentrant form loses the parameters ZeRO-3 gathers for a shared net.
        self.run = _recomputed if enabled else directly

    def forward(self, x: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> Output:
        """Price and reconstruct a batch.

        Args:
            x: (B, 3, H, W) RGB in [0, 1]; H and W multiples of `image_multiple`.
            noise: uniform in [−½, ½) for y (B, M, H/16, W/16) and z (B, N, H/64, W/64): the
                training rate. None prices the rounded symbols, what a file costs.

        Raises:
            DataError: if a side is not a multiple of `image_multiple`.
        """
        self.check_sides(x)
        y = self.g_a(x, self.run)
        z_hat, z_bits = self.z_prior(self.h_a(y, self.run), None if noise is None else noise[1])
        params = self.h_s(z_hat, self.run)

        targets = self.schedule.split(y)
        noises = None if noise is None else self.schedule.split(noise[0])
        spent = [x.new_zeros(x.shape[0]) for _ in self.schedule.schedule.scales]

        def code(step: int, scale: Tensor, mean: Tensor) -> Tensor:
            residual = targets[step] - mean
            symbols = round_through(residual)
            priced = symbols if noises is None else residual + noises[step]
            s = self.schedule.schedule.steps[step][0]
            spent[s] = spent[s] + bits(priced, scale).flatten(1).sum(1)
            return symbols + mean

        y_hat = self.code_steps(params, code)
        x_hat = self.g_s(y_hat, self.run)
        return Output(x_hat, torch.stack([*spent, z_bits.flatten(1).sum(1)], dim=1))

    def check_sides(self, x: Tensor) -> None:
        """Raises DataError unless the sides of x (B, 3, H, W) suit the grids and windows."""
        multiple = self.image_multiple
        if x.shape[-1] % multiple or x.shape[-2] % multiple:
            raise DataError(
                f"image: sides {x.shape[-2]}×{x.shape[-1]} are not multiples of {multiple}, "
                f"which {self.config.name}'s strides and windows need; pad it first"
            )

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w): (scale | mean) of the hyperprior for every latent.
            code: called once a step, in coding order, with dense scale and mean; returns ŷ.

        Returns:
            ŷ (B, M, h, w).
        """
        schedule = self.schedule.schedule
        pyramid = self.schedule.pyramid(params, parts=2)
        context, y_hat = pyramid[0], None
        for k, (s, table) in enumerate(schedule.steps):
            scale = schedule.scales[s]
            if k and s != schedule.steps[k - 1][0]:
                context, y_hat = self._enter(s, context, y_hat, pyramid[s])
            if k == 0:
                psi = context
            else:
                shared = self.shared_s3 if s == len(schedule.scales) - 1 else self.shared_s12
                psi = self.run(self.steps[k - 1], context, y_hat, shared)
            coded = code(k, *grids.take(psi, table, scale.groups, parts=2).chunk(2, dim=1))
            placed = grids.place(coded, table, scale.groups)
            y_hat = placed if y_hat is None else y_hat + placed
            # The context after the last step is read by nothing.
            if 0 < k < len(schedule.steps) - 1:
                context = self._fuse(s, psi, context)
        return y_hat

    def _enter(
        self, s: int, context: Tensor, y_hat: Tensor, params: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Context and latents so far of scale s−1 on the grid of scale s, with s's `params`."""
        kept = self.schedule.schedule.scales[s].kept
        if s == 1 and self.config.hyper_alignment == "official":
            params = grids.misplace(params)
        context = self.merges[s - 1](grids.insert(context, params, kept, parts=2))
        b, m, h, w = y_hat.shape
        empty = y_hat.new_zeros(b, 2 * h, 2 * w, m).permute(0, 3, 1, 2)
        return context, grids.insert(y_hat, empty, kept)

    def _fuse(self, s: int, psi: Tensor, context: Tensor) -> Tensor:
        if self.config.fusion == "attention":
            return self.run(self.fusions[s], psi, context)
        return psi if self.config.fusion == "psi" else context


def _recomputed(module: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return checkpoint(module, *inputs, use_reentrant=False)
