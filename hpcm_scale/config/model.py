"""The configuration of a network."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hpcm_scale.config.strict import Count, Positive, StrictModel, parse
from hpcm_scale.errors import ConfigError

CHARM_SLICES = 10
"""Equal slices of the latent channels that a charm codes one after the other."""


def latent_multiple(architecture: str) -> int:
    """The divisor of latent channels: the schedule's 8 groups, and charm's slices."""
    return math.lcm(8, CHARM_SLICES) if architecture == "charm" else 8


class SharedNetConfig(StrictModel):
    """A shared context net: blocks at 3M channels, the step scale, blocks, 1×1 to 2M channels."""

    before: Count
    """DWConvRB(3M) before the step scale."""
    after: Count
    """DWConvRB(3M) between the step scale and the 1×1 convolution to 2M channels."""
    out: Count = 0
    """DWConvRB(2M) after that convolution."""


class PublishedComplexity(StrictModel):
    """The papers' printed figures of a variant, shown beside the counted ones."""

    parameters_m: float | None = None
    """Millions of parameters."""
    kmacs_per_pixel: float
    """Thousands of multiply-accumulates per pixel."""


class ModelConfig(StrictModel):
    """Fields of every network's configuration; each architecture adds its own."""

    name: str
    """Name of the model in reports and file names."""
    architecture: str
    """The kind of network; it decides which class the configuration is of."""
    latent_channels: Positive
    """M, channels of the latents y."""
    hyper_channels: Positive
    """N, channels of the hyper-latents z."""
    published: PublishedComplexity | None = None
    """The papers' figures for this variant; dropped by the width and depth multipliers."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """λ of each gain vector, increasing, of a network that codes at every rate between the first
    and the last; none for a network of one rate."""

    @model_validator(mode="after")
    def _rates_rise(self) -> Self:
        if len(self.rates) == 1 or list(self.rates) != sorted(set(self.rates)):
            raise ValueError(f"rates: {list(self.rates)} must be none, or two or more, increasing")
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network with its channels times `width` and its block counts times `depth`.

        Raises:
            ConfigError: if a multiplier leaves parts that do not fit.
        """
        raise ConfigError(f"model: {self.architecture} has no width and depth multipliers")

    def _scaled(self, width: float, depth: float, changes: dict[str, Any]) -> Self:
        """This configuration under its scaled name, with `changes`."""
        name = f"{self.name}-w{width:g}" + (f"-d{depth:g}" if depth != 1.0 else "")
        values = self.model_dump() | {"published": None, "name": name} | changes
        return parse(type(self), values, f"{self.name} at width {width:g}, depth {depth:g}")


def scaled_channels(count: int, width: float, multiple: int) -> int:
    """`count` channels times `width`, rounded to a multiple of `multiple`, at least that."""
    return max(multiple, round(count * width / multiple) * multiple)


def scaled_blocks(count: int, depth: float) -> int:
    """`count` blocks times `depth`: at least 1 where there is any."""
    return max(1, round(count * depth)) if count else 0


def fitting_heads(width: int, size: float) -> int:
    """The number of attention heads that divides `width` channels into heads nearest to `size`."""
    counts = [count for count in range(1, width + 1) if width % count == 0]
    return min(counts, key=lambda count: abs(width / count - size))


