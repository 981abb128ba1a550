"""Rate-distortion curves from an evaluation's rows, and how they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from hpcm_scale.errors import DataError, RunError
from hpcm_scale.evaluation.bd_rate import LEAST_OVERLAP, Method, bd_psnr, bd_rate, overlap
from hpcm_scale.evaluation.codecs import Setting
from hpcm_scale.evaluation.evaluate import ResultRow

USUAL_ANCHOR = "jpeg"
METRICS = {"psnr": "PSNR (dB)", "ms_ssim_db": "MS-SSIM (dB)"}
METHODS: tuple[Method, ...] = ("pchip", "akima", "cubic")
AVERAGED = (
    "bytes", "bpp", "psnr", "ms_ssim", "ms_ssim_db", "encode_seconds", "decode_seconds",
)  # fmt: skip

DRAWS = 500
"""Bootstrap resamples of the pictures."""

Coded = Mapping[tuple[str, str], Mapping[str, ResultRow]]
"""Row of each picture, by curve and setting."""


@dataclass(frozen=True)
class Curve:
    """The points of one codec, by rising rate."""

    name: str
    points: list[ResultRow] = field(default_factory=list)
    """Averages of each setting: "bpp", qualities by `METRICS`, and what else was measured.

    Where a metric's average leaves pictures out, "bpp of METRIC" is the rate of those in it."""
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
            np.array([point.get(f"bpp of {metric}", point["bpp"]) for point in known]),
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
    """Quality difference in the metric's unit; None if refused."""
    refused: str | None = None
    """Reason why there is no figure."""
    caution: str | None = None
    """Reason why the figures say little."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval of `bd_rate` over pictures, the same for both curves: how it depends
    on the choice of pictures. None where a curve was not measured here, or resamples often give no
    figure."""


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
    left_out: "dict[str, LeftOut]"
    """Omissions from the averages, by metric, where there are any."""


@dataclass(frozen=True)
class LeftOut:
    """Omissions from a metric's averages, so that none of them is infinite or undefined."""

    images: list[str]
    settings: list[str]
    """Settings that have no average of the metric."""


