"""Figures of a study: matplotlib without a display, each as PNG and SVG."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from hpcm_scale.plotting import save_figure, style
from hpcm_scale.scaling.data_selection import sizes_of
from hpcm_scale.scaling.fit_results import (
    Family,
    FittedLaw,
    Law,
    Prediction,
    Settings,
    UnfittedLaw,
)
from hpcm_scale.scaling.isoflop import IsoFlop
from hpcm_scale.scaling.power_law import Interval
from hpcm_scale.scaling.rate_law import RateLaw

INK, LAW, HUBER, HELD_OUT = "#1b3a5c", "#c0392b", "#2e7d32", "#e08e0b"
METRIC_LABELS = {
    "loss": "Validation loss (bpp + λ · distortion)",
    "bpp": "Rate (bits per pixel)",
    "mse": "MSE (pixels on [0, 1])",
}
SIZE_LABELS = {
    "total": "Parameters N",
    "transform": "Parameters of the transforms, N",
    "hyper": "Parameters of the hyper-prior, N",
    "context": "Parameters of the context model, N",
}
FLOPS_LABEL, IMAGES_LABEL = "Training compute C (counted FLOPs)", "Training crops seen, D"


def figures_of(family: Family, settings: Settings) -> Iterator[tuple[str, Figure]]:
    """(file name, figure) of everything the family's runs can show."""
    for metric, law in family.size_laws.items():
        yield f"{metric}-against-size", loss_against_size(law, family.label, settings)
    law = family.size_laws["loss"]
    if isinstance(law, FittedLaw):
        yield "residuals", residuals(law, family.label, settings)
        if law.extrapolation is not None:
            figure = extrapolation(law, law.extrapolation, family.label, settings)
            yield "extrapolation", figure
    if isinstance(family.along_rates, RateLaw):
        yield "loss-along-lambda", loss_along_lambda(family.along_rates, family.label, settings)
    yield "loss-against-compute", loss_against_compute(family, settings)
    yield "loss-against-images", loss_against_images(family, settings)
    if family.isoflop is not None:
        yield "isoflop", isoflop(family.isoflop, family.label, settings)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write folder/name.png and .svg.

    Raises:
        OSError: if the folder cannot be written.
    """
    # Laid out once for both files: it costs as much as drawing them.
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    return save_figure(figure, folder / name)


def _figure(title: str, panels: int = 1, width: float = 7.2) -> tuple[Figure, list[Axes]]:
    with style():
        figure = Figure(figsize=(width, 4.6), layout="constrained")
        axes = list(np.atleast_1d(figure.subplots(1, panels)))
        axes[0].set_title(title, loc="left")
    return figure, axes


def _log_x(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    low, high = axes.get_xlim()
    if high / low > 30:
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(3, 0.5)))


def _number(value: float) -> str:
    if 1e-2 <= abs(value) < 1e5 or value == 0:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}\\times 10^{{{int(exponent)}}}"


def _formula(parameters: dict[str, float], variable: str) -> str:
    a, exponent = _number(parameters["A"]), f"{parameters['alpha']:.3g}"
    return f"${_number(parameters['E'])} + {a}\\,{variable}^{{-{exponent}}}$"


def _curve(axes: Axes, law: FittedLaw, grid: np.ndarray, variable: str, settings: Settings) -> None:
    """A law of one variable, its interval band, and the Huber fit dashed."""
    ends = np.array([law.fit.predict(float(v))[1].ends for v in grid])
    label = f"{settings.confidence:.0%} interval of the law"
    if law.fit.degrees_of_freedom <= 0:
        label += f"\n(assuming seed noise of {law.fit.assumed_noise:.1%})"
    axes.fill_between(grid, ends[:, 0], ends[:, 1], color=LAW, alpha=0.18, lw=0, label=label)
    axes.plot(
        grid,
        law.fit.law(grid),
        color=LAW,
        label=f"least squares: {_formula(law.fit.law.parameters, variable)}",
    )
    if law.huber is not None:
        axes.plot(
            grid,
            law.huber.law(grid),
            color=HUBER,
            ls=(0, (4, 3)),
            label=f"Huber: {_formula(law.huber.law.parameters, variable)}",
        )


def _errorbar(axes: Axes, prediction: Prediction, label: str) -> None:
    low, high = prediction.interval.ends
    axes.errorbar(
        [prediction.size],
        [prediction.value],
        yerr=[[prediction.value - low], [high - prediction.value]],
        fmt="D",
        ms=5,
        mfc="white",
        color=HELD_OUT,
        capsize=4,
        label=label,
        zorder=4,
    )


def _refused(axes: Axes, reason: str, width: int = 95) -> None:
    """Under the title, where it hides no point."""
    text = textwrap.fill(f"no law: {reason}", width)
    axes.set_title(f"{axes.get_title(loc='left')}\n{text}", loc="left", fontsize=9, color=LAW)


def loss_against_size(law: Law, title: str, settings: Settings) -> Figure:
    """Runs, both fits, interval band, and the largest size predicted from the others."""
    figure, (axes,) = _figure(title)
    if law.design is not None:
        n, y = law.design.x[0], law.design.metric(law.metric)
        if isinstance(law, FittedLaw):
            grid = np.geomspace(n.min() / 1.25, n.max() * 1.6, 60)
            _curve(axes, law, grid, "N", settings)
        axes.plot(n, y, "o", color=INK, ms=6, label=f"runs ({n.size})", zorder=3)
    if isinstance(law, UnfittedLaw):
        _refused(axes, law.refusal)
    elif law.held_out is not None:
        _errorbar(axes, law.held_out, "largest size, predicted from the others")
    _log_x(axes, SIZE_LABELS[settings.size])
    axes.set_ylabel(METRIC_LABELS[law.metric])
    axes.legend(fontsize=9, frameon=False)
    return figure


def residuals(law: FittedLaw, title: str, settings: Settings) -> Figure:
    """Relative residual of each run about the least-squares law, against size."""
    figure, (axes,) = _figure(f"{title}: residuals of L(N)")
    axes.axhline(0, color=LAW, lw=1)
    noise = law.fit.noise or 0.0
    if law.fit.degrees_of_freedom > 0:
        axes.axhspan(-100 * noise, 100 * noise, color=LAW, alpha=0.12, lw=0, label="± s")
    axes.plot(law.design.x[0], 100 * law.fit.residuals, "o", color=INK, label="runs")
    reach = 115 * max(np.abs(law.fit.residuals).max(), noise)
    axes.set_ylim(-reach, reach)
    _log_x(axes, SIZE_LABELS[settings.size])
    axes.set_ylabel("Loss above the law (%)")
    axes.legend(fontsize=9, frameon=False)
    return figure


def extrapolation(law: FittedLaw, target: Prediction, title: str, settings: Settings) -> Figure:
    """The law out to the target size, with its band."""
    figure, (axes,) = _figure(f"{title}: extrapolation of L(N)")
    n = law.design.x[0]
    _curve(axes, law, np.geomspace(n.min() / 1.25, target.size * 1.5, 80), "N", settings)
    axes.plot(n, law.y, "o", color=INK, ms=5, label=f"runs ({n.size})", zorder=3)
    _errorbar(axes, target, f"target: {target.value:.4g} at N = {target.size:.3g}")
    axes.axvspan(n.min(), n.max(), color=INK, alpha=0.06, lw=0, label="sizes that were run")
    _log_x(axes, SIZE_LABELS[settings.size])
    axes.set_ylabel(METRIC_LABELS[law.metric])
    axes.legend(fontsize=9, frameon=False)
    return figure


def _curves(
    figure: Figure, axes: Axes, family: Family, field: str, settings: Settings
) -> tuple[ListedColormap, LogNorm]:
    """Every run's validation curve against `field`, coloured by size, and the colour's scale."""
    n = sizes_of(family.runs, settings.size)
    norm = LogNorm(n.min() * 0.999, n.max() * 1.001)
    # The lightest end of the map would vanish on white.
    colours = ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1, 256)))
    for run, size in zip(family.runs, n, strict=True):
        axes.plot(run.curve[field], run.curve["loss"], lw=1, alpha=0.7, color=colours(norm(size)))
    scale = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.01)
    scale.set_label(SIZE_LABELS[settings.size])
    return colours, norm


def _loss_limits(axes: Axes, family: Family) -> None:
    """Show from a little before losses settle: the first steps would flatten all the rest."""
    ends = np.array([run.curve["loss"][-1] for run in family.runs])
    early = [np.interp(0.05, run.curve["crops"] / run.curve["crops"][-1], run.curve["loss"])
             for run in family.runs]  # fmt: skip
    low, high = ends.min(), max(early)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.1 * (high - low))


def loss_against_compute(family: Family, settings: Settings) -> Figure:
    """Every run's curve against FLOPs, the frontier's points, and L(C) through them."""
    figure, (axes,) = _figure(f"{family.label}: compute frontier")
    law = family.frontier
    _curves(figure, axes, family, "flops", settings)
    if law.design is not None:
        c, y = law.design.x[0], law.design.metric(law.metric)
        if isinstance(law, FittedLaw):
            _curve(axes, law, np.geomspace(c.min() / 1.5, c.max() * 3, 40), "C", settings)
        axes.plot(c, y, "o", color=INK, ms=4, label="frontier", zorder=3)
    _loss_limits(axes, family)
    if isinstance(law, UnfittedLaw):
        _refused(axes, law.refusal)
    _log_x(axes, FLOPS_LABEL)
    axes.set_ylabel(METRIC_LABELS["loss"])
    if law.design is not None:
        axes.legend(fontsize=9, frameon=False)
    return figure


def loss_against_images(family: Family, settings: Settings) -> Figure:
    """Every run's curve against images, and L(N, D) at each size dashed."""
    figure, (axes,) = _figure(f"{family.label}: loss against images")
    law = family.surface
    colours, norm = _curves(figure, axes, family, "crops", settings)
    if isinstance(law, FittedLaw):
        d = np.geomspace(law.design.x[1].min(), law.design.x[1].max(), 60)
        for i, size in enumerate(np.unique(law.design.x[0])):
            label = "L(N, D), least squares" if i == 0 else None
            axes.plot(d, law.fit.law(size, d), "--", lw=1.6, color=colours(norm(size)), label=label)
    if law.design is not None:
        d, y = law.design.x[1], law.design.metric(law.metric)
        axes.plot(d, y, "o", ms=3, color=INK, label="points fitted", zorder=3)
    _loss_limits(axes, family)
    if isinstance(law, UnfittedLaw):
        _refused(axes, law.refusal)
    _log_x(axes, IMAGES_LABEL)
    axes.set_ylabel(METRIC_LABELS["loss"])
    axes.legend(fontsize=9, frameon=False)
    return figure


