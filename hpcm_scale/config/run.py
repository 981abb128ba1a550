"""The configuration of a training run."""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hpcm_scale.config.data import DataConfig
from hpcm_scale.config.strict import Count, Positive, StrictModel, parse, read_changed


class ModelChoice(StrictModel):
    """The network of a run: a variant, its width and depth multipliers, single fields over both."""

    variant: str = "base"
    """A name in configs/models, or the path of such a file."""
    width: float = Field(default=1.0, gt=0)
    """Multiplies every channel count of the variant."""
    depth: float = Field(default=1.0, gt=0)
    """Multiplies the number of residual blocks of every part that has any."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of ModelConfig set after the multipliers, such as `fusion: psi`."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """λ of the gain vectors of a network that codes at every rate from the first to the last. A run
    that starts from a model file of one rate gets them too; gains are 1 at that file's λ."""


class LossConfig(StrictModel):
    """The rate-distortion objective."""

    distortion: Literal["mse", "ms-ssim"] = "mse"
    """mse: λ·255²·MSE + bpp, MSE of values in [0, 1]. ms-ssim: λ·(1 − MS-SSIM) + bpp."""
    lmbda: float = Field(default=0.013, gt=0)
    """λ of distortion + rate. The papers train .0018 .0035 .0067 .013 .025 .0483 for mse and
    2.4 4.58 8.73 16.64 31.73 60.5 for ms-ssim. A network of many rates has its own instead."""
    rate_balance: float = Field(default=0.5, ge=0, le=1)
    """Of a network of many rates: each crop's objective counts λ^-rate_balance. At 0.5 the
    gradients of all rates are of a size: at high rate errors shrink as 1/√λ, and λ weights them."""


