"""HPCM in NumPy: its nets from a model's parameters, and the exact walk over its coding steps."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from hpcm_scale.config.model import HpcmConfig
from hpcm_scale.entropy.exact.grid import GRID, LIMIT
from hpcm_scale.entropy.exact.pixels import inverse_gains
from hpcm_scale.models.geometry import (
    hpcm_image_multiple,
    hpcm_reach,
    hpcm_schedule,
    hpcm_working_bytes,
)
from hpcm_scale.models.hpcm_walk import walk_steps
from hpcm_scale.numpy_engine import exact_layers as exact
from hpcm_scale.numpy_engine import float_layers as floating
from hpcm_scale.numpy_engine.exact_product import requantize
from hpcm_scale.numpy_engine.exact_synthesis import Synthesis
from hpcm_scale.numpy_engine.moves import StepGrids
from hpcm_scale.numpy_engine.parameters import Parameters

Code = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(step, scale, mean), grid integers -> symbols of that step; all dense (h_k, w_k, C_k)."""


class Network:
    """The codec network of one `HpcmConfig` with architecture "hpcm".

    Args:
        parameters: of the model file; all of them are taken.

    Raises:
        CheckpointError: if they are not those of the configuration, or could make a sum of exact
            arithmetic overflow.
        ConfigError: if the configuration's parts do not fit.
    """

    def __init__(self, config: HpcmConfig, parameters: Parameters) -> None:
        self.config = config
        self.schedule = hpcm_schedule(config)
        self.grids = StepGrids(self.schedule)
        p, m, n = parameters, config.latent_channels, config.hyper_channels
        self._of_g_s = parameters.part("g_s.")
        self.g_a = _analysis(config, p)
        self.g_s = _synthesis(config, p)
        self.h_a = _hyper_analysis(config, p)
        self.h_s = _hyper_synthesis(config, p)
        mean = p.take("z_prior.mean", 1, n, 1, 1).ravel()
        p.take("z_prior.scale", 1, n, 1, 1)  # the tables are made of it
        self._z_mean = requantize(mean.astype(np.float64) * GRID)
        nets = (("shared_s12", config.shared_s12), ("shared_s3", config.shared_s3))
        channels = config.context_channels or 3 * m
        self._shared = [
            exact.SharedNet(p, name, m, channels, net.before, net.after, net.out)
            for name, net in nets
        ]
        self._steps = [
            exact.ContextStep(p, f"steps.{k}", m, channels, config.adaptor_depths[s])
            for k, (s, _) in enumerate(self.schedule.steps[1:])
        ]
        self._merges = [
            exact.Linear(p, f"merges.{s}", 2 * m, 2 * m)
            for s in range(len(self.schedule.scales) - 1)
        ]
        self._fusions = [
            exact.WindowFusion(p, f"fusions.{s}", 2 * m, config.heads, window)
            for s, window in enumerate(config.windows if config.fusion == "attention" else ())
        ]
        self._gains = p.take("gains.logs", len(config.rates), m) if config.rates else None
        p.check_all_taken()

    @cached_property
    def exact_g_s(self) -> Synthesis:
        """g_s in exact arithmetic, made when it is first asked for.

        Raises:
            CheckpointError: if its parameters could make a sum overflow.
        """
        return Synthesis(self.config, self._of_g_s)

    def inverse_gain(self, rate: int | None) -> np.ndarray | None:
        """Factors of ŷ before the exact g_s, (M,); None of a network of one rate.

        Raises:
            CheckpointError: as `inverse_gains`.
        """
        return None if rate is None or self._gains is None else inverse_gains(self._gains, rate)

    @property
    def image_multiple(self) -> int:
        """Multiple that an image's sides must be of."""
        return hpcm_image_multiple(self.config, self.schedule)

    @property
    def reaches(self) -> tuple[int, int]:
        """Pixels beyond its own that a latent of g_a and of g_s sees or influences."""
        config = self.config
        return hpcm_reach(config.analysis_depths), hpcm_reach(config.synthesis_depths)

    @property
    def working_bytes(self) -> float:
        """Bytes a pixel that g_a or g_s works in."""
        return hpcm_working_bytes(self.config)

    def gain(self, place: float) -> np.ndarray:
        """Factors of the latents before coding, (M,): linear in logarithms.

        Args:
            place: in [0, n − 1] among the n rates of a network of many.
        """
        assert self._gains is not None  # the codec asks networks of many rates alone
        low = min(int(place), len(self._gains) - 2)
        share = np.float32(place - low)
        return np.exp(self._gains[low] * (1 - share) + self._gains[low + 1] * share)

    def hyper_symbols(self, z: np.ndarray) -> np.ndarray:
        """z (h, w, N) as its float symbols, not yet bounded."""
        return np.rint(z - (self._z_mean / GRID).astype(np.float32))

    def walk(self, z_symbols: np.ndarray, code: Code) -> np.ndarray:
        """ŷ (4h, 4w, M) float32 from z symbols (h, w, N), calling `code` once a step."""

        def coded(step: int, scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
            symbols = code(step, scale, mean)
            return (symbols.astype(np.float64) * GRID + mean).astype(np.float32)

        z_hat = (z_symbols.astype(np.float64) * GRID + self._z_mean).clip(-LIMIT, LIMIT)
        params = self.h_s(z_hat.astype(np.float32))
        y_hat = walk_steps(self.config, self.grids, self, params, coded)
        return y_hat * np.float32(1 / GRID)

    # Nets of the walk.

    def step(self, k: int, s: int, context: np.ndarray, y_hat: np.ndarray) -> np.ndarray:
        """ψ of step k > 0 of scale s."""
        shared = self._shared[s == len(self.schedule.scales) - 1]
        return self._steps[k - 1](context, y_hat, shared)

    def merge(self, s: int, context: np.ndarray) -> np.ndarray:
        """The context that enters scale s > 0."""
        return self._merges[s - 1](context)

    def fuse(self, s: int, psi: np.ndarray, context: np.ndarray) -> np.ndarray:
        """The context after a step of scale s, by attention."""
        return self._fusions[s](psi, context)


def _analysis(config: HpcmConfig, p: Parameters) -> exact.Sequence:
    """g_a: pixels (H, W, 3) in [0, 1] -> y (H/16, W/16, M)."""
    layers: list[floating.Layer] = []
    channels = (3, *config.widths, config.latent_channels)
    for i, depth in enumerate(config.analysis_depths):
        kernel = config.outer_kernel if i == 0 else 2
        layers.append(floating.Down(p, f"g_a.{i}.0", channels[i], channels[i + 1], kernel))
        layers += _blocks(config, p, f"g_a.{i}", 1, channels[i + 1], depth)
    return exact.Sequence(layers)


def _synthesis(config: HpcmConfig, p: Parameters) -> exact.Sequence:
    """g_s: ŷ (H/16, W/16, M) -> pixels (H, W, 3), not clamped."""
    layers: list[floating.Layer] = []
    channels = (3, *config.widths, config.latent_channels)
    for stage, level in enumerate((3, 2, 1, 0)):
        depth = config.synthesis_depths[level]
        layers += _blocks(config, p, f"g_s.{stage}", 0, channels[level + 1], depth)
        kernel = config.outer_kernel if level == 0 else 2
        name = f"g_s.{stage}.{depth}"
        layers.append(floating.Up(p, name, channels[level + 1], channels[level], kernel))
    return exact.Sequence(layers)


def _hyper_analysis(config: HpcmConfig, p: Parameters) -> exact.Sequence:
    """h_a: y (h, w, M) -> z (h/4, w/4, N), in floating point."""
    m, width, n = config.latent_channels, config.hyper_width, config.hyper_channels
    layers: list[floating.Layer] = []
    for stage, (inputs, outputs) in enumerate(((m, width), (width, n))):
        depth = config.hyper_depths[stage]
        layers += _blocks(config, p, f"h_a.{stage}", 0, inputs, depth)
        layers.append(floating.Down(p, f"h_a.{stage}.{depth}", inputs, outputs, 2))
    return exact.Sequence(layers)


def _hyper_synthesis(config: HpcmConfig, p: Parameters) -> exact.Sequence:
    """h_s: ẑ (h/4, w/4, N) -> (scale | mean) (h, w, 2M), exact."""
    m, width, n = config.latent_channels, config.hyper_width, config.hyper_channels
    layers = exact.Sequence()
    for stage, (inputs, outputs) in enumerate(((n, width), (width, 2 * m))):
        layers.append(exact.Up(p, f"h_s.{stage}.0", inputs, outputs))
        layers += [
            exact.PConvRB(
                p, f"h_s.{stage}.{1 + i}", outputs, config.partial_ratio, config.expansion
            )
            for i in range(config.hyper_depths[1 - stage])
        ]
    return layers


def _blocks(
    config: HpcmConfig, p: Parameters, stage: str, first: int, channels: int, count: int
) -> list[floating.Layer]:
    """So many blocks of a stage, the first of that number in it."""
    return [
        floating.PConvRB(
            p, f"{stage}.{first + i}", channels, config.partial_ratio, config.expansion
        )
        for i in range(count)
    ]
