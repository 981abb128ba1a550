"""HPCM: the hierarchical progressive context model. Source: arXiv 2507.19125."""

import math

from torch import Tensor, nn

from hpcm_scale.config import HpcmConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.models import grids
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.context import ContextStep, SharedNet, WindowFusion
from hpcm_scale.models.density import ZPrior
from hpcm_scale.models.schedule import schedule_named
from hpcm_scale.models.transforms import analysis, hyper_analysis, hyper_synthesis, synthesis


class HPCM(CodecNetwork[HpcmConfig, grids.StepGrids]):
    """The codec network of one `HpcmConfig` with architecture "hpcm"."""

    repeats_modules = True

    def __init__(self, config: HpcmConfig) -> None:
        tables = schedule_named(config.schedule)
        for scale in tables.scales:
            if config.latent_channels % scale.groups:
                raise ConfigError(
                    f"latent_channels: {config.latent_channels} is not a multiple of "
                    f"{scale.groups}, the channel groups of schedule {config.schedule}"
                )
        super().__init__(
            config,
            grids.StepGrids(tables),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=hyper_synthesis(config, 2 * config.latent_channels),
            z_prior=ZPrior(config.hyper_channels),
        )
        m = config.latent_channels
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

    @property
    def image_multiple(self) -> int:
        """Multiple of an image's sides with which grids halve evenly and hold whole windows."""
        scales = self.partition.schedule.scales
        multiple = self.stride
        for s, scale in enumerate(scales):
            pixels = 16 << (len(scales) - 1 - s)
            period = max(len(table[0]) for table in scale.steps)
            window = self.config.windows[s] if self.fusions else 1
            window_pixels = (pixels if self.config.hierarchical else 16) * window
            multiple = math.lcm(multiple, pixels * period, window_pixels)
        return multiple

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w): (scale | mean) of the hyperprior for every latent.
            code: called once a step, in coding order, with dense scale and mean; returns ŷ.

        Returns:
            ŷ (B, M, h, w).
        """
        schedule = self.partition.schedule
        hierarchical = self.config.hierarchical
        pyramid = self.partition.pyramid(params, parts=2)
        context, y_hat = (pyramid[0] if hierarchical else params), None
        for k, (s, table) in enumerate(schedule.steps):
            scale = schedule.scales[s]
            if k and s != schedule.steps[k - 1][0]:
                context, y_hat = self._enter(s, context, y_hat, pyramid[s])
            if k == 0:
                psi = context
            else:
                shared = self.shared_s3 if s == len(schedule.scales) - 1 else self.shared_s12
                psi = self.run(self.steps[k - 1], context, y_hat, shared)
            on_scale = psi if hierarchical else self.partition.narrow(psi, s, parts=2)
            coded = code(k, *grids.take(on_scale, table, scale.groups, parts=2).chunk(2, dim=1))
            placed = grids.place(coded, table, scale.groups)
            if not hierarchical:
                placed = self.partition.widen(placed, s)
            y_hat = placed if y_hat is None else y_hat + placed
            # The context after the last step is read by nothing.
            if 0 < k < len(schedule.steps) - 1:
                context = self._fuse(s, psi, context)
        assert y_hat is not None  # a schedule has steps
        return y_hat

    def _enter(
        self, s: int, context: Tensor, y_hat: Tensor, params: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Context and latents so far of scale s−1 on the grid of scale s, with s's `params`."""
        if not self.config.hierarchical:
            return self.merges[s - 1](context), y_hat
        kept = self.partition.schedule.scales[s].kept
        if s == 1 and self.config.hyper_alignment == "official":
            params = grids.misplace(params)
        context = self.merges[s - 1](grids.insert(context, params, kept, parts=2))
        return context, grids.insert_into_zeros(y_hat, kept)

    def _fuse(self, s: int, psi: Tensor, context: Tensor) -> Tensor:
        if self.config.fusion == "attention":
            return self.run(self.fusions[s], psi, context)
        return psi if self.config.fusion == "psi" else context
