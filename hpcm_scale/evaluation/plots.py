"""R-D plots of an evaluation: quality against rate, every codec, as PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpcm_scale.evaluation.curves import METRICS, Curve
from hpcm_scale.plotting import save_figure, style

MEASURED = ("#1b3a5c", "#c0392b", "#2e7d32", "#e08e0b", "#7b4fa3", "#0f8b8d", "#8c564b", "#d81b60")
PUBLISHED = ("#555555", "#8a6d00", "#00695c", "#6d4c41", "#455a64", "#9e2a5c")
MARKERS = "osD^vP*X"
MARGIN = 1.6
"""Rates shown, in those of the learned codec: the others go on to where nothing compares."""


def plot(curves: Sequence[Curve], subject: str, folder: Path) -> list[Path]:
    """Write rd-psnr and rd-ms-ssim, as far as there is anything to show; their paths.

    Args:
        subject: what was evaluated, for the titles.

    Raises:
        OSError: if the folder cannot be written.
    """
    paths = []
    for metric, label in METRICS.items():
        shown = [(curve, *curve.of(metric)) for curve in curves]
        shown = [(curve, rates, values) for curve, rates, values in shown if len(rates)]
        if not shown:
            continue
        with style():
            figure = Figure(figsize=(7.2, 5), layout="constrained")
            axes = figure.subplots()
            counts = {True: 0, False: 0}
            for curve, rates, values in shown:
                k = counts[curve.published]
                counts[curve.published] += 1
                colours = PUBLISHED if curve.published else MEASURED
                learned = _learned(curve)
                axes.plot(
                    rates,
                    values,
                    label=_plain(curve.name),
                    color=colours[k % len(colours)],
                    marker=MARKERS[k % len(MARKERS)],
                    ms=5 if learned else 4,
                    lw=2.2 if learned else 1.3,
                    ls="--" if curve.published else "-",
                    zorder=3 if learned else 2,
                )
            _limit(axes, shown)
            axes.set_xlabel("Rate (bits per pixel, of whole files)")
            axes.set_ylabel(label)
            axes.set_title(_plain(subject), loc="left")
            axes.legend(loc="lower right", frameon=False)
            name = "rd-" + metric.removesuffix("_db").replace("_", "-")
            paths += save_figure(figure, folder / name)
    return paths


def _plain(name: str) -> str:
    """A name that matplotlib shows as it stands: no formulas, nothing hidden from the legend."""
    return f"\u200b{name}".replace("$", r"\$") if name.startswith("_") else name.replace("$", r"\$")


def _learned(curve: Curve) -> bool:
    return any("model" in point for point in curve.points)


def _limit(axes: Axes, shown: list[tuple]) -> None:
    """Show the rates around those of the learned codecs."""
    rates = [rate for curve, rates, _ in shown if _learned(curve) for rate in rates]
    if not rates:
        return
    high = MARGIN * max(rates)
    inside = [v for _, rates, values in shown for r, v in zip(rates, values, strict=True)
              if r <= high]  # fmt: skip
    axes.set_xlim(0, high)
    room = 0.05 * (max(inside) - min(inside)) + 0.1
    axes.set_ylim(min(inside) - room, max(inside) + room)
