"""A study on the terminal: the laws in a table, then what they predict, then every caution."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpcm_scale.scaling import report_text
from hpcm_scale.scaling.fit_results import (
    Comparison,
    Family,
    FittedLaw,
    Settings,
    Study,
    UnfittedLaw,
)
from hpcm_scale.scaling.hold_outs import HoldOut
from hpcm_scale.scaling.table_study import TableFamily, TableStudy
from hpcm_scale.scaling.three_term import NAMES


def summary(study: Study) -> Iterator[RenderableType]:
    """Output of `hpcm-scale fit`, piece by piece."""
    for note in study.notes:
        yield Text(note, style="yellow")
    for family in study.families:
        yield from _family(family, study)
    yield from _compared(study.comparisons)
    for line in report_text.across_lambdas(study.curves):
        yield Text(line)


def _compared(comparisons: Sequence[Comparison]) -> Iterator[RenderableType]:
    for line in report_text.compared(comparisons):
        yield Text(line)


def _laws(fitted: Sequence[FittedLaw], settings: Settings) -> Iterator[RenderableType]:
    table = Table(*report_text.ROW_HEADS)
    for law in fitted:
        for row in report_text.rows(law):
            table.add_row(*row)
        table.add_section()
    if table.rows:
        yield table
        yield Text(f"intervals at {settings.confidence:.0%}", style="dim")
    if note := report_text.foot(fitted):
        yield Text(note, style="dim")


def _family(family: Family, study: Study) -> Iterator[RenderableType]:
    yield Text(report_text.heading(family, study.settings), style="bold")
    yield from _laws(family.fitted, study.settings)
    yield from _hold_outs(family.hold_outs)
    for line in report_text.findings(family):
        yield Text(line)
    for line in report_text.refusals(family):
        yield Text(line, style="red")
    for line in report_text.gathered_cautions(family):
        yield Text.assemble(("caution, ", "yellow"), line)


def table_summary(study: TableStudy) -> Iterator[RenderableType]:
    """Output of `hpcm-scale fit` for tables, piece by piece."""
    for note in study.notes:
        yield Text(note, style="yellow")
    for family in study.families:
        runs = f"{len(family.table)} run{'' if len(family.table) == 1 else 's'}"
        yield Text(f"{family.table.label}: {runs}", style="bold")
        yield from _laws(family.fitted, study.settings)
        yield from _hold_outs(family.hold_outs)
        yield from _approach_two(family)
        yield from _batches(family)
        for law in family.laws:
            if isinstance(law, UnfittedLaw):
                yield Text(f"{law.label} refused: {law.refusal}", style="red")
        about = [(law.label, caution) for law in family.fitted for caution in law.cautions]
        for label, caution in [*about, *(("", caution) for caution in family.cautions)]:
            yield Text.assemble(("caution, ", "yellow"), f"{label}: " if label else "", caution)
    yield from _compared(study.comparisons)


def _hold_outs(by_law: Mapping[str, Sequence[HoldOut]]) -> Iterator[RenderableType]:
    table = Table(*report_text.HOLD_OUT_HEADS, title=report_text.HOLD_OUT_TITLE)
    for rows in report_text.hold_out_rows(by_law):
        for row in rows:
            table.add_row(*row)
        table.add_section()
    if table.rows:
        yield table


def _approach_two(family: TableFamily) -> Iterator[RenderableType]:
    if family.displacements:
        *still, moving = family.displacements
        sizes = ", ".join(f"{d.size - 1:+.1%} (sizes {d.reach:g}x either way)" for d in still)
        yield Text(
            f"Approach 2 on this law itself, without noise: N_opt {sizes}; its exponent "
            f"{moving.exponent:.3f} instead of {moving.exact:.3f} where the sizes' centres drift "
            f"by {moving.drift:g}x",
            style="dim",
        )


def _batches(family: TableFamily) -> Iterator[RenderableType]:
    law = family.batches
    if isinstance(law, str):
        yield Text(f"the law of size, steps and batch refused: {law}", style="red")
    elif law is not None:
        shown = (
            f"{name} {value:.4g} ({report_text.span(law.interval(name))})"
            for name, value in zip(NAMES, law.parameters, strict=True)
        )
        yield Text(f"loss = E + A N^-alpha + B steps^-beta + C batch^-gamma: {', '.join(shown)}")
        yield Text(f"rms of relative residuals {law.error:.2%}; intervals over resampled runs")
        exponent, sure = law.batch_exponent()
        line = f"the best batch grows as D^{exponent:.3f} ({report_text.span(sure)})"
        if family.table.d is not None:
            data = float(family.table.d.max())
            best, interval = law.best_batch(data)
            line += (
                f"; for {report_text.figures(data)} {family.table.unit}: "
                f"{report_text.figures(best)} ({report_text.span(interval)})"
            )
        yield Text(line)