def assess(
    settings: Sequence[Setting],
    rows: Sequence[ResultRow],
    others: Sequence[Curve],
    anchor: str | None,
) -> Evaluation:
    """Average the rows into curves and compare them.

    A picture counts if every setting coded it, so that all averages are over the same pictures;
    a setting that coded none at all is dropped instead. For the same reason the averages of a
    metric leave out pictures for which it is infinite (nothing was lost) or undefined (MS-SSIM of
    sides below 161 pixels), and settings at which it is (lossless ones): time and again the picture
    or setting with the largest share of such values. Rates are then of the same pictures.

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
    left_out = _left_out(coded, images)
    curves = [*_curves_of(settings, coded, images, left_out), *others]
    anchor = checked_anchor(anchor, [curve.name for curve in curves])
    return Evaluation(
        curves,
        images,
        failures,
        [_named(*setting) for setting, done in by_setting.items() if not done],
        anchor,
        [
            replace(delta, interval=_interval(delta, anchor, settings, coded, images, left_out))
            for delta in deltas(curves, anchor)
        ],
        sorted({row["machine"] for done in coded.values() for row in done.values()}),
        left_out,
    )


def checked_anchor(anchor: str | None, names: Sequence[str]) -> str:
    """The name of the curve that others are compared to: jpeg, or else the first, unless told.

    Args:
        names: of all curves.

    Raises:
        DataError: if there is no such curve.
    """
    anchor = anchor or (USUAL_ANCHOR if USUAL_ANCHOR in names else names[0])
    if anchor not in names:
        raise DataError(f"--anchor: {anchor!r} is not one of {', '.join(dict.fromkeys(names))}")
    return anchor


def _curves_of(
    settings: Sequence[Setting],
    coded: Coded,
    images: Sequence[str],
    left_out: Mapping[str, LeftOut],
) -> list[Curve]:
    """The measured curves: a point for each setting, the averages of its rows over `images`."""
    curves: dict[str, Curve] = {}
    for setting in settings:
        if done := coded.get((setting.curve, setting.name)):
            point = {"setting": setting.name} | _averages(
                [done[image] for image in images], left_out, _named(setting.curve, setting.name)
            )
            if setting.model is not None:
                info = setting.model
                point["model"] = {"file": str(info.path), "label": info.label}
                point["model"] |= {"identity": info.identity, "lmbda": info.lmbda}
            curves.setdefault(setting.curve, Curve(setting.curve)).points.append(point)
    for curve in curves.values():
        curve.points.sort(key=lambda point: point["bpp"])
    return list(curves.values())


def _named(curve: str, setting: str) -> str:
    return f"{curve} {setting}"


def _left_out(coded: Coded, images: Sequence[str]) -> dict[str, LeftOut]:
    """Omissions from the averages, by metric, if any."""
    settings = list(coded)
    out = {}
    for metric in METRICS:
        missing = np.array(
            [[coded[setting][image][metric] is None for image in images] for setting in settings]
        )
        rows, columns = np.ones(len(settings), bool), np.ones(len(images), bool)
        while (left := missing & rows[:, None] & columns).any():
            by_setting = left.sum(1) / columns.sum()
            by_image = left.sum(0) / rows.sum()
            if by_setting.max() > by_image.max():
                rows[by_setting.argmax()] = False
            else:
                columns[by_image.argmax()] = False
        if not (rows.all() and columns.all()):
            out[metric] = LeftOut(
                [image for image, kept in zip(images, columns, strict=True) if not kept],
                [_named(*name) for name, kept in zip(settings, rows, strict=True) if not kept],
            )
    return out


def _averages(
    rows: Sequence[ResultRow], left_out: Mapping[str, LeftOut], setting: str
) -> ResultRow:
    """Means over pictures; of the qualities in dB too, as the HPCM papers do."""
    means: ResultRow = {"images": len(rows)}
    for column in AVERAGED:
        metric = "ms_ssim_db" if column == "ms_ssim" else column
        lacking = left_out.get(metric, LeftOut([], []))
        counted = [row for row in rows if row["image"] not in lacking.images]
        if setting in lacking.settings or not counted:
            means[column] = None
            continue
        means[column] = float(np.mean([row[column] for row in counted]))
        if column in METRICS and lacking.images:
            means[f"bpp of {column}"] = float(np.mean([row["bpp"] for row in counted]))
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
    share = overlap(anchor.of(metric)[1], curve.of(metric)[1])
    caution = None
    if rate is not None and share < LEAST_OVERLAP:
        caution = f"the curves share {share:.1%} of the wider one's range of quality"
    return Delta(curve.name, metric, method, rate, difference, refused, caution)


def _interval(
    delta: Delta,
    anchor: str,
    settings: Sequence[Setting],
    coded: Coded,
    images: Sequence[str],
    left_out: Mapping[str, LeftOut],
) -> tuple[float, float] | None:
    """`Delta.interval` of one curve against the anchor."""
    lacking = left_out.get(delta.metric, LeftOut([], []))
    counted = [image for image in images if image not in lacking.images]
    if delta.bd_rate is None or delta.method != "pchip" or len(counted) < 2:
        return None
    pair = []
    for name in (anchor, delta.curve):
        rows = [
            [coded[name, s.name][image] for image in counted]
            for s in settings
            if s.curve == name
            and (name, s.name) in coded
            and _named(name, s.name) not in lacking.settings
        ]
        if not rows:
            return None
        # (settings, pictures) of rates and qualities
        pair += [
            np.array([[row[key] for row in line] for line in rows], float)
            for key in ("bpp", delta.metric)
        ]
    rng = np.random.default_rng(0)
    values = []
    for _ in range(DRAWS):
        drawn = rng.integers(len(counted), size=len(counted))
        try:
            values.append(bd_rate(*(part[:, drawn].mean(axis=1) for part in pair)))
        except RunError:
            values.append(np.nan)
    if np.isnan(values).mean() > 0.05:
        return None
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
