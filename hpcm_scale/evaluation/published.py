"""Measurements of others: the papers' table, and R-D points in files of common formats."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpcm_scale.config.strict import read_yaml
from hpcm_scale.errors import DataError, one_line, printable
from hpcm_scale.evaluation.curves import METRICS, Curve
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
        DataError: if it is missing, damaged, of neither format or has no such data set.
    """
    path, dataset = source, ""
    if not Path(source).is_file():
        path, _, dataset = source.rpartition(":") if ":" in source else (source, "", "")
    try:
        values = json.loads(Path(path).read_text())
    except OSError as error:
        raise DataError(f"--points: {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"--points: {path} cannot be read ({one_line(error)[:200]})") from None
    try:
        if "results" in values:
            found = {str(values["name"]): _compressai(values["results"])}
        elif not dataset:
            held = sorted({str(name) for sets in values["models"].values() for name in sets})
            raise DataError(f"--points: {path}: name one of its data sets, {path}:{held[0]} say")
        else:
            found = {str(name): sets[dataset] for name, sets in values["models"].items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"--points: {path}: has no {one_line(error)[:200]} where R-D points would be"
        ) from None
    if not found:
        raise DataError(f"--points: {path}: has no models")
    return [
        Curve.of_points(f"{printable(name)} (published)", _checked(points, f"{path}: {name}"))
        for name, points in found.items()
    ]


def _compressai(results: dict[str, Any]) -> dict[str, Any]:
    """Rates and qualities by metric."""
    found = {"psnr": (results["bpp"], results.get("psnr-rgb") or results["psnr"])}
    if similarity := results.get("ms-ssim-rgb"):
        found["ms_ssim_db"] = (results["bpp"], [decibels(x) for x in _numbers(similarity)])
    return found


def _checked(points: Any, where: str) -> dict[str, tuple[list[float], list[float]]]:
    """Rates and qualities by metric, each as many finite numbers as the other.

    Raises:
        DataError: naming `where`, if they are anything else, or none at all.
    """
    found = {}
    for metric, pair in points.items() if isinstance(points, dict) else ():
        if metric not in METRICS:
            continue
        lists = [_numbers(values) for values in pair] if isinstance(pair, list | tuple) else []
        if len(lists) != 2 or not lists[0] or len(lists[0]) != len(lists[1]):
            raise DataError(
                f"--points: {printable(where)}: {metric}: is not a list of rates and one of as "
                "many qualities, all finite numbers"
            )
        found[metric] = (lists[0], lists[1])
    if not found:
        raise DataError(f"--points: {printable(where)}: has no points of {', '.join(METRICS)}")
    return found


def _numbers(values: Any) -> list[float]:
    """A list of finite numbers; empty if it is anything else."""
    if not isinstance(values, list):
        return []
    are_numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    try:
        numbers = [float(value) for value in values] if are_numbers else []
    except OverflowError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
