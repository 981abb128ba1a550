"""A study on the terminal: the laws in a table, then what they predict, then every caution."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpcm_scale.scaling import report_text
from hpcm_scale.scaling.fit_results import Family, Study


def summary(study: Study) -> Iterator[RenderableType]:
    """Output of `hpcm-scale fit`, piece by piece."""
    for note in study.notes:
        yield Text(note, style="yellow")
    for family in study.families:
        yield from _family(family, study)
    for line in report_text.across_lambdas(study.curves):
        yield Text(line)


def _family(family: Family, study: Study) -> Iterator[RenderableType]:
    yield Text(report_text.heading(family, study.settings), style="bold")
    table = Table(*report_text.ROW_HEADS)
    for law in family.fitted:
        for row in report_text.rows(law):
            table.add_row(*row)
        table.add_section()
    if table.rows:
        yield table
        yield Text(f"intervals at {study.settings.confidence:.0%}", style="dim")
    if note := report_text.foot(family):
        yield Text(note, style="dim")
    for line in report_text.findings(family):
        yield Text(line)
    for line in report_text.refusals(family):
        yield Text(line, style="red")
    for line in report_text.gathered_cautions(family):
        yield Text.assemble(("caution, ", "yellow"), line)
