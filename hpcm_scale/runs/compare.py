"""Whether two runs took the same steps: their rows of metrics, bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_scale.errors import RunError
from hpcm_scale.runs.metrics_log import MetricsLog

TIMED = frozenset(
    {"seconds", "crops_per_second", "flops_per_second", "peak_fraction", "data_wait", "memory"}
)
"""Figures that say how fast a step was, not what it computed."""


@dataclass(frozen=True)
class RunDifference:
    """The first row that is not the same."""

    kind: str
    step: int
    field: str
    values: tuple[Any, Any]


def compare_runs(first: Path, second: Path) -> tuple[int, RunDifference | None]:
    """Rows that both runs have, and the first of them that differs; None if none does.

    Raises:
        RunError: if a run has no rows, or they have none in common.
    """
    rows = [_by_place(folder) for folder in (first, second)]
    shared = [place for place in rows[0] if place in rows[1]]
    if not shared:
        raise RunError(f"{first}, {second}: have no rows of metrics in common")
    for place in shared:
        one, other = (found[place] for found in rows)
        for field in sorted((one.keys() | other.keys()) - TIMED):
            if one.get(field) != other.get(field):
                values = (one.get(field), other.get(field))
                return len(shared), RunDifference(*place, field, values)
    return len(shared), None


def _by_place(folder: Path) -> Mapping[tuple[str, int], dict[str, Any]]:
    """The last row of each kind after each step."""
    log = MetricsLog(folder)
    log.update()
    if not log.rows:
        raise RunError(f"{log.path}: has no rows")
    return {(row["kind"], row["step"]): row for row in log.rows}