class OptimizerConfig(StrictModel):
    """Adam, its learning rate over the run, and the average of its weights."""

    renamed: ClassVar = {"clip": "grad_clip_norm", "final": "final_lr_fraction"}

    type: Literal["adam", "adamw"] = "adam"
    """adamw decouples the weight decay from the gradient; without weight decay they are one."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate. 1e-4 is the papers' for Base; narrow models stay stable at 1e-3."""
    auxiliary_lr: float = Field(default=1e-3, gt=0)
    """Learning rate, constant, of the quantiles of z in the networks of others: they have a loss of
    their own (CompressAI's 1e-3)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """Decay of Adam's running mean and variance of the gradient."""
    weight_decay: float = Field(default=0, ge=0)
    """Weight decay of every parameter; the papers use none."""
    grad_clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all parameters (the papers' 1.0)."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """After the warm-up. constant: then a linear decay to 0 over the last `decay_fraction`, so that
    runs of several lengths share all but their ends (arXiv 2405.18392). step: multiplied by
    `factors` past `milestones`. cosine: half a cosine down to `final_lr_fraction` of the peak."""
    decay_fraction: float = Field(default=0.25, ge=0, le=1)
    """constant: the last part of the run, over which the learning rate falls linearly to 0."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.8, 0.9, 0.95)
    """step: shares of the run after which the rate changes (the papers': 1.6, 1.8, 1.9 of 2 M)."""
    factors: tuple[Annotated[float, Field(gt=0)], ...] = (0.2, 0.05, 0.01)
    """step: the share of the peak from each milestone on (the papers' 2e-5, 5e-6, 1e-6)."""
    final_lr_fraction: float = Field(default=0.01, ge=0, le=1)
    """cosine: the share of the peak that the run ends at."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that keep their weights, such as [g_a, h_a]: modules by dotted name.
    They take time and optimizer state like the others."""
    lr_factors: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """What the learning rate of parts is of the run's, such as {g_a: 0.1}; of nested parts the
    innermost decides."""
    parametrization: Literal["standard", "mup"] = "standard"
    """standard: one learning rate and torch's initial weights at every width. mup: both follow each
    layer's fan-in, so that the `lr` found at `base_width` serves every width (maximal update
    parametrization, arXiv 2203.03466); weight decay a step stays what it is at that width."""
    base_width: float | None = Field(default=None, gt=0)
    """mup: the width multiplier at which it is the standard parametrization, where `lr` was found.
    In a ladder `rate.reference` unless given."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay a step of an exponential moving average of the weights, which validation and export
    then use; none is kept if not given. Early steps decay faster: min(ema, (1+t)/(10+t))."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.milestones) != len(self.factors):
            raise ValueError(
                f"milestones: {len(self.milestones)} of them, but {len(self.factors)} factors"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: {list(self.milestones)} must be increasing")
        if self.weight_decay and self.type == "adam":
            raise ValueError(f"weight_decay: {self.weight_decay} needs type adamw")
        if (self.parametrization == "mup") != (self.base_width is not None):
            raise ValueError(
                "base_width: is missing; mup needs the width multiplier that lr was found for"
                if self.base_width is None
                else f"base_width: {self.base_width} needs parametrization mup"
            )
        return self


class CheckpointConfig(StrictModel):
    """When the state of a run is saved, and what of it is kept."""

    every: Positive = 1000
    """Steps between checkpoints; the last step is always saved. A crash costs half of this."""
    keep: Positive = 3
    """Newest checkpoints kept; older ones are deleted only once a newer one is complete."""
    keep_every: Positive | None = None
    """Steps whose multiples are kept for good beside the newest."""
    background: bool = True
    """Write from a copy in memory during training, where DeepSpeed can (not with offload)."""


class GuardConfig(StrictModel):
    """Faults that a run tolerates, and when it ends."""

    renamed: ClassVar = {"spike": "spike_factor"}

    max_skipped: Positive = 10
    """Steps skipped one after the other, for losses or gradients that are not finite, that end
    the run; its last good checkpoint stays."""
    spike_factor: float = Field(default=2.0, gt=1)
    """A loss above this many times its running average is recorded as a spike."""
    timeout: float = Field(default=600, gt=0)
    """Seconds a rank waits for another in one collective operation before it ends the job."""


class RunConfig(StrictModel):
    """One training run."""

    renamed: ClassVar = {"hours": "max_hours", "images": "crops"}

    name: str = Field(pattern=r"^[^/\x00]+$")
    """Name of the run; its folder is `out`/`name`."""
    out: Path = Path("runs")
    """Folder of run folders."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation, sample order, crops and quantisation noise."""
    model: ModelChoice = ModelChoice()
    """The network."""
    init: Path | None = None
    """A model file to start from, imported, exported or bundled (by its name). It brings its
    network: `model` is not looked at. λ, distortion and data may be others."""
    initial_weights: Literal["random", "principal_components"] = "random"
    """Where there is no `init`. principal_components: g_a and g_s begin as a block transform that
    keeps the leading components of crops of the training data; for HPCM, and short runs of narrow
    networks."""
    data: DataConfig
    """Training and validation data."""
    loss: LossConfig = LossConfig()
    """The objective."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its learning rate."""
    steps: Positive | None = None
    """Length of the run in optimizer steps. One of steps, crops and flops must be given."""
    crops: Positive | None = None
    """Length of the run in crops, rounded up to whole steps."""
    flops: float | None = Field(default=None, gt=0)
    """Length of the run in counted training FLOPs, rounded up to whole steps."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours of wall time after which the run saves and stops, to be resumed; the learning rate
    does not depend on it."""
    batch: Positive = 32
    """Crops of an optimizer step over all ranks."""
    micro_batch: Positive | None = None
    """Crops of one forward pass on one rank, all of the rank's if not given. Less saves memory."""
    deepspeed: str = "zero3"
    """A name in configs/deepspeed, or the path of such a file: how parameters, gradients and
    optimizer state are spread over ranks, memory and disks."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Arithmetic of the passes. auto is bf16 on GPUs, and on CPUs that have it (AVX512-BF16 or AMX)
    under ZeRO 1 to 3; else fp32. fp32 is so in every product; tf32 lets GPUs round the factors of
    products to 10 bits, for several times the speed. Master weights, rates and the optimizer are
    fp32. A run may go on with another."""
    checkpoint_activations: bool | Positive = True
    """Recompute activations in the backward pass instead of keeping them: of every transform stage
    and coding step (true), of none (false), or of every k-th."""
    compile: Literal["none", "blocks"] = "none"
    """blocks: each transform stage and coding step through torch.compile, under ZeRO-3 each
    residual block. On GPUs they replay as CUDA graphs under ZeRO 0 to 2, where a step is one pass
    and no activation is recomputed: for small micro-batches, whose time goes into launching
    operations. The first step takes minutes."""
    log_every: Positive = 10
    """Steps between rows of metrics."""
    validate_every: Positive = 1000
    """Steps between validations; the last step is always validated."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    guard: GuardConfig = GuardConfig()
    """Tolerated faults."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow", "jsonl"], ...] = (
        "tensorboard",
    )
    """Where rows of metrics go beside metrics.jsonl, which is always written and which `jsonl`
    names alone. trackio, wandb and mlflow stay offline unless their own variables say otherwise."""
    profile: tuple[Count, Positive] | None = None
    """First step and number of steps of a torch profiler trace, kept in the run's `profile/`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.loss.distortion == "ms-ssim" and self.data.crop <= 160:
            raise ValueError(
                f"data.crop: {self.data.crop} is too small for the five scales of MS-SSIM, which "
                "need more than 160"
            )
        if self.init is not None and self.initial_weights != "random":
            raise ValueError(
                f"initial_weights: {self.initial_weights} beside init, which brings its weights"
            )
        given = [name for name in ("steps", "crops", "flops") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"steps: give one of steps, crops and flops, not {' and '.join(given) or 'none'}"
            )
        return self

    def total_steps(self, flops_per_crop: float) -> int:
        """Optimizer steps of the whole run, for so many training FLOPs a crop."""
        if self.steps is not None:
            return self.steps
        crops = self.crops if self.crops is not None else (self.flops or 0) / flops_per_crop
        return max(1, math.ceil(crops / self.batch))

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
    return parse(RunConfig, read_changed(RunConfig, path, changes), str(path))
