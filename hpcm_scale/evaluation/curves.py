"""Rate-distortion curves from an evaluation's rows, and how they compare."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from hpcm_scale import __version__
from hpcm_scale.errors import DataError, RunError
from hpcm_scale.evaluation.bd_rate import Method, bd_psnr, bd_rate
from hpcm_scale.evaluation.codecs import Setting
from hpcm_scale.evaluation.evaluate import ResultRow
from hpcm_scale.files import atomic_write

FORMAT = "hpcm_scale evaluation 1"
METRICS = {"psnr": "PSNR (dB)", "ms_ssim_db": "MS-SSIM (dB)"}
METHODS: tuple[Method, ...] = ("pchip", "akima", "cubic")
AVERAGED = (
    "bytes", "bpp", "psnr", "ms_ssim", "ms_ssim_db", "encode_seconds", "decode_seconds",
)  # fmt: skip
COLUMNS = (
    "curve", "setting", "image", "width", "height", "bytes", "bpp", "mse", "psnr", "ms_ssim",
    "ms_ssim_db", "encode_seconds", "decode_seconds", "peak_mib", "machine", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """The points of one codec, by rising rate."""

    name: str
    points: list[ResultRow] = field(default_factory=list)
    """Averages of each setting: "bpp", qualities by `METRICS`, and what else was measured."""
    published: bool = False
    """Read from a file, not measured in this evaluation."""

    @classmethod
    def of_points(
        cls, name: str, found: Mapping[str, tuple[Sequence[float], Sequence[float | None]]]
    ) -> Self:
        """A published curve: by metric, its rates and qualities.

        Rates of two metrics may differ: they are of models trained for each.
        """
        points = [
            {"bpp": rate, metric: quality}
            for metric, pair in found.items()
            for rate, quality in zip(*pair, strict=True)
        ]
        return cls(name, sorted(points, key=lambda point: point["bpp"]), published=True)

    def of(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Rates and qualities (n,) of the points that have this metric."""
        known = [point for point in self.points if point.get(metric) is not None]
        return (
            np.array([point["bpp"] for point in known]),
            np.array([point[metric] for point in known]),
        )


@dataclass(frozen=True)
class Delta:
    """One curve against the anchor."""

    curve: str
    metric: str
    method: Method
    bd_rate: float | None
    """Percent; None if refused."""
    bd_quality: float | None
    """In the metric's unit; None if refused."""
    refused: str | None = None
    """Why there is no figure."""


@dataclass(frozen=True)
class Evaluation:
    """Curves of an evaluation, how they compare, and its failures."""

    curves: list[Curve]
    images: list[str]
    """The pictures that count: those that every setting coded."""
    failures: list[ResultRow]
    """Rows with an "error"."""
    dropped: list[str]
    """Settings that coded no picture at all."""
    anchor: str | None
    deltas: list[Delta]
    machines: list[str]


def assess(
    settings: Sequence[Setting],
    rows: Sequence[ResultRow],
    others: Sequence[Curve],
    anchor: str | None,
) -> Evaluation:
    """Average the rows into curves and compare them.

    A picture counts if every setting coded it, so that all averages are over the same pictures;
    a setting that coded none at all is dropped instead.

    Args:
        rows: from `evaluate`.
        others: curves from files.
        anchor: the curve that others are compared to; None for jpeg, or else the first.

    Raises:
        DataError: if no picture is left, or the anchor is not a curve.
    """
    by_setting = {(s.curve, s.name): {} for s in settings}
    for row in rows:
        if "error" not in row:
            by_setting[row["curve"], row["setting"]][row["image"]] = row
    failures = [row for row in rows if "error" in row]
    coded = {name: done for name, done in by_setting.items() if done}
    images = sorted(set.intersection(*(set(done) for done in coded.values()))) if coded else []
    if not images:
        reasons = "; ".join(dict.fromkeys(row["error"] for row in failures[:3]))
        raise DataError(f"no picture was coded at every setting: {reasons}")
    curves = [*_curves_of(settings, coded, images), *others]
    anchor = checked_anchor(anchor, curves, "jpeg")
    return Evaluation(
        curves,
        images,
        failures,
        [f"{curve} {name}" for (curve, name), done in by_setting.items() if not done],
        anchor,
        deltas(curves, anchor),
        sorted({row["machine"] for done in coded.values() for row in done.values()}),
    )


