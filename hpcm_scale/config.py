"""The configuration of models and runs: strict pydantic models, YAML in, `--set key=value` over it.

The docstring under a field is its manual. A bad value raises ConfigError naming file, field,
value and rule.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpcm_scale.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class StrictModel(BaseModel):
    """Unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


CHARM_SLICES = 10
"""Equal slices of the latent channels that a charm codes one after the other."""


def latent_multiple(architecture: str) -> int:
    """What the latent channels must be a multiple of: the schedule's 8 groups, charm's slices."""
    return math.lcm(8, CHARM_SLICES) if architecture == "charm" else 8


T = TypeVar("T", bound=StrictModel)


class SharedNetConfig(StrictModel):
    """A shared context net: blocks at 3M channels, the step scale, blocks, 1×1 to 2M channels."""

    before: Count
    """DWConvRB(3M) before the step scale."""
    after: Count
    """DWConvRB(3M) between the step scale and the 1×1 convolution to 2M channels."""
    out: Count = 0
    """DWConvRB(2M) after that convolution."""


class PublishedComplexity(StrictModel):
    """What the papers print of a variant, to stand beside the count."""

    parameters_m: float | None = None
    """Millions of parameters."""
    kmacs_per_pixel: float
    """Thousands of multiply-accumulates per pixel."""


