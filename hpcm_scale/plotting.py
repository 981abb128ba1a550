"""The style of every figure, and saving one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hpcm_scale.files import atomic_path

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    # The same study gives the same bytes.
    "svg.hashsalt": "hpcm-scale",
}
"""matplotlib settings."""


def style() -> AbstractContextManager[None]:
    """A context in which figures are made and saved in this style."""
    from matplotlib import rc_context  # here: the terminal does not wait for it

    return rc_context(STYLE)


def save_figure(
    figure: Any, target: Path, suffixes: Sequence[str] = (".png", ".svg")
) -> list[Path]:
    """Write a matplotlib figure as `target` with each suffix; returns the paths.

    Raises:
        OSError: if a file cannot be written.
    """
    paths = []
    for suffix in suffixes:
        path = target.with_name(target.name + suffix)
        # Without the date, the same data gives the same bytes.
        metadata = {"Date": None} if suffix == ".svg" else None
        with atomic_path(path) as temporary, style():
            figure.savefig(temporary, dpi=150, metadata=metadata)
        paths.append(path)
    return paths