def loss_along_lambda(found: RateLaw, title: str, settings: Settings) -> Figure:
    """Loss against size at every λ, and against λ at every size, with the law along λ."""
    figure, (left, right) = _figure(f"{title}: loss along λ", panels=2, width=10.5)
    law, sizes = found.law, np.unique(found.n)
    grid = np.geomspace(sizes[0] / 1.25, sizes[-1] * 1.6, 60)
    colours = colormaps["plasma"](np.linspace(0.05, 0.85, len(law.lambdas)))
    shown = zip(law.lambdas, found.loss, law.at_rates(grid), colours, strict=True)
    for lmbda, losses, values, colour in shown:
        left.plot(found.n, losses, "o", ms=4, color=colour, label=f"{lmbda:g}")
        left.plot(grid, values, color=colour, lw=1)
    left.legend(title="λ", fontsize=8, title_fontsize=8, frameon=False)
    between = np.geomspace(law.lambdas[0], law.lambdas[-1], 60)
    colours = colormaps["viridis_r"](np.linspace(0.12, 1, len(sizes)))
    for size, colour in zip(sizes, colours, strict=True):
        measured = found.loss[:, found.n == size].mean(axis=1)
        right.plot(law.lambdas, measured, "o", ms=4, color=colour, label=f"{size:.2g}")
        right.plot(between, [law(size, lmbda) for lmbda in between], color=colour, lw=1)
    right.legend(title="N", fontsize=8, title_fontsize=8, frameon=False)
    for axes in (left, right):
        axes.set_yscale("log")
    _log_x(left, SIZE_LABELS[settings.size])
    _log_x(right, "λ")
    left.set_ylabel(METRIC_LABELS["loss"])
    return figure


