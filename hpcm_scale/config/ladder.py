"""The configuration of a ladder: runs of one family that a scaling law is fitted to."""

from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from hpcm_scale.config.run import RunConfig
from hpcm_scale.config.strict import (
    Count,
    Positive,
    StrictModel,
    current_key,
    parse,
    read_changed,
    set_dotted,
)
from hpcm_scale.errors import ConfigError

Above0 = Annotated[float, Field(gt=0)]

DECIDED = {
    "name": "sizes, lambdas, seeds and ablations",
    "out": "out",
    "seed": "seeds",
    "model": "variant and sizes",
    "steps": "crops or flops",
    "crops": "crops",
    "flops": "flops",
    "loss.lmbda": "lambdas",
    "optimizer.lr": "rate or a size's lr",
}
"""Fields of a run that `run` may not hold, and what of the ladder decides them."""
FIXED_IN_ABLATIONS = ("name", "out", "seed", "steps", "crops", "flops")


class SizeConfig(StrictModel):
    """One rung: a network, and settings of its own."""

    width: float = Field(gt=0)
    """Multiplies every channel count of the variant."""
    depth: float = Field(default=1.0, gt=0)
    """Multiplies the number of residual blocks of every part that has any."""
    seeds: tuple[Count, ...] | None = Field(default=None, min_length=1)
    """Seeds of this size; the ladder's if not given."""
    lr: float | None = Field(default=None, gt=0)
    """Its peak learning rate, instead of the rule's."""

    @property
    def label(self) -> str:
        """Name of this size in the names of runs."""
        return f"w{self.width:g}" + ("" if self.depth == 1 else f"-d{self.depth:g}")


class RateRule(StrictModel):
    """The peak learning rate of a size: lr · (by / reference)^exponent, at most `max_lr`.

    With `run.optimizer.parametrization: mup` it is `lr` at every width, the reference is the base.
    """

    renamed: ClassVar = {"at": "reference", "power": "exponent", "most": "max_lr"}

    by: Literal["width", "parameters"] = "width"
    """The quantity the exponent applies to: the width multiplier, or the number of parameters."""
    reference: float = Field(gt=0)
    """The value of `by` that `lr` was found for."""
    lr: float = Field(gt=0)
    """The learning rate there."""
    exponent: float | None = None
    """0 for one rate at all sizes; -1 with the width is that of arXiv 2203.03466 for hidden layers.
    Must be given, but not with mup, whose learning rates follow the width layer by layer."""
    max_lr: float | None = Field(default=None, gt=0)
    """No size gets more than this."""
    source: str = Field(min_length=1)
    """Source of rate and exponent: a paper, or a sweep and its outcome."""

    def rate(self, value: float) -> float:
        """The rate for a value of `by`, to three digits."""
        lr = self.lr * (value / self.reference) ** (self.exponent or 0.0)
        return float(f"{min(lr, self.max_lr or lr):.3g}")


