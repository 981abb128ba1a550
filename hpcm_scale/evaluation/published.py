"""Measurements of others: the papers' table, and R-D points in files of common formats."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpcm_scale.config.strict import read_yaml
from hpcm_scale.errors import DataError
from hpcm_scale.evaluation.curves import Curve
from hpcm_scale.evaluation.metrics import decibels

DATASETS = {"kodak": "Kodak", "clic_pro_valid": "CLIC Pro Valid", "tecnick": "Tecnick"}
"""The papers' three, by column and by name."""


@dataclass(frozen=True)
class System:
    """A row of the papers' table; None where nothing is printed."""

    model: str
    venue: str
    encode_ms: float | None
    decode_ms: float | None
    kmacs_per_pixel: float
    parameters_m: float
    bd_rate: dict[str, float | None]
    """Percent of PSNR against VTM-22.0, by `DATASETS`."""
    variant: str | None
    """Name in configs/models, where it is built here."""


@cache
def _published() -> dict[str, Any]:
    return read_yaml(Path(__file__).parent / "published.yaml")


def systems() -> list[System]:
    """The papers' table, in its order."""
    published = _published()
    rows = [dict(zip(published["columns"], row, strict=True)) for row in published["systems"]]
    return [
        System(
            bd_rate={name: row.pop(name) for name in DATASETS},
            variant=published["built"].get(row["model"]),
            **row,
        )
        for row in rows
    ]


def ablations() -> dict[str, float]:
    """BD-rate in percent against Base on Kodak, by variant of configs/models."""
    return _published()["ablations"]


def read_points(source: str) -> list[Curve]:
    """R-D curves from a file: CompressAI's result JSON, or the HPCM authors' points.

    Args:
        source: FILE, or FILE:DATASET where a file has several data sets.

    Raises:
        DataError: if it is missing, of neither format or has no such data set.
    """
    path, _, dataset = source.partition(":")
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"--points: {path} cannot be read ({error})") from None
    try:
        if "results" in values:
            found = {values["name"]: _compressai(values["results"])}
        elif not dataset:
            held = sorted({name for sets in values["models"].values() for name in sets})
            raise DataError(f"--points: {path}: name one of its data sets, {path}:{held[0]} say")
        else:
            found = {name: sets[dataset] for name, sets in values["models"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"--points: {path}: has no {error} where R-D points would be") from None
    return [Curve.of_points(f"{name} (published)", quality) for name, quality in found.items()]


def _compressai(
    results: dict[str, list[float]],
) -> dict[str, tuple[list[float], list[float | None]]]:
    """Rates and qualities by metric."""
    quality = results.get("psnr-rgb") or results["psnr"]
    found: dict[str, tuple[list[float], list[float | None]]] = {
        "psnr": (results["bpp"], list(quality))
    }
    if similarity := results.get("ms-ssim-rgb"):
        found["ms_ssim_db"] = (results["bpp"], [decibels(x) for x in similarity])
    return found
