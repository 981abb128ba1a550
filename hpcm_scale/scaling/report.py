"""A study written down: law.json with every figure, plots, and report.html to read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcm_scale import __version__
from hpcm_scale.files import atomic_write
from hpcm_scale.scaling import html_report, plots
from hpcm_scale.scaling.fit_results import (
    Comparison,
    Family,
    Law,
    Prediction,
    Study,
    UnfittedLaw,
)
from hpcm_scale.scaling.hold_outs import HoldOut
from hpcm_scale.scaling.rate_law import RateLaw
from hpcm_scale.scaling.table_study import TableStudy
from hpcm_scale.scaling.three_term import NAMES, ThreeTermLaw


def law_json(study: Study) -> dict[str, Any]:
    """The study as plain values; floats keep full precision, an open end of an interval is null."""
    return {
        "hpcm_scale": __version__,
        "settings": vars(study.settings),
        "families": [_family(f) for f in study.families],
        "comparisons": _comparisons(study.comparisons),
        "across_lambdas": [
            vars(c) | {"interval": c.interval and vars(c.interval)} for c in study.curves
        ],
        "notes": study.notes,
    }


def _family(family: Family) -> dict[str, Any]:
    view = family.isoflop
    return {
        "label": family.label,
        "runs": [
            {
                "name": r.name,
                "seed": r.seed,
                "parameters": r.parameters,
                "train_flops_per_image": r.train_flops_per_crop,
                "git_commit": r.git_commit,
                "started": r.started,
                **r.final,
            }
            for r in family.runs
        ],
        "size_laws": {metric: _law(law) for metric, law in family.size_laws.items()},
        "at_rates": [_law(law) for law in family.at_rates],
        "along_rates": _along_rates(family.along_rates),
        "hold_outs": _hold_outs(family.hold_outs),
        "cautions": family.cautions,
        "frontier": _law(family.frontier),
        "surface": _law(family.surface),
        "isoflop": {"refused": family.isoflop_refusal}
        if view is None
        else {
            "exponent": view.exponent,
            "interval": view.interval and vars(view.interval),
            "refused": view.refusal,
            "cautions": view.cautions,
            "slices": [
                vars(s)
                | {
                    "sizes": s.sizes.tolist(),
                    "losses": s.losses.tolist(),
                    "parabola": s.parabola.tolist(),
                }
                for s in view.slices
            ],
        },
        "flops_per_image": family.cost and vars(family.cost),
        "compute_optimal": [
            vars(o)
            | {
                name: vars(getattr(o, name))
                for name in ("size_interval", "images_interval", "loss_interval")
            }
            for o in family.optima
        ],
    }


def _law(law: Law) -> dict[str, Any]:
    out: dict[str, Any] = {
        "law": law.label,
        "refused": law.refusal if isinstance(law, UnfittedLaw) else None,
        "cautions": law.cautions,
        "x": None if law.design is None else law.design.x.tolist(),
        "y": None if law.design is None else law.design.metric(law.metric).tolist(),
        "run": None if law.design is None else law.design.names,
    }
    if isinstance(law, UnfittedLaw):
        return out
    fit, confidence = law.fit, law.fit.confidence
    out["variable_projection"] = {
        "parameters": fit.law.parameters,
        "profile_intervals": {name: vars(fit.interval(name)) for name in fit.law.parameters},
        "relative_noise": fit.noise,
        "noise_is_assumed": fit.degrees_of_freedom <= 0,
        "degrees_of_freedom": fit.degrees_of_freedom,
        "sum_of_squared_relative_residuals": fit.sse,
    }
    if law.huber is not None:
        out["huber"] = vars(law.huber) | {
            "law": law.huber.law.parameters,
            "converged": law.huber.converged,
        }
    if law.bootstrap is not None:
        samples = {"variable_projection": law.bootstrap.projected, "huber": law.bootstrap.huber}
        out["bootstrap_of_runs"] = {
            "drawn": law.bootstrap.drawn,
            "degenerate": law.bootstrap.degenerate,
        } | {
            method: {
                name: vars(law.bootstrap.interval(values, name, confidence))
                | {"standard_error": law.bootstrap.standard_error(values, name)}
                for name in law.bootstrap.names
            }
            for method, values in samples.items()
        }
    return out | {
        "held_out": _prediction(law.held_out),
        "extrapolation": _prediction(law.extrapolation),
    }


def _prediction(prediction: Prediction | None) -> dict[str, Any] | None:
    if prediction is None:
        return None
    out = vars(prediction) | {"interval": vars(prediction.interval)}
    if prediction.measured is not None:
        out["relative_error"] = prediction.value / prediction.measured - 1
    return out


def write_report(study: Study, folder: Path) -> list[Path]:
    """Write law.json, the figures and report.html into `folder`.

    Returns:
        The paths written.

    Raises:
        OSError: if the folder cannot be written.
    """
    written = [folder / "law.json"]
    atomic_write(written[0], json.dumps(law_json(study), indent=2, allow_nan=False) + "\n")
    pictures: list[list[tuple[str, Path]]] = []
    for i, family in enumerate(study.families):
        suffix = f"-{i + 1}" if len(study.families) > 1 else ""
        pictures.append([])
        for name, figure in plots.figures_of(family, study.settings):
            paths = plots.save(figure, folder, name + suffix)
            written += paths
            pictures[-1].append((name, paths[0]))
    written.append(folder / "report.html")
    atomic_write(written[-1], html_report.render(study, pictures))
    return written


def table_json(study: TableStudy) -> dict[str, Any]:
    """The laws of tables as plain values, like `law_json`."""
    return {
        "hpcm_scale": __version__,
        "settings": vars(study.settings),
        "families": [
            {
                "label": family.table.label,
                "runs": len(family.table),
                "laws": [_law(law) for law in family.laws],
                "hold_outs": _hold_outs(family.hold_outs),
                "approach_2": [vars(found) for found in family.displacements],
                "size_steps_batch": _batches(family.batches),
                "cautions": family.cautions,
            }
            for family in study.families
        ],
        "comparisons": _comparisons(study.comparisons),
        "notes": study.notes,
    }


def _comparisons(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "law": comparison.law,
            "families": comparison.families,
            "common_exponent": comparison.common_exponent,
            "p_of_equal_exponents": comparison.p if comparison.p == comparison.p else None,
            "crossings": [
                {
                    "families": [first, second],
                    "at": at,
                    "interval": vars(interval),
                    "share_of_resamples": share,
                }
                for first, second, at, interval, share in comparison.crossings
            ],
        }
        for comparison in comparisons
    ]


def _hold_outs(by_law: Mapping[str, Sequence[HoldOut]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [vars(part) for part in parts] for name, parts in by_law.items()}


def _along_rates(law: RateLaw | str | None) -> dict[str, Any] | None:
    if law is None or isinstance(law, str):
        return None if law is None else {"refused": law}
    return {
        "lambdas": law.law.lambdas.tolist(),
        "floors": law.law.floors.tolist(),
        "amplitudes": law.law.amplitudes.tolist(),
        "reference_size": law.law.reference,
        "runs": {"sizes": law.n.tolist(), "losses": law.loss.tolist()},
        "relative_error": law.error,
        "p_of_equal_exponents": law.p_equal if law.left_out else None,
    } | {
        name: {"value": getattr(law.law, name), "interval": (i := law.interval(name)) and vars(i)}
        for name in ("exponent", "slope")
    }


def _batches(law: ThreeTermLaw | str | None) -> dict[str, Any] | None:
    if law is None or isinstance(law, str):
        return None if law is None else {"refused": law}
    return {
        "parameters": dict(zip(NAMES, law.parameters.tolist(), strict=True)),
        "intervals": {name: vars(law.interval(name)) for name in NAMES},
        "rms_relative_residual": law.error,
        "best_batch_exponent": law.batch_exponent()[0],
    }


def write_table_report(study: TableStudy, folder: Path) -> list[Path]:
    """Write law.json and a figure of every law of one variable into `folder`.

    Returns:
        The paths written.

    Raises:
        OSError: if the folder cannot be written.
    """
    written = [folder / "law.json"]
    atomic_write(written[0], json.dumps(table_json(study), indent=2, allow_nan=False) + "\n")
    for name, file in (("L(N)", "loss-against-size"), ("L(C)", "loss-against-compute")):
        laws = [
            (family.table.label, law)
            for family in study.families
            for law in family.fitted
            if law.name == name
        ]
        if laws:
            crossings = [
                (at, interval)
                for comparison in study.comparisons
                if comparison.law == name
                for _, _, at, interval, _ in comparison.crossings
            ]
            figure = plots.laws_side_by_side(laws, name, study.settings, crossings)
            written += plots.save(figure, folder, file)
    return written