class AblationsConfig(StrictModel):
    """Variants of one size that are compared at the ladder's longest length, seed by seed."""

    width: float = Field(gt=0)
    """The size's width: one of `sizes`."""
    depth: float = Field(default=1.0, gt=0)
    """The size's depth."""
    seeds: tuple[Count, ...] = Field(default=(1, 2, 3), min_length=1)
    """Seeds of every ablation; the unchanged size is trained with them too."""
    lmbda: float | None = Field(default=None, gt=0)
    """The λ they are compared at; the ladder's first if not given."""
    changes: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], dict[str, Any]] = Field(
        min_length=1
    )
    """Name of an ablation -> dotted field of the run -> value:
    `psi: {model.overrides.fusion: psi}`."""

    @field_validator("changes")
    @classmethod
    def _current(cls, changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        current: dict[str, dict[str, Any]] = {}
        for name, change in changes.items():
            keys = [current_key(RunConfig, key, f"ablation {name}") for key in change]
            if len(set(keys)) < len(keys):
                raise ValueError(f"{name}: gives a field by its old and its new name")
            current[name] = dict(zip(keys, change.values(), strict=True))
        return current


class LadderConfig(StrictModel):
    """Sizes × λ × seeds × lengths, and ablations beside them; each is one training run."""

    renamed: ClassVar = {"images": "crops", "arms": "ablations"}
    templates: ClassVar = {"run": RunConfig}

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the ladder, shown in a queue for example."""
    out: Path
    """Folder of the run folders; logs and measured costs go to `out`/ladder."""
    variant: str = "base"
    """The family: a name in configs/models, or the path of such a file."""
    sizes: tuple[SizeConfig, ...] = Field(min_length=1)
    """Its rungs."""
    lambdas: tuple[Above0, ...] = Field(default=(0.013,), min_length=1)
    """λ of distortion + rate."""
    seeds: tuple[Count, ...] = Field(default=(1,), min_length=1)
    """Seeds of the sizes that do not give their own."""
    crops: tuple[Positive, ...] | None = Field(default=None, min_length=1)
    """Lengths in crops. One of crops and flops must be given."""
    flops: tuple[Above0, ...] | None = Field(default=None, min_length=1)
    """Lengths in counted training FLOPs."""
    branch: bool = True
    """Train only the longest of several lengths from the start, where the learning rate is constant
    up to its decay: shorter ones resume from its checkpoint at which their decay begins (arXiv
    2405.18392)."""
    rate: RateRule | None = None
    """The learning rate of sizes that do not give theirs."""
    ablations: AblationsConfig | None = None
    """Variants of one size."""
    run: dict[str, Any]
    """All other fields of a run, as in configs/runs."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.crops is None) == (self.flops is None):
            given = "none" if self.crops is None else "both"
            raise ValueError(f"crops: give one of crops and flops, not {given}")
        self._differ("sizes", [size.label for size in self.sizes])
        for field in ("lambdas", "seeds", "crops", "flops"):
            self._differ(field, getattr(self, field) or ())
        for size in self.sizes:
            self._differ(f"sizes.{size.label}.seeds", size.seeds or ())
            if size.lr is None and self.rate is None:
                raise ValueError(f"rate: is missing, and size {size.label} has no lr of its own")
        if self.rate is not None:
            self._rate_fits(self.rate)
        for key, decided_by in DECIDED.items():
            section: Any = self.run
            for part in key.split("."):
                section = section.get(part) if isinstance(section, dict) else None
            if section is not None:
                raise ValueError(f"run.{key}: {section!r} is decided by the ladder's {decided_by}")
        if self.ablations:
            self._ablations_fit(self.ablations)
        return self

    def _rate_fits(self, rate: RateRule) -> None:
        optimizer = self.run.get("optimizer")
        mup = isinstance(optimizer, dict) and optimizer.get("parametrization") == "mup"
        if not mup and rate.exponent is None:
            raise ValueError(
                "rate.exponent: is required, unless run.optimizer.parametrization is mup"
            )
        if mup and rate.exponent:
            raise ValueError(
                f"rate.exponent: {rate.exponent:g} would come on top of mup, which has one "
                "learning rate for every width; leave it out"
            )
        if mup and rate.by != "width":
            raise ValueError(f"rate.by: {rate.by} says nothing of a width, which mup starts from")

    @staticmethod
    def _differ(field: str, values: Any) -> None:
        for value in values:
            if list(values).count(value) > 1:
                raise ValueError(f"{field}: {value} is there twice")

    def _ablations_fit(self, ablations: AblationsConfig) -> None:
        self._differ("ablations.seeds", ablations.seeds)
        if self.size_of_ablations is None:
            labels = ", ".join(size.label for size in self.sizes)
            wanted = SizeConfig(width=ablations.width, depth=ablations.depth).label
            raise ValueError(f"ablations.width: {wanted} is not one of the sizes {labels}")
        if ablations.lmbda is not None and ablations.lmbda not in self.lambdas:
            raise ValueError(f"ablations.lmbda: {ablations.lmbda} is not one of the lambdas")
        for name, changes in ablations.changes.items():
            for key in changes:
                if key in FIXED_IN_ABLATIONS:
                    raise ValueError(f"ablations.changes.{name}.{key}: ablations may not change it")

    @property
    def size_of_ablations(self) -> SizeConfig | None:
        """The size that the ablations are variants of."""
        ablations = self.ablations
        found = [
            s
            for s in self.sizes
            if ablations and (s.width, s.depth) == (ablations.width, ablations.depth)
        ]
        return found[0] if found else None

    def run_config(
        self,
        name: str,
        size: SizeConfig,
        *,
        lmbda: float,
        seed: int,
        lr: float,
        length: float,
        changes: dict[str, Any] | None = None,
    ) -> RunConfig:
        """One run of the ladder.

        Args:
            length: crops, or FLOPs where the ladder gives those.
            changes: an ablation's.

        Raises:
            ConfigError: naming the field of the run that is wrong.
        """
        values = deepcopy(self.run)
        source = f"{self.name}: run"
        ours = {
            "name": name,
            "out": str(self.out),
            "seed": seed,
            "model": {"variant": self.variant, "width": size.width, "depth": size.depth},
            "loss.lmbda": lmbda,
            "optimizer.lr": lr,
            "flops" if self.crops is None else "crops": length,
        }
        for key, value in (ours | (changes or {})).items():
            set_dotted(values, key, value, source)
        optimizer = values["optimizer"]
        if optimizer.get("parametrization") == "mup" and self.rate and self.rate.by == "width":
            optimizer.setdefault("base_width", self.rate.reference)
        return parse(RunConfig, values, source)


def load_ladder(path: Path | str, changes: list[str] | None = None) -> LadderConfig:
    """A ladder's configuration, its template of a run checked.

    Args:
        path: a YAML file.
        changes: `section.key=value` over it, values read as YAML.

    Raises:
        ConfigError: naming file, field, value and rule.
    """
    ladder = parse(LadderConfig, read_changed(LadderConfig, path, changes), str(path))
    ablations = ladder.ablations.changes if ladder.ablations else {}
    for name, change in ({"": {}} | ablations).items():
        try:
            ladder.run_config(
                name or "run", ladder.sizes[0], lmbda=1, seed=0, lr=1, length=1, changes=change
            )
        except ConfigError as error:
            where = f"{path}: ablation {name}: " if name else f"{path}: "
            raise ConfigError(where + str(error).removeprefix(f"{ladder.name}: ")) from None
    return ladder
