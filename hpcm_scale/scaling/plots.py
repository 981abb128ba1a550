"""Figures of a study: matplotlib without a display, each as PNG and SVG."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from hpcm_scale.files import atomic_path
from hpcm_scale.scaling.study import FittedLaw, Settings

matplotlib.use("Agg")

STYLE = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    # The same study gives the same bytes.
    "svg.hashsalt": "hpcm-scale",
}
INK, LAW, HELD_OUT, TARGET = "#1b3a5c", "#c0392b", "#e08e0b", "#5b2c83"
METRIC_LABELS = {
    "loss": "Validation loss (bpp + λ·255²·MSE)",
    "bpp": "Rate (bits per pixel)",
    "mse": "MSE (pixels on [0, 1])",
}
SIZE_LABELS = {
    "total": "Parameters N",
    "transform": "Transform parameters N",
    "hyper": "Hyper-prior parameters N",
    "context": "Context-model parameters N",
}


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write folder/name.png and .svg.

    Raises:
        OSError: if the folder cannot be written.
    """
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with atomic_path(path) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, dpi=150, metadata=metadata)
    return paths


def _axes(width: float = 7, height: float = 4.6):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def formula(law: FittedLaw) -> str:
    """E + A N^-alpha with its numbers, as mathtext."""
    p = law.fit.law.parameters
    return f"${p['E']:.4g} + {_number(p['A'])}\\,N^{{-{p['alpha']:.3g}}}$"


def _number(value: float) -> str:
    if 1e-2 <= value < 1e5:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}\\times 10^{{{int(exponent)}}}"


def _band(law: FittedLaw, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends = [law.fit.predict(float(v))[1] for v in n]
    return np.array([i.low for i in ends]), np.array([i.high for i in ends])


def loss_against_size(law: FittedLaw, settings: Settings, title: str) -> Figure:
    """Points, law, interval band, held-out prediction of the largest size."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        n = law.x[0]
        if law.fit is not None:
            grid = np.geomspace(n.min() / 1.3, n.max() * 1.6, 60)
            low, high = _band(law, grid)
            axes.fill_between(
                grid, low, high, color=LAW, alpha=0.15, lw=0, label=_band_label(law, settings)
            )
            axes.plot(grid, law.fit.law(grid), color=LAW, label=formula(law))
        axes.plot(n, law.y, "o", color=INK, ms=6, label=f"runs ({n.size})", zorder=3)
        if law.held_out is not None:
            _prediction(axes, law.held_out, HELD_OUT, "largest size, predicted from the others")
        if law.refusal:
            axes.text(
                0.5, 0.97, f"no law: {law.refusal}", transform=axes.transAxes, ha="center",
                va="top", color=LAW, wrap=True,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel(SIZE_LABELS[settings.size])
        axes.set_ylabel(METRIC_LABELS[law.metric])
        axes.set_title(title, loc="left")
        axes.legend(frameon=False)
    return figure


def _band_label(law: FittedLaw, settings: Settings) -> str:
    label = f"{settings.confidence:.0%} interval of the law"
    if law.fit.degrees_of_freedom <= 0:
        label += f"\n(assuming seed noise of {law.fit.assumed_noise:.1%})"
    return label


def _prediction(axes, prediction, color: str, label: str) -> None:
    low, high = prediction.interval.low, prediction.interval.high
    error = [[prediction.value - low], [high - prediction.value]]
    axes.errorbar(
        [prediction.size], [prediction.value], yerr=error, fmt="D", ms=5, mfc="white",
        color=color, capsize=4, label=label, zorder=4,
    )  # fmt: skip
