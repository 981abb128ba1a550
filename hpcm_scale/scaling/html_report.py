"""report.html: one file with its pictures inside, readable without a network or a script."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from hpcm_scale import __version__
from hpcm_scale.runs.records import Run
from hpcm_scale.scaling import report_text
from hpcm_scale.scaling.fit_results import Family, FittedLaw, Settings, Study

CAPTIONS = {
    "loss-against-size": "Loss against size at equal images: each run's last validation.",
    "bpp-against-size": "The rate alone. Training minimises the loss, so rate and distortion need "
    "not each follow a power law.",
    "mse-against-size": "The distortion alone.",
    "residuals": "What the law leaves over. A trend with size means that the form is wrong.",
    "extrapolation": "The law beyond the sizes that were run: only as good as the law.",
    "loss-against-compute": "Every run while it trains, the lowest loss reached by each count of "
    "FLOPs, and the law through those points.",
    "loss-against-images": "Every run against the crops it has seen, and L(N, D).",
    "loss-along-lambda": "Loss against size at each λ, and against λ at each size, with the law "
    "along λ.",
    "isoflop": "Loss against size at equal FLOPs, and the size of least loss as FLOPs grow.",
}

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b2733; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { color: #1b3a5c; line-height: 1.2; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; width: 100%; }
th, td { text-align: left; padding: 0.25rem 0.6rem; border-bottom: 1px solid #dde3e9;
  vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
tr.first td { border-top: 2px solid #9fb0c0; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; }
figcaption { color: #55626f; font-size: 0.9rem; }
.cautions { background: #fff6e0; border-left: 4px solid #e08e0b; padding: 0.5rem 1rem; }
.refusals { background: #fdecea; border-left: 4px solid #c0392b; padding: 0.5rem 1rem; }
.note { color: #55626f; font-size: 0.9rem; }
"""


def render(study: Study, pictures: Sequence[Sequence[tuple[str, Path]]]) -> str:
    """The page.

    Args:
        pictures: for each family, (name of CAPTIONS, PNG file).
    """
    body = ["<h1>Scaling laws</h1>"]
    body.append(_paragraph(_opening(study)))
    if study.notes:
        body.append(_list("Records", study.notes, "cautions"))
    for family, shown in zip(study.families, pictures, strict=True):
        body += _family(family, shown, study.settings)
    if compared := list(report_text.compared(study.comparisons)):
        body.append(_list("Families side by side", compared, "across"))
    if across := report_text.across_lambdas(study.curves):
        body.append(_list("Across λ", across, "across"))
    body.append("<h2>How to read this</h2>")
    body += [_paragraph(text) for text in _method(study.settings)]
    style = f"<style>{CSS}</style>"
    head = f'<meta charset="utf-8"><title>Scaling laws</title>{style}'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(
        [*body, "</body></html>\n"]
    )


def _opening(study: Study) -> str:
    runs = sum(len(family.runs) for family in study.families)
    return (
        f"{runs} training runs, N counting {_counted(study.settings)}, "
        f"intervals at {study.settings.confidence:.0%}. hpcm_scale {__version__}. "
        "Every figure at full precision is in law.json beside this page."
    )


def _counted(settings: Settings) -> str:
    part = {"total": "all parameters", "hyper": "the parameters of the hyper-prior"}
    return part.get(settings.size, f"the parameters of the {settings.size}")


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(title: str, lines: Iterable[str], kind: str) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="{kind}"><strong>{escape(title)}</strong><ul>{items}</ul></div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], mark_first: bool = False) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    lines = []
    for row in rows:
        first = ' class="first"' if mark_first and row[0] else ""
        lines.append(f"<tr{first}>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _family(family: Family, pictures: Sequence[tuple[str, Path]], settings: Settings) -> list[str]:
    out = [f"<h2>{escape(report_text.heading(family, settings))}</h2>"]
    if cautions := report_text.gathered_cautions(family):
        out.append(_list("Before believing the numbers", cautions, "cautions"))
    if refused := report_text.refusals(family):
        out.append(_list("Not fitted", refused, "refusals"))
    if fitted := family.fitted:
        out.append("<h3>The laws</h3>")
        rows = [row for law in fitted for row in report_text.rows(law)]
        out.append(_table(report_text.ROW_HEADS, rows, mark_first=True))
    if note := report_text.foot(fitted):
        out.append(f'<p class="note">{escape(note)}</p>')
    if held_out := [row for rows in report_text.hold_out_rows(family.hold_outs) for row in rows]:
        out.append(f"<h3>{report_text.HOLD_OUT_TITLE.capitalize()}</h3>")
        out.append(_table(report_text.HOLD_OUT_HEADS, held_out, mark_first=True))
    if found := report_text.findings(family):
        out.append("<h3>Checks and predictions</h3>")
        out.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in found) + "</ul>")
    for name, path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = escape(CAPTIONS[name])
        out.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    out.append("<h3>What was run</h3>")
    out.append(_table(RUN_HEADS, [_run_row(run) for run in family.runs]))
    out.append("<h3>Reporting checklist</h3>")
    out.append(
        '<p class="note">After Li et al. 2025 (arXiv 2502.18969), filled in from the records.</p>'
    )
    out.append(_table(("item", "here"), _checklist(family, settings)))
    return out


