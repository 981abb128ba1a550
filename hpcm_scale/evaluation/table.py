"""Tables for the terminal: the papers' figures, counted complexity, measurements."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hpcm_scale.errors import printable
from hpcm_scale.evaluation.counts_cache import CountsCache
from hpcm_scale.evaluation.curves import METRICS, Curve, Delta, deltas
from hpcm_scale.evaluation.published import DATASETS, ablations, systems
from hpcm_scale.evaluation.report_file import Report, left_out_lines
from hpcm_scale.models.zoo import model_config, variants


def published_table() -> Table:
    """The papers' results table: fourteen systems, three data sets, complexity."""
    table = _table(
        "PUBLISHED: BD-rate (%) of PSNR against VTM-22.0; times on the authors' GPU",
        ("model", "venue"),
        ("enc. ms", "dec. ms", "kMACs/px", "params (M)", *DATASETS.values()),
    )
    for system in systems():
        table.add_row(
            system.model,
            system.venue,
            _number(system.encode_ms, ".1f"),
            _number(system.decode_ms, ".1f"),
            f"{system.kmacs_per_pixel:.2f}",
            f"{system.parameters_m:.2f}",
            *(_number(system.bd_rate[name], "+.2f") for name in DATASETS),
        )
    table.caption = (
        "arXiv 2507.19125; HPCM-1B: arXiv 2508.09075. VTM-22.0's own points are not published with "
        "them, so these figures cannot be recomputed, only compared with one another."
    )
    return table


def counted_table() -> Table:
    """Parameters and arithmetic of every variant built here, beside what the papers print."""
    table = _table(
        "COUNTED here beside PUBLISHED",
        ("variant",),
        ("params (M)", "published", "kMACs/px", "published ", "difference", "BD-rate % to base"),
    )
    published = {system.variant: system for system in systems() if system.variant}
    effects = ablations()
    counts = CountsCache()
    for name in variants():
        config = model_config(name)
        counted = counts.of(config)
        system, printed = published.get(name), config.published
        kmacs = system.kmacs_per_pixel if system else printed and printed.kmacs_per_pixel
        table.add_row(
            name,
            f"{counted.parameters / 1e6:.3f}",
            _number(system and system.parameters_m, ".2f"),
            f"{counted.kmacs_per_pixel:.2f}",
            _number(kmacs, ".2f"),
            "–" if not kmacs else f"{100 * (counted.kmacs_per_pixel / kmacs - 1):+.3f} %",
            _number(effects.get(name), "+.2f"),
        )
    counts.save()
    table.caption = "The last column is published: ablations of Base on Kodak, arXiv 2507.19125."
    return table


def measured_table(report: Report) -> Table:
    """Averages of every measured point of an evaluation, and every curve's BD-rate."""
    table = _table(
        f"MEASURED here: {report.data}, files' real sizes; BD-rate (PCHIP) against {report.anchor}",
        ("codec", "setting"),
        (
            "bpp", "PSNR dB", "MS-SSIM dB", "enc. s", "dec. s", "peak MiB",
            *(f"BD-rate {label.split()[0]}" for label in METRICS.values()),
        ),
    )  # fmt: skip
    by_pchip = {(d.curve, d.metric): d for d in report.deltas if d.method == "pchip"}
    remarks = left_out_lines(report.left_out)
    for curve in report.curves:
        summary = []
        for metric in METRICS:
            delta = by_pchip.get((curve.name, metric))
            text = "anchor" if curve.name == report.anchor else "–"
            if delta is not None:
                text, remark = _delta(delta)
                remarks += [remark] if remark else []
            summary.append(text)
        if curve.published:
            _add(table, curve.name, "", *"–" * 6, *summary)
        for i, point in enumerate([] if curve.published else curve.points):
            _add(
                table,
                curve.name if i == 0 else "",
                point.get("setting", ""),
                _number(point["bpp"], ".4f"),
                _number(point.get("psnr"), ".3f"),
                _number(point.get("ms_ssim_db"), ".3f"),
                _number(point.get("encode_seconds"), ".3f"),
                _number(point.get("decode_seconds"), ".3f"),
                _number(point.get("peak_mib"), ".0f"),
                *(summary if i == 0 else ("", "")),
            )
        table.add_section()
    lines = ["BD-rates in brackets: 95 % bootstrap intervals over pictures."] * any(
        delta.interval is not None for delta in by_pchip.values()
    )
    lines += [
        f"Wall times; peak memory of the process, libraries included. {machine}"
        for machine in report.machines
    ]
    table.caption = _text("\n".join([*lines, *remarks]))
    return table


def _delta(delta: Delta) -> tuple[str, str | None]:
    """A BD-rate as a cell, and what has to be said of it below the table."""
    where = f"{delta.curve}, {METRICS.get(delta.metric, delta.metric)}"
    if delta.bd_rate is None:
        return "refused", f"refused: {where}: {delta.refused}"
    if delta.caution is not None:
        return f"{delta.bd_rate:+.2f} % (!)", f"(!) {where}: {delta.caution}"
    sure = ""
    if delta.interval is not None:
        sure = f" ({delta.interval[0]:+.1f} … {delta.interval[1]:+.1f})"
    return f"{delta.bd_rate:+.2f} %{sure}", None


def points_table(curves: Sequence[Curve], anchor: str) -> Table:
    """BD-rate of published points against those of `anchor`, by every method."""
    table = _table(
        f"COMPUTED here from PUBLISHED points: BD-rate (%) against {anchor}",
        ("codec", "metric"),
        ("points", "pchip", "akima", "cubic", "BD-PSNR dB (pchip)"),
    )
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for delta in deltas(curves, anchor):
        found.setdefault((delta.curve, delta.metric), {})[delta.method] = delta
    remarks: list[str] = []
    for (name, metric), by_method in found.items():
        curve = next(curve for curve in curves if curve.name == name)
        _, remark = _delta(by_method["pchip"])
        remarks += [remark] if remark else []
        _add(
            table,
            name,
            METRICS[metric],
            str(len(curve.of(metric)[0])),
            *(_number(by_method[m].bd_rate, "+.2f", "refused") for m in by_method),
            _number(by_method["pchip"].bd_quality, "+.3f", "refused"),
        )
    table.caption = _text("\n".join(remarks)) if remarks else None
    return table


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(
        title=_text(title), title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD
    )
    for column in texts:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _add(table: Table, *cells: str) -> None:
    """Add a row of names and figures, none of them markup."""
    table.add_row(*map(_text, cells))


def _text(text: str) -> Text:
    return Text("\n".join(map(printable, text.split("\n"))))


def _number(value: float | None, form: str, absent: str = "–") -> str:
    return absent if value is None else format(value, form)