class HpcmConfig(ModelConfig):
    """One network of the HPCM family. The defaults are HPCM-Base (arXiv 2507.19125)."""

    name: str = "base"
    architecture: Literal["hpcm", "charm", "dcvc-dc-intra"] = "hpcm"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The context model: HPCM, or one of the papers' two baselines on the same transforms."""
    latent_channels: Positive = 320
    """M, channels of the latents y; a multiple of 8, the schedule's groups (of 40 in charm)."""
    hyper_channels: Positive = 256
    widths: tuple[Positive, Positive, Positive] = (96, 192, 384)
    """Channels of the transforms at 1/2, 1/4 and 1/8 of the image side."""
    outer_kernel: Literal[2, 4] = 4
    """Kernel of the outermost down- and up-sampling."""
    partial_ratio: Positive = 4
    """r: a PConvRB convolves the first 1/r of its channels."""
    expansion: Positive = 4
    """m: hidden channels of a PConvRB over its channels."""
    analysis_depths: tuple[Count, Count, Count, Count] = (2, 2, 4, 0)
    """PConvRBs of g_a at each of the three widths and at M."""
    synthesis_depths: tuple[Count, Count, Count, Count] = (2, 2, 4, 0)
    """PConvRBs of g_s at each of the three widths and at M."""
    hyper_width: Positive = 256
    """Channels between the two resamplings of h_a and h_s."""
    hyper_depths: tuple[Count, Count] = (1, 3)
    """PConvRBs of h_a and h_s beside y (M channels in h_a, 2M in h_s) and at the hyper width."""
    schedule: str = "2-3-6"
    """Coding steps in each of the three scales."""
    hierarchical: bool = True
    """Each scale on its own grid; False runs every step's nets on the full grid (ablation)."""
    hyper_alignment: Literal["aligned", "official"] = "aligned"
    """Hyper-parameters entering S2: each position's own, or misplaced as published."""
    adaptor_depths: tuple[Count, Count, Count] = (0, 0, 0)
    """DWConvRB(3M) in each step adaptor of S1, S2, S3; 0 is one 1×1 convolution."""
    shared_s12: SharedNetConfig = SharedNetConfig(before=2, after=1)
    """The net that S1 and S2 share."""
    shared_s3: SharedNetConfig = SharedNetConfig(before=3, after=2)
    """The net of S3."""
    context_channels: Positive | None = None
    """Channels of the step adaptors and shared nets; the papers' 3M if not given. Fewer keep the
    context model small beside many latent channels."""
    fusion: Literal["attention", "psi", "none"] = "attention"
    """The context after a step: windowed cross-attention, ψ itself, or unchanged (ablation)."""
    heads: Positive = 32
    """Attention heads over the 2M context channels."""
    windows: tuple[Positive, Positive, Positive] = (4, 8, 8)
    """Side of the attention windows in S1, S2, S3, in positions of the grid they run on."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.latent_channels % 8:
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of 8 "
                "(the schedule codes M channels in 8 groups)"
            )
        if self.latent_channels % latent_multiple(self.architecture):
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of "
                f"{latent_multiple(self.architecture)} (charm codes {CHARM_SLICES} slices)"
            )
        if self.architecture != "hpcm":
            # A run would be recorded as what it is not.
            for name in (
                "schedule",
                "hierarchical",
                "hyper_alignment",
                "fusion",
                "context_channels",
            ):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: only of hpcm, architecture is {self.architecture}")
        elif self.context_channels and any(self.adaptor_depths):
            raise ValueError("context_channels: goes with adaptor_depths of 0, which are 1×1")
        elif self.fusion == "attention" and (2 * self.latent_channels) % self.heads:
            raise ValueError(
                f"heads: {self.heads} does not divide 2M = {2 * self.latent_channels}, "
                "the channels of the context"
            )
        for width in (*self.widths, self.latent_channels, self.hyper_width):
            if width < self.partial_ratio:
                raise ValueError(
                    f"partial_ratio: {self.partial_ratio} is above the {width} channels of a layer"
                )
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper. Rules, each from the family itself or the field:

        - All channel counts grow in proportion, as Base -> 1B roughly does (96..384 -> 192..768):
          the network keeps its shape, so one multiplier gives one family (arXiv 2001.08361,
          section 2.1).
        - Latent channels are rounded to 8, the schedule's channel groups (to 40 in charm, whose
          slices are a tenth of them); other channels to the partial convolution's ratio, so that
          its share stays exact.
        - Heads keep their size and follow the width in number (as in arXiv 2203.15556, table A9).
        - Block counts grow in proportion and never fall below 1 where the variant has any.
        """
        m = scaled_channels(self.latent_channels, width, latent_multiple(self.architecture))
        head_size = 2 * self.latent_channels / self.heads

        def channels(count: int) -> int:
            return scaled_channels(count, width, self.partial_ratio)

        def blocks(counts: tuple[int, ...]) -> list[int]:
            return [scaled_blocks(count, depth) for count in counts]

        def net(shape: SharedNetConfig) -> dict[str, int]:
            return {part: scaled_blocks(n, depth) for part, n in shape.model_dump().items()}

        return self._scaled(
            width,
            depth,
            {
                "latent_channels": m,
                "hyper_channels": channels(self.hyper_channels),
                "hyper_width": channels(self.hyper_width),
                "widths": [channels(count) for count in self.widths],
                "context_channels": self.context_channels and channels(self.context_channels),
                "heads": min(
                    (heads for heads in range(1, 2 * m + 1) if 2 * m % heads == 0),
                    key=lambda heads: abs(2 * m / heads - head_size),
                ),
                "analysis_depths": blocks(self.analysis_depths),
                "synthesis_depths": blocks(self.synthesis_depths),
                "hyper_depths": blocks(self.hyper_depths),
                "adaptor_depths": blocks(self.adaptor_depths),
                "shared_s12": net(self.shared_s12),
                "shared_s3": net(self.shared_s3),
            },
        )