def isoflop(view: IsoFlop, title: str, settings: Settings) -> Figure:
    """Loss against size at equal FLOPs, and the best size against FLOPs."""
    figure, (left, right) = _figure(f"{title}: isoFLOP", panels=2, width=10.5)
    flops = np.array([s.flops for s in view.slices])
    colours = matplotlib.colormaps["plasma"](np.linspace(0.05, 0.85, len(flops)))
    for piece, colour in zip(view.slices, colours, strict=True):
        left.plot(piece.sizes, piece.losses, "o", ms=4, color=colour, label=f"{piece.flops:.2g}")
        n = np.geomspace(piece.sizes.min(), piece.sizes.max(), 60)
        v = np.log(n) - np.log(piece.sizes).mean()
        left.plot(n, np.polynomial.polynomial.polyval(v, piece.parabola), color=colour, lw=1)
        if piece.optimum is not None:
            right.plot([piece.flops], [piece.optimum], "o", color=colour)
    left.legend(title="FLOPs", fontsize=8, title_fontsize=8, frameon=False)
    _log_x(left, SIZE_LABELS[settings.size])
    left.set_ylabel(METRIC_LABELS["loss"])
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel(FLOPS_LABEL)
    right.set_ylabel("Size of least loss")
    best = [(s.flops, s.optimum) for s in view.slices if s.optimum is not None]
    if view.exponent is not None and view.interval is not None:
        c, n = np.log(np.array(best)).T
        low, high = view.interval.ends
        line = np.exp(n.mean() + view.exponent * (c - c.mean()))
        right.plot(
            np.exp(c),
            line,
            color=LAW,
            label=f"$N \\propto C^{{{view.exponent:.2f}}}$ ({low:.2f} … {high:.2f})",
        )
        right.legend(fontsize=9, frameon=False)
    else:
        _refused(right, view.refusal or "too few slices", 60)
    return figure