def checked_anchor(anchor: str | None, curves: Sequence[Curve], usual: str) -> str:
    """The name of the curve that others are compared to: `usual`, or else the first, unless told.

    Raises:
        DataError: if there is no such curve.
    """
    names = [curve.name for curve in curves]
    anchor = anchor or (usual if usual in names else names[0])
    if anchor not in names:
        raise DataError(f"--anchor: {anchor!r} is not one of {', '.join(names)}")
    return anchor


def _curves_of(
    settings: Sequence[Setting],
    coded: dict[tuple[str, str], dict[str, ResultRow]],
    images: Sequence[str],
) -> list[Curve]:
    """The measured curves: a point for each setting, the averages of its rows over `images`.

    Args:
        coded: by curve and setting, the row of each picture.
    """
    curves: dict[str, Curve] = {}
    for setting in settings:
        if done := coded.get((setting.curve, setting.name)):
            point = {"setting": setting.name} | _averages([done[image] for image in images])
            if setting.model is not None:
                info = setting.model
                point["model"] = {"file": str(info.path), "label": info.label}
                point["model"] |= {"identity": info.identity, "lmbda": info.lmbda}
            curves.setdefault(setting.curve, Curve(setting.curve)).points.append(point)
    for curve in curves.values():
        curve.points.sort(key=lambda point: point["bpp"])
    return list(curves.values())


def _averages(rows: Sequence[ResultRow]) -> ResultRow:
    """Means over pictures; of the qualities in dB too, as the HPCM papers do. None spreads."""
    means: ResultRow = {"images": len(rows)}
    for column in AVERAGED:
        values = [row[column] for row in rows]
        means[column] = None if None in values else float(np.mean(values))
    peaks = [row["peak_mib"] for row in rows if row["peak_mib"] is not None]
    return means | {"peak_mib": max(peaks, default=None)}


def deltas(curves: Sequence[Curve], anchor: str) -> list[Delta]:
    """Every other curve against the anchor, by every metric and method."""
    reference = next(curve for curve in curves if curve.name == anchor)
    return [
        _delta(reference, curve, metric, method)
        for curve in curves
        if curve is not reference
        for metric in METRICS
        for method in METHODS
        if len(curve.of(metric)[0]) and len(reference.of(metric)[0])
    ]


def _delta(anchor: Curve, curve: Curve, metric: str, method: Method) -> Delta:
    points = (*anchor.of(metric), *curve.of(metric))
    values: list[float | None] = []
    refusals = []
    for compute in (bd_rate, bd_psnr):
        try:
            values.append(compute(*points, method))
        except RunError as error:
            values.append(None)
            refusals.append(str(error).removeprefix("BD-rate: "))
    rate, difference = values
    refused = "; ".join(dict.fromkeys(refusals)) or None
    return Delta(curve.name, metric, method, rate, difference, refused)


def write(
    evaluation: Evaluation, rows: Sequence[ResultRow], data: Path, folder: Path
) -> list[Path]:
    """Write report.json, images.csv and averages.csv; their paths.

    Raises:
        OSError: if the folder cannot be written.
    """
    report = {
        "format": FORMAT,
        "program": __version__,
        "data": str(data),
        "machines": evaluation.machines,
        "images": evaluation.images,
        "dropped": evaluation.dropped,
        "failures": [
            {name: row[name] for name in ("curve", "setting", "image", "error")}
            for row in evaluation.failures
        ],
        "curves": [vars(curve) for curve in evaluation.curves],
        "anchor": evaluation.anchor,
        "deltas": [vars(delta) for delta in evaluation.deltas],
    }
    measured = [
        {"curve": curve.name} | point
        for curve in evaluation.curves
        if not curve.published
        for point in curve.points
    ]
    paths = [folder / name for name in ("report.json", "images.csv", "averages.csv")]
    atomic_write(paths[0], json.dumps(report, indent=1))
    atomic_write(paths[1], _csv(COLUMNS, rows))
    atomic_write(paths[2], _csv(("curve", "setting", "images", *AVERAGED, "peak_mib"), measured))
    return paths


def _csv(columns: Sequence[str], rows: Sequence[ResultRow]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_report(folder: Path) -> dict[str, Any]:
    """The report.json of an evaluation.

    Raises:
        DataError: if there is none, or it is of another format.
    """
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise DataError(f"{path}: is not a report of hpcm-scale eval ({FORMAT})")
    return report
