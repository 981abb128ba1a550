"""Histories of runs: tables with a row a step, as trackers export them, reduced to a row a run."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from hpcm_scale.errors import RunError, printable
from hpcm_scale.runs.cells import number_of, plain_name

STEPS = ("step", "globalstep", "trainerglobalstep", "iteration", "iter")
"""Names of columns of steps, letters and digits in lower case. Not `steps`: how long runs
were is a column of finished runs."""
NAMES = ("runid", "runname", "run", "name", "id")
"""Names of columns of runs; the first found is taken."""
Row = dict[str, Any]


def row_a_run(
    rows: Sequence[Row], found: Mapping[str, str], source: str, step: float | None
) -> tuple[Sequence[Row], str]:
    """The rows of a table of finished runs as they are, or of each run of a history its last.

    A table is a history if it has a column of steps and a run occurs at several; without a column
    of runs it is one run's if its steps rise from row to row. A run's row is the last that has a
    loss; what that row lacks, such as a number of parameters logged once, comes from the rows of
    the run before it.

    Args:
        found: the column of each part, "loss" among them.
        source: path of the table; a run without a name is called by it.
        step: rows of later steps are left out.

    Returns:
        The rows, and what their reader should know; "" of a table of finished runs.

    Raises:
        RunError: if `step` is given, and the table is no history or has no loss up to it.
    """
    names = {plain_name(name): name for row in rows for name in row}
    at = next((names[name] for name in STEPS if name in names), None)
    by = next((names[name] for name in NAMES if name in names), None)
    runs: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        number = None if at is None else number_of(row.get(at))
        if number is not None and math.isfinite(number):
            name = source if by is None else str(row.get(by))
            runs.setdefault(name, []).append((number, row))
    if not _is_history(list(runs.values()), by is not None):
        if step is not None:
            raise RunError(f"--step: {source} has no rows of several steps of a run")
        return rows, ""
    kept = []
    for name, history in runs.items():
        last = _last(history, found["loss"], step)
        if last is not None:
            kept.append(last if by is not None else last | {"name": name})
    upto = "" if step is None else f" up to step {step:g}"
    loss = printable(found["loss"])
    if not kept:
        raise RunError(f"{source}: is a history without {loss!r}{upto}")
    said = (
        f"{source}: a history, {len(rows)} rows of {len(runs)} "
        f"run{'' if len(runs) == 1 else 's'}: of each counts the last row with {loss!r}{upto}"
    )
    return kept, said + (f"; {len(runs) - len(kept)} have none" if len(kept) < len(runs) else "")


def _is_history(runs: Sequence[Sequence[tuple[float, Row]]], named: bool) -> bool:
    """Whether rows, with their steps by run, are several of a run."""
    if named:
        return any(len({number for number, _ in history}) > 1 for history in runs)
    return any(
        len(history) > 1 and all(a < b for (a, _), (b, _) in pairwise(history)) for history in runs
    )


def _last(history: Sequence[tuple[float, Row]], loss: str, step: float | None) -> Row | None:
    """The last row with a loss, with what it lacks from the rows before; None if there is none."""
    known: Row = {}
    found = None
    for number, row in sorted(history, key=lambda entry: entry[0]):
        if step is not None and number > step:
            break
        known |= {name: value for name, value in row.items() if _is_filled(value)}
        value = number_of(row.get(loss))
        if value is not None and math.isfinite(value):
            found = dict(known)
    return found


def _is_filled(value: object) -> bool:
    """Whether a cell holds something: neither empty nor a number that is none."""
    return value not in (None, "") and not (isinstance(value, float) and math.isnan(value))
