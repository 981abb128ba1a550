"""A study written down: law.json with every figure, plots, and report.html to read."""

import json
from pathlib import Path
from typing import Any

from hpcm_scale import __version__
from hpcm_scale.files import atomic_write
from hpcm_scale.scaling import plots
from hpcm_scale.scaling.study import Family, FittedLaw, Prediction, Study


def law_json(study: Study) -> dict[str, Any]:
    """The study as plain values; floats keep full precision, an open end of an interval is null."""
    return {
        "hpcm_scale": __version__,
        "settings": vars(study.settings),
        "families": [_family(f, study.settings.size) for f in study.families],
        "notes": study.notes,
    }


def _family(family: Family, size: str) -> dict[str, Any]:
    return {
        "label": family.label,
        "runs": [
            {
                "name": r.name,
                "seed": r.seed,
                "parameters": r.parameters,
                "git_commit": r.git_commit,
                "started": r.started,
                **r.final,
            }
            for r in family.runs
        ],
        "size_laws": {metric: _law(law) for metric, law in family.size_laws.items()},
    }


def _law(law: FittedLaw) -> dict[str, Any]:
    out: dict[str, Any] = {
        "law": law.name,
        "metric": law.metric,
        "x": law.x.tolist(),
        "y": law.y.tolist(),
        "refused": law.refusal,
        "cautions": law.cautions,
    }
    if law.fit is None:
        return out
    fit = law.fit
    return out | {
        "variable_projection": {
            "parameters": fit.law.parameters,
            "profile_intervals": {name: vars(fit.interval(name)) for name in fit.law.parameters},
            "relative_noise": fit.noise,
            "noise_is_assumed": fit.degrees_of_freedom <= 0,
            "degrees_of_freedom": fit.degrees_of_freedom,
            "sum_of_squared_relative_residuals": fit.sse,
        },
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
    """Write law.json and the figures into `folder`.

    Returns:
        The paths written, law.json first.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = folder / "law.json"
    atomic_write(path, json.dumps(law_json(study), indent=2, allow_nan=False) + "\n")
    written = [path]
    for i, family in enumerate(study.families):
        suffix = f"-{i + 1}" if len(study.families) > 1 else ""
        for metric, law in family.size_laws.items():
            figure = plots.loss_against_size(law, study.settings, family.label)
            written += plots.save(figure, folder, f"{metric}-against-size{suffix}")
    return written
