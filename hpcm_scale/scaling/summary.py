"""A study on the terminal: the laws in a table, then every caution in words."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpcm_scale.scaling.laws import Interval
from hpcm_scale.scaling.study import Family, FittedLaw, Study


def figures(value: float) -> str:
    return f"{value:.4g}"


def span(interval: Interval) -> str:
    """[low, high], with words for an open end."""
    if interval.low is None and interval.high is None:
        return "not bounded"
    if interval.low is None:
        return f"below {figures(interval.high)}"
    if interval.high is None:
        return f"above {figures(interval.low)}"
    return f"{figures(interval.low)} … {figures(interval.high)}"


def summary(study: Study) -> Iterator[RenderableType]:
    """What `hpcm-scale fit` prints, piece by piece."""
    for note in study.notes:
        yield Text(note, style="yellow")
    for family in study.families:
        yield from _family(family, study)


def _family(family: Family, study: Study) -> Iterator[RenderableType]:
    seeds = len({run.seed for run in family.runs})
    sizes = len({run.parameters[study.settings.size] for run in family.runs})
    yield Text(
        f"{family.label}: {len(family.runs)} runs, {sizes} sizes, {seeds} seed"
        f"{'s' if seeds > 1 else ''}",
        style="bold",
    )
    table = Table("law", "parameter", "value", f"{study.settings.confidence:.0%} interval", "dof")
    for law in family.size_laws.values():
        if law.fit is not None:
            _rows(table, law)
    if table.rows:
        yield table
    said: dict[str, list[str]] = {}
    for law in family.size_laws.values():
        label = f"{law.metric}(N)"
        if law.refusal:
            yield Text(f"{label} refused: {law.refusal}", style="red")
        for caution in law.cautions:
            said.setdefault(caution, []).append(label)
        if law.held_out is not None:
            p = law.held_out
            yield Text(
                f"{label} held out: the {figures(p.size)} model predicted {figures(p.value)} "
                f"({span(p.interval)}), measured {figures(p.measured)}: "
                f"{p.value / p.measured - 1:+.2%}"
            )
        if law.extrapolation is not None:
            p = law.extrapolation
            yield Text(f"{label} at N = {figures(p.size)}: {figures(p.value)} ({span(p.interval)})")
    for caution, labels in said.items():
        yield Text(f"caution, {', '.join(labels)}: {caution}", style="yellow")


def _rows(table: Table, law: FittedLaw) -> None:
    fit = law.fit
    for i, (name, value) in enumerate(fit.law.parameters.items()):
        first = i == 0
        table.add_row(
            f"{law.metric} = E + A N^-alpha" if first else "",
            name,
            figures(value),
            span(fit.interval(name)),
            str(max(fit.degrees_of_freedom, 0)) if first else "",
            end_section=i == len(fit.law.parameters) - 1,
        )