class ModelConfig(StrictModel):
    """One network of the HPCM family. The defaults are HPCM-Base (arXiv 2507.19125)."""

    name: str = "base"
    """What the model is called in reports and file names."""
    architecture: Literal["hpcm", "charm", "dcvc-dc-intra"] = "hpcm"
    """The context model: HPCM, or one of the papers' two baselines on the same transforms."""
    latent_channels: Positive = 320
    """M, channels of the latents y; a multiple of 8, the schedule's groups (of 40 in charm)."""
    hyper_channels: Positive = 256
    """N, channels of the hyper-latents z."""
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
    fusion: Literal["attention", "psi", "none"] = "attention"
    """The context after a step: windowed cross-attention, ψ itself, or unchanged (ablation)."""
    heads: Positive = 32
    """Attention heads over the 2M context channels."""
    windows: tuple[Positive, Positive, Positive] = (4, 8, 8)
    """Side of the attention windows in S1, S2, S3, in positions of the grid they run on."""
    published: PublishedComplexity | None = None
    """The papers' figures for this variant; dropped by the dials."""

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
            for name in ("schedule", "hierarchical", "hyper_alignment", "fusion"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: only of hpcm, architecture is {self.architecture}")
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


class DataConfig(StrictModel):
    """What a run is trained and validated on, and how samples are drawn."""

    train: str
    """Folder or URL (http, s3, gs, ...) of a packed dataset: what holds its manifest.json."""
    val: str | None = None
    """Validation images: another packed dataset, a plain folder of images, or the val split of
    `train` where this is not given."""
    crop: Positive = 256
    """Side of the square training crop, in pixels. No image of the split may be smaller."""
    flips: bool = True
    """Mirror half of the crops, left to right."""
    streams: Positive = 64
    """Canonical streams the order is made of. Ranks × workers must divide it; keep it for the
    whole life of a run, whatever machines it moves to: the order depends on it."""
    workers: Count = 2
    """Decoding processes of each rank; 0 decodes in the training process."""
    shuffle_buffer: Positive = 1024
    """Samples shuffled among each other on top of the shuffled shards; 1 reads shards in order."""
    cache: str = "~/.cache/hpcm_scale/shards"
    """Folder for the shards of a remote dataset, shared by the ranks of a host."""
    cache_gb: float = Field(100, gt=0)
    """Bound of that folder in 10^9 bytes; the shards unused for longest are deleted first."""
    max_bad_rate: float = Field(0.01, ge=0, le=1)
    """Share of undecodable samples past which the run stops; 0 stops at the first."""


def describe(error: ValidationError, source: str) -> str:
    """One line for a pydantic error: source, dotted field, value and rule."""
    parts = []
    for item in error.errors():
        field = ".".join(str(p) for p in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            parts.append(f"{field}: unknown key")
        elif not field or item["type"] == "value_error":
            parts.append(f"{field}.{message}" if field else message)
        elif item["type"] == "missing":
            parts.append(f"{field}: is required")
        else:
            parts.append(f"{field}: {item['input']!r}: {message[0].lower()}{message[1:]}")
    return f"{source}: " + "; ".join(parts)


def parse(kind: type[T], values: Any, source: str) -> T:
    """Validate `values` as `kind`.

    Raises:
        ConfigError: naming `source`, the field, the value and the rule it breaks.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected keys and values, found {type(values).__name__}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from None


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if the file cannot be read or is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level")
    return values


def configs_folder(kind: str) -> Path:
    """The folder configs/<kind>: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "configs" / kind
    return inside if inside.is_dir() else package.parent / "configs" / kind


class ModelChoice(StrictModel):
    """Which network a run trains: a variant, the dials that scale it, single fields over both."""

    variant: str = "base"
    """A name in configs/models, or the path of such a file."""
    width: float = Field(1.0, gt=0)
    """Multiplies every channel count of the variant."""
    depth: float = Field(1.0, gt=0)
    """Multiplies the number of residual blocks of every part that has any."""
    overrides: dict[str, Any] = {}
    """Fields of ModelConfig set after the dials, such as `fusion: psi`."""


class LossConfig(StrictModel):
    """The rate-distortion objective."""

    distortion: Literal["mse"] = "mse"
    """λ·255²·MSE + bpp, MSE of values in [0, 1]."""
    lmbda: float = Field(0.013, gt=0)
    """λ of distortion + rate. The papers train .0018 .0035 .0067 .013 .025 .0483."""


class OptimizerConfig(StrictModel):
    """Adam and its learning rate."""

    lr: float = Field(1e-4, gt=0)
    """Peak learning rate. 1e-4 is the papers' for Base; narrow models bear ten times as much."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's running mean and variance of the gradient."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay_fraction: float = Field(0.25, ge=0, le=1)
    """Last part of the run over which the learning rate falls linearly to 0."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient over all parameters (the papers' 1.0)."""


class RunConfig(StrictModel):
    """One training run."""

    name: str
    """What the run is called; its folder is `out`/`name`."""
    out: Path = Path("runs")
    """Folder of run folders."""
    seed: int = Field(0, ge=0)
    """Of initialisation, sample order, crops and quantisation noise."""
    model: ModelChoice = ModelChoice()
    """The network."""
    data: DataConfig
    """What it is trained on."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How."""
    steps: Positive
    """Optimizer steps."""
    batch: Positive = 32
    """Crops of an optimizer step over all ranks."""
    micro_batch: Positive | None = None
    """Crops of one forward pass on one rank, all of the rank's if not given. Less saves memory."""
    deepspeed: str = "zero3"
    """A name in configs/deepspeed: how parameters, gradients and optimizer state are spread."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the passes; auto is bf16 on GPUs and fp32 on CPUs. Master weights are fp32."""
    checkpoint_activations: bool = True
    """Recompute activations in the backward pass instead of keeping them."""
    log_every: Positive = 10
    """Steps between rows of metrics."""
    validate_every: Positive = 1000
    """Steps between validations; the last step is always validated."""
    save_every: Positive = 1000
    """Steps between checkpoints; the last step is always saved."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out / self.name


def load_run(path: Path | str, changes: list[str] | None = None) -> RunConfig:
    """A run's configuration.

    Args:
        path: a YAML file.
        changes: `section.key=value` over it, values read as YAML.

    Raises:
        ConfigError: naming file, field, value and rule.
    """
    values = read_yaml(path)
    for change in changes or []:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {change}: is not key=value")
        section = values
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--set {change}: {parent} is a value, not a section")
        try:
            section[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {change}: {error}") from None
    return parse(RunConfig, values, str(path))
