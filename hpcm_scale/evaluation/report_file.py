"""Files of an evaluation: report.json, images.csv and averages.csv."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from hpcm_scale import __version__
from hpcm_scale.config.strict import describe
from hpcm_scale.errors import DataError, one_line
from hpcm_scale.evaluation.curves import AVERAGED, METRICS, Curve, Delta, Evaluation, LeftOut
from hpcm_scale.evaluation.evaluate import ResultRow
from hpcm_scale.files import atomic_write

FORMAT = "hpcm_scale evaluation 1"
COLUMNS = (
    "curve", "setting", "image", "width", "height", "bytes", "bpp", "mse", "psnr", "ms_ssim",
    "ms_ssim_db", "encode_seconds", "decode_seconds", "peak_mib", "machine", "error",
)  # fmt: skip


class Report(BaseModel):
    """Part of report.json that is read again."""

    data: str
    """The folder of pictures."""
    machines: list[str]
    curves: list[Curve]
    anchor: str | None
    deltas: list[Delta]
    left_out: dict[str, LeftOut] = {}
    """Omissions from the averages, by metric."""


class _Point(BaseModel):
    """Figures of a curve's point that are shown; others are passed over."""

    bpp: FiniteFloat
    setting: str = ""
    psnr: FiniteFloat | None = None
    ms_ssim_db: FiniteFloat | None = None
    encode_seconds: FiniteFloat | None = None
    decode_seconds: FiniteFloat | None = None
    peak_mib: FiniteFloat | None = None


_POINTS = TypeAdapter(list[_Point])


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
        "left_out": {metric: vars(out) for metric, out in evaluation.left_out.items()},
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
    atomic_write(paths[1], _csv(COLUMNS, [_with_infinities(row) for row in rows]))
    rates = [f"bpp of {metric}" for metric in METRICS]
    columns = ("curve", "setting", "images", *AVERAGED, "peak_mib", *rates)
    atomic_write(paths[2], _csv(columns, measured))
    return paths


def read(folder: Path) -> Report:
    """The report.json of an evaluation.

    Raises:
        DataError: if there is none, it is damaged, or it is of another format.
    """
    path = folder / "report.json"
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({one_line(error)[:200]})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path}: is not a report of hpcm-scale eval ({FORMAT})")
    try:
        report = Report.model_validate(values)
        for curve in report.curves:
            _POINTS.validate_python(curve.points)
    except ValidationError as error:
        raise DataError(describe(error, str(path))[:500]) from None
    return report


def _with_infinities(row: ResultRow) -> ResultRow:
    """A row with the infinite PSNR of a picture that lost nothing, which JSON cannot hold."""
    return row | {"psnr": "inf"} if row.get("mse") == 0 else row


def _csv(columns: Sequence[str], rows: Sequence[ResultRow]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


_NAMED = 5


def left_out_lines(left_out: dict[str, LeftOut]) -> list[str]:
    """Lines that say what an evaluation's averages leave out."""
    lines = []
    for metric, out in left_out.items():
        for kind, names in (("pictures", out.images), ("settings", out.settings)):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                lines.append(
                    f"{METRICS.get(metric, metric)}: averages leave out {len(names)} {kind} where "
                    f"it is infinite or undefined: {', '.join(names[:_NAMED])}{more}"
                )
    return lines
