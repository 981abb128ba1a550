"""HPCM: the hierarchical progressive context model. Source: arXiv 2507.19125."""

from torch import Tensor, nn

from hpcm_scale.config import HpcmConfig
from hpcm_scale.models import grids
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.context import ContextStep, SharedNet, WindowFusion
from hpcm_scale.models.delayed_gradients import DelayedGradients
from hpcm_scale.models.density import ZPrior
from hpcm_scale.models.geometry import hpcm_image_multiple, hpcm_schedule
from hpcm_scale.models.hpcm_walk import walk_steps
from hpcm_scale.models.transforms import analysis, hyper_analysis, hyper_synthesis, synthesis


class HPCM(CodecNetwork[HpcmConfig, grids.StepGrids]):
    """The codec network of one `HpcmConfig` with architecture "hpcm"."""

    repeats_modules = True

    def __init__(self, config: HpcmConfig) -> None:
        tables = hpcm_schedule(config)
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
        channels = config.context_channels or 3 * m
        self.shared_s12 = SharedNet(m, channels, config.shared_s12)
        self.shared_s3 = SharedNet(m, channels, config.shared_s3)
        # The first step of all takes its parameters straight from the hyperprior.
        self.steps = nn.ModuleList(
            ContextStep(m, channels, config.adaptor_depths[scale]) for scale, _ in tables.steps[1:]
        )
        self.merges = nn.ModuleList(Conv1x1(2 * m, 2 * m) for _ in tables.scales[1:])
        self.fusions = nn.ModuleList(
            WindowFusion(2 * m, config.heads, window)
            for window in (config.windows if config.fusion == "attention" else ())
        )
        self._delayed = DelayedGradients()
        for module in self._repeated:
            self._delayed.take_over(module)

    @property
    def image_multiple(self) -> int:
        return hpcm_image_multiple(self.config, self.partition.schedule)

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        with self._delayed.one_pass(*self._repeated):
            return walk_steps(self.config, self.partition, self, params, code)

    @property
    def _repeated(self) -> tuple[nn.Module, ...]:
        """What runs many times in a pass, and nets alike, whose gradients are delayed."""
        return self.shared_s12, self.shared_s3, self.steps, self.fusions

    # Nets of the walk, each called through `run`.

    def step(self, k: int, s: int, context: Tensor, y_hat: Tensor) -> Tensor:
        """ψ of step k > 0 of scale s."""
        last = s == len(self.partition.schedule.scales) - 1
        shared = self.shared_s3 if last else self.shared_s12
        return self.run(self.steps[k - 1], context, y_hat, shared)

    def merge(self, s: int, context: Tensor) -> Tensor:
        """The context that enters scale s > 0."""
        return self.merges[s - 1](context)

    def fuse(self, s: int, psi: Tensor, context: Tensor) -> Tensor:
        """The context after a step of scale s, by attention."""
        return self.run(self.fusions[s], psi, context)