RUN_HEADS = (
    "run", "seed", "parameters", "transform", "hyper", "context", "crops", "FLOPs", "loss", "bpp",
    "PSNR of mean MSE (dB)", "commit",
)  # fmt: skip


def _run_row(run: Run) -> tuple[str, ...]:
    final = run.final
    return (
        run.name,
        str(run.seed),
        *(f"{run.parameters[part]:,}".replace(",", " ") for part in run.parameters),
        report_text.figures(final["crops"]),
        report_text.figures(final["flops"]),
        report_text.figures(final["loss"]),
        report_text.figures(final["bpp"]),
        f"{run.final_psnr:.2f}",
        run.git_commit[:10] or "not recorded",
    )


def _checklist(family: Family, settings: Settings) -> list[tuple[str, str]]:
    runs, loss = family.runs, family.size_laws["loss"]
    held_out = isinstance(loss, FittedLaw) and loss.held_out is not None
    varying = sorted(
        key
        for key in {key for run in runs for key in run.config}
        if len({str(run.config.get(key)) for run in runs}) > 1
    )
    n = [run.parameters[settings.size] for run in runs]
    images = [run.final["crops"] for run in runs]
    flops = [run.final["flops"] for run in runs]
    seeds = {m: len({run.seed for run, k in zip(runs, n, strict=True) if k == m}) for m in set(n)}
    starts = [
        f"{fitted.label}: {fitted.huber.agreeing} of {fitted.huber.starts}"
        for fitted in family.fitted
        if fitted.huber is not None
    ]
    points = [
        f"{law.label}: {law.design.x.shape[1]} points of {len(set(law.design.run.tolist()))} runs"
        for law in family.laws
        if law.design is not None
    ]
    return [
        ("form of the laws", "; ".join(f"{k} = {v}" for k, v in report_text.FORMS.items())),
        ("quantity fitted", "validation loss, rate and MSE of the weights as trained"),
        ("what N counts", _counted(settings)),
        ("what C counts", "FLOPs counted on the built model, forward and backward; never 6ND"),
        ("what D counts", "training crops, repeats included"),
        ("runs, sizes", f"{len(n)} runs, {len(seeds)} sizes, {_range(n)} parameters"),
        ("seeds per size", _range(list(seeds.values()))),
        ("crops per run", _range(images)),
        ("FLOPs per run", _range(flops)),
        ("points in each law", "; ".join(points)),
        ("config keys that differ between runs", ", ".join(varying) or "none"),
        ("objective", "squared relative residuals; Huber of log residuals, δ = 0.001"),
        (
            "optimiser",
            "variable projection on a refined grid; L-BFGS-B from many starts, of which ended in "
            f"the same minimum: {'; '.join(starts) or 'none was run'}",
        ),
        (
            "uncertainty",
            f"profile likelihood with Student's t at {settings.confidence:.0%}; bootstrap of whole "
            f"runs, {settings.draws} draws",
        ),
        ("held-out size", "the largest; see the checks" if held_out else "none"),
        ("code", ", ".join(sorted({r.git_commit[:10] or "not recorded" for r in runs}))),
    ]


def _range(values: Sequence[float]) -> str:
    low, high = (report_text.figures(v) for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _method(settings: Settings) -> list[str]:
    return [
        "Least squares: residuals relative to the loss, exponents on a grid that is refined, "
        "amplitudes and floor solved (variable projection, Golub & Pereyra 1973). Huber: Hoffmann "
        "et al. 2022 (arXiv 2203.15556), which one bad run does not pull.",
        "The profile interval holds every value whose best law fits not significantly worse than "
        "the best of all, by Student's t on the degrees of freedom (dof) left. It keeps its level "
        "with five sizes, where resampling does not; an end may be open. Points of one run are "
        "not independent, and widen it where a run gives several.",
        f"Where no degree of freedom is left, seeds are assumed to differ by "
        f"{settings.seed_noise:.1%}, and the caution says so.",
        "An extrapolation's interval takes the law for granted. Whether the law holds is for the "
        "residuals and the held-out size to say.",
    ]