def laws_side_by_side(
    laws: Sequence[tuple[str, FittedLaw]],
    name: str,
    settings: Settings,
    crossings: Sequence[tuple[float, Interval]] = (),
) -> Figure:
    """Runs and least-squares law of each family, with its interval band.

    Args:
        crossings: where curves cross and the interval of that, shaded as far as the runs reach.
    """
    figure, (axes,) = _figure(f"{name} by family" if len(laws) > 1 else f"{laws[0][0]}: {name}")
    colours = colormaps["viridis"](np.linspace(0.05, 0.8, len(laws)))
    for (label, law), colour in zip(laws, colours, strict=True):
        x = law.design.x[0]
        grid = np.geomspace(x.min() / 1.25, x.max() * 1.6, 60)
        predicted = [law.fit.predict(float(value)) for value in grid]
        low, high = np.array([interval.ends for _, interval in predicted]).T
        value = np.array([value for value, _ in predicted])
        axes.plot(grid, value, color=colour, lw=1.5)
        axes.fill_between(
            grid, np.maximum(low, 0), np.minimum(high, 10 * value.max()),
            color=colour, alpha=0.15, lw=0,
        )  # fmt: skip
        axes.plot(x, law.y, "o", color=colour, ms=4, label=f"{label} ({x.size})")
    every = np.concatenate([law.y for _, law in laws])
    axes.set_ylim(0.95 * every.min(), 1.05 * every.max())
    first, last = axes.get_xlim()
    for at, interval in crossings:
        low, high = np.clip(interval.ends, first, last)
        axes.axvspan(low, high, color="0.5", alpha=0.15, lw=0)
        if first < at < last:
            axes.axvline(at, color="0.4", lw=1, ls="--", label=f"cross at {_number(at)}")
    axes.set_xlim(first, last)
    _log_x(axes, SIZE_LABELS[settings.size] if name == "L(N)" else "Training compute C (FLOPs)")
    axes.set_ylabel("Loss")
    axes.legend(fontsize=9, frameon=False)
    return figure
