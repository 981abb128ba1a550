"""Results of a study: plain records, filled by study.py and shown by the report."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hpcm_scale.runs.records import Run, SizePart
from hpcm_scale.scaling.bootstrap import Bootstrap
from hpcm_scale.scaling.data_selection import Design
from hpcm_scale.scaling.hold_outs import HoldOut
from hpcm_scale.scaling.huber import HuberFit
from hpcm_scale.scaling.isoflop import Cost, IsoFlop, Optimum
from hpcm_scale.scaling.laws import Fit
from hpcm_scale.scaling.power_law import Interval
from hpcm_scale.scaling.rate_law import RateLaw

Metric = Literal["loss", "bpp", "mse"]
METRICS: tuple[Metric, ...] = ("loss", "bpp", "mse")


@dataclass(frozen=True)
class Settings:
    """Settings of a study."""

    size: SizePart = "total"
    """Which parameters N counts."""
    target_size: float = 1e10
    """N to extrapolate to."""
    budget: float | None = None
    """Training FLOPs to spend best; None: 1, 10 and 100 times those of the largest run."""
    confidence: float = 0.95
    """Level of every interval."""
    seed_noise: float = 0.01
    """Relative standard deviation of a loss between seeds, assumed where the runs cannot tell."""
    draws: int = 1000
    """Bootstrap resamples of the runs."""


@dataclass(frozen=True)
class Prediction:
    """A loss somewhere no fitted point is."""

    size: float
    value: float
    interval: Interval
    """Closed at both ends."""
    measured: float | None = None
    """The mean loss found there, when there was a run."""


@dataclass
class UnfittedLaw:
    """One law of one metric that the runs cannot carry."""

    name: str
    """L(N), L(C) or L(N, D), L standing for the metric."""
    metric: Metric
    refusal: str
    """Why."""
    design: Design | None = None
    """The points there are, where there are any."""
    cautions: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Name of the law, with its metric."""
        return self.name.replace("L", self.metric, 1)


@dataclass
class FittedLaw:
    """One law of one metric."""

    name: str
    """L(N), L(C) or L(N, D), L standing for the metric."""
    metric: Metric
    design: Design
    fit: Fit
    huber: HuberFit | None = None
    bootstrap: Bootstrap | None = None
    cautions: list[str] = field(default_factory=list)
    held_out: Prediction | None = None
    extrapolation: Prediction | None = None

    @property
    def label(self) -> str:
        """Name of the law, with its metric."""
        return self.name.replace("L", self.metric, 1)

    @property
    def y(self) -> np.ndarray:
        """(n,) the metric at the design's points."""
        return self.design.metric(self.metric)


Law = FittedLaw | UnfittedLaw


@dataclass
class Family:
    """Runs whose losses can be compared, and their laws."""

    label: str
    runs: list[Run]
    size_laws: dict[Metric, Law]
    frontier: Law
    surface: Law
    isoflop: IsoFlop | None
    isoflop_refusal: str | None
    cost: Cost | None
    optima: list[Optimum]
    hold_outs: dict[str, list[HoldOut]]
    """Hold-outs by law."""
    at_rates: list[Law]
    """The law of size at each λ of networks that code at every rate."""
    along_rates: RateLaw | str | None
    """All of these in one, or why not; None for networks of one rate."""
    cautions: list[str]
    """About the runs themselves."""

    @property
    def laws(self) -> list[Law]:
        """All of the family's laws."""
        return [*self.size_laws.values(), *self.at_rates, self.frontier, self.surface]

    @property
    def fitted(self) -> list[FittedLaw]:
        """Those that were fitted."""
        return [law for law in self.laws if isinstance(law, FittedLaw)]


@dataclass(frozen=True)
class CurvePrediction:
    """An R-D curve from the bpp and MSE laws of several λ, against the largest size measured."""

    label: str
    lambdas: list[float]
    anchor_size: float
    """The largest N that every λ was trained at."""
    target_size: float
    bpp: list[float]
    """Predicted at the target, one for each λ."""
    psnr: list[float]
    """dB, of the predicted MSE."""
    bd_rate: float | None
    """Percent against the anchor's measured curve."""
    interval: Interval | None
    """Percentiles over resampled runs, each λ resampled on its own."""
    refusal: str | None


@dataclass(frozen=True)
class Comparison:
    """Two or more families by one law of one variable."""

    law: str
    families: list[str]
    common_exponent: float
    p: float
    """The p value of the F test of equal exponents: small where they differ."""
    crossings: list[tuple[str, str, float, Interval, float]]
    """Two families, where their curves cross, its interval, and the share of resamples that do."""


@dataclass
class Study:
    """Everything a report shows."""

    settings: Settings
    families: list[Family]
    curves: list[CurvePrediction]
    """Extrapolated R-D curves, where several λ were trained."""
    comparisons: list[Comparison]
    """Comparisons of the families of one λ, where there are several."""
    notes: list[str]
    """Faults that the reader of the records tolerated, and runs it left out."""
