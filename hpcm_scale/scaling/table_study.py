"""Laws of runs that come as tables: what a table has decides which laws can be fitted."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hpcm_scale.runs.run_table import RunTable
from hpcm_scale.scaling.approach_two import Displacement, displacement
from hpcm_scale.scaling.comparison import compare
from hpcm_scale.scaling.data_selection import Design
from hpcm_scale.scaling.fit_results import Comparison, FittedLaw, Law, Settings
from hpcm_scale.scaling.hold_outs import HoldOut, hold_outs
from hpcm_scale.scaling.isoflop import Cost
from hpcm_scale.scaling.outliers import reweighted
from hpcm_scale.scaling.power_law import NotFittable
from hpcm_scale.scaling.study import fit_design
from hpcm_scale.scaling.sweeps import Tuned, tuned
from hpcm_scale.scaling.three_term import ThreeTermLaw, fit_three_terms

DESIGNS = ((4.0, 1.0), (16.0, 1.0), (16.0, 4.0))
"""Reach and drift of the sizes for which Approach 2 is looked at."""


@dataclass
class TableFamily:
    """One family of runs and its laws."""

    table: RunTable
    laws: list[Law]
    hold_outs: dict[str, list[HoldOut]] = field(default_factory=dict)
    """Hold-outs by law."""
    cautions: list[str] = field(default_factory=list)
    displacements: list[Displacement] = field(default_factory=list)
    """Errors of Approach 2 if the law L(N, D) were true, on budgets as these runs had."""
    batches: ThreeTermLaw | str | None = None
    """The law of size, steps and batch, or why there is none; None where batches do not differ."""

    @property
    def fitted(self) -> list[FittedLaw]:
        """Laws that were fitted."""
        return [law for law in self.laws if isinstance(law, FittedLaw)]


@dataclass(frozen=True)
class TableStudy:
    """Everything `hpcm-scale fit` shows of tables."""

    settings: Settings
    families: list[TableFamily]
    comparisons: list[Comparison]
    notes: list[str]


def table_study(
    tables: Sequence[RunTable], notes: Sequence[str], settings: Settings, flops_per: float | None
) -> TableStudy:
    """Fit every law that the tables can carry.

    Args:
        notes: how they were read.
        flops_per: where a table has C and N but not D, D is C / (flops_per · N); None: it is left.
    """
    notes = list(notes)
    families = []
    for table in tables:
        if table.d is None and table.n is not None and table.c is not None and flops_per:
            d = table.c / (flops_per * table.n)
            table = replace(table, d=d)
            notes.append(f"{table.label}: D is taken to be C / ({flops_per:g} N)")
        families.append(_family(table, settings))
    comparisons = []
    for name in ("L(N)", "L(C)"):
        group = [(f.table.label, law) for f in families for law in f.fitted if law.name == name]
        if len(group) > 1:
            comparisons.append(compare(name, group, settings))
    return TableStudy(settings, families, comparisons, notes)


def tuned_table(table: RunTable) -> Tuned:
    """The best run of each sweep of learning rates; all where the table has no rates."""
    if table.lr is None:
        return Tuned(np.arange(len(table)), frozenset(), [])
    parts = [x for x in (table.n, table.d, table.c, table.batch) if x is not None]
    _, sweep = np.unique(np.stack(parts), axis=1, return_inverse=True)
    return tuned(sweep.reshape(-1), table.lr, table.loss, table.names)


def _family(given: RunTable, settings: Settings) -> TableFamily:
    kept, edges, about_rates = tuned_table(given)
    whole = given.kept(kept)
    table = whole
    laws: list[Law] = []
    n, d, c = table.n, table.d, table.c
    if n is not None and d is not None and len(np.unique(d)) >= 3:
        laws.append(_law("L(N, D)", table, [n, d], settings, ("size", "amount of data"), []))
    elif n is not None:
        said = []
        if d is not None and d.max() > 1.02 * d.min():
            said = [
                f"runs saw {d.min():.4g} or {d.max():.4g} {table.unit}: L(N) mixes the effect of "
                "size with that of training"
            ]
        laws.append(_law("L(N)", table, [n], settings, ("size",), said))
    if c is not None:
        lead = _frontier(c, table.loss)
        said = []
        if n is not None and len(lead) < len(c):
            said = [f"L(C) takes the {len(lead)} runs that no run of fewer FLOPs betters"]
            c, table = c[lead], table.kept(lead)
        laws.append(_law("L(C)", table, [c], settings, ("FLOP count",), said))
    family = TableFamily(whole, laws, cautions=about_rates)
    for law in family.fitted:
        family.hold_outs[law.name] = hold_outs(law.fit)
        if law.name == "L(N, D)" and whole.c is not None:
            family.displacements = _displacements(law, whole.c)
        law.cautions += reweighted(law, edges)
    if n is not None and d is not None and whole.batch is not None and np.ptp(whole.batch) > 0:
        try:
            family.batches = fit_three_terms(
                n, d / whole.batch, whole.batch, whole.loss, confidence=settings.confidence
            )
        except NotFittable as error:
            family.batches = str(error)
    if whole.differing:
        family.cautions.append(
            f"the runs differ in {', '.join(whole.differing)}: no law is of one of these; "
            "--group fits each apart"
        )
    return family


def _law(
    name: str,
    table: RunTable,
    x: Sequence[np.ndarray],
    settings: Settings,
    what: Sequence[str],
    said: list[str],
) -> Law:
    """The law of a table's losses against `x`, which has a value for each of its runs."""
    design = Design(np.stack(x), {"loss": table.loss}, np.arange(len(table)), table.names, said)
    return fit_design(name, "loss", design, settings, what)


def _frontier(c: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Numbers of the runs that no run of fewer or equal FLOPs betters."""
    order = np.lexsort((loss, c))
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return np.sort(order[loss[order] < before])


def _displacements(law: FittedLaw, c: np.ndarray) -> list[Displacement]:
    """Errors of Approach 2 if a law L(N, D) were true, within the budgets of its runs."""
    n, d = law.fit.points.x
    power, factor = np.polyfit(np.log(n), np.log(c / d), 1)
    cost = Cost(float(np.exp(factor)), float(power), 0.0)
    return [
        displacement(law.fit.law, cost, float(c.min()), float(c.max()), reach, drift)
        for reach, drift in DESIGNS
    ]
