"""Verbs that measure codecs and compare them."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hpcm_scale.cli.program import app, bytes_of, checked_device, console, errors

if TYPE_CHECKING:
    from rich.console import Console

OTHERS, MACHINE = "Other codecs", "Machine"
"""Panels of the help."""


@app.command("eval")
def eval_(
    models: list[str] = typer.Argument(None, help="Model files, or names in HPCM_MODELS."),
    data: Path = typer.Option(help="Folder of pictures."),
    out: Path = typer.Option(Path("report"), "-o", "--out", help="Folder of results."),
    codecs: str = typer.Option(
        "", help="Other codecs, by commas: jpeg, webp, jpeg2000, avif, jxl; or all."
    ),
    codec: list[str] = typer.Option(
        [],
        help="A codec by command lines: 'name=...; encode=... {quality} {input} {output}; "
        "decode=... {input} {output}; quality=1,2,3; extension=.x', or a YAML file of these keys.",
        rich_help_panel=OTHERS,
    ),
    points: list[str] = typer.Option(
        [],
        help="R-D points of the same pictures to compare with: FILE or FILE:DATASET "
        "(CompressAI's JSON).",
        rich_help_panel=OTHERS,
    ),
    anchor: str | None = typer.Option(
        None, help="The curve that BD-rates refer to; jpeg, or else the first."
    ),
    page: int = typer.Option(3, min=0, help="Pictures on the comparison page; 0 for no page."),
    fast: bool = typer.Option(
        False,
        "--fast",
        help="Models code in floating point, not in exact arithmetic.",
        rich_help_panel=MACHINE,
    ),
    device: str = typer.Option(
        "cpu", help="Where models run: cpu, cuda, cuda:1, ...", rich_help_panel=MACHINE
    ),
    threads: int | None = typer.Option(
        None, min=1, help="CPU threads; all cores by default.", rich_help_panel=MACHINE
    ),
    memory: float = typer.Option(
        2.0, min=0.05, help="GiB a network may work in.", rich_help_panel=MACHINE
    ),
) -> None:
    """Measure models and other codecs on pictures: files' real sizes, quality, time, memory.

    Interrupted, it resumes when called again. With several processes, on GPUs or CPUs:
    accelerate launch --multi_gpu --num_processes 4 -m hpcm_scale.cli eval ...
    """
    from hpcm_scale.evaluation.commands import evaluate_codecs

    evaluate_codecs(
        models or [],
        data,
        out,
        [name.strip() for name in codecs.split(",") if name.strip()],
        codec,
        points,
        anchor,
        page,
        checked_device(device, threads),
        bytes_of(memory),
        fast,
        _wide(),
        errors,
    )


@app.command()
def table(
    results: list[Path] = typer.Option([], help="Folder of an eval, to show what it measured."),
    points: list[str] = typer.Option(
        [], help="R-D points to compute BD-rates from: FILE or FILE:DATASET."
    ),
    anchor: str | None = typer.Option(None, help="Their anchor; jpeg, or else the first."),
) -> None:
    """Print the papers' results, what is counted of the variants built here, and what was measured.

    Each table says which of its figures are published, counted or measured.
    """
    from hpcm_scale.evaluation.commands import tables

    out = _wide()
    for one in tables(results, points, anchor):
        out.print(one)


@app.command()
def compare(
    original: Path = typer.Argument(help="A picture, or a .hpcm file."),
    reconstruction: Path = typer.Argument(help="What became of it: a picture or .hpcm file."),
    out: Path | None = typer.Option(
        None, "-o", "--out", help="Picture to write; side_by_side.png, or a free name like it."
    ),
) -> None:
    """Measure a reconstruction against its original and put them side by side."""
    from hpcm_scale.errors import printable
    from hpcm_scale.evaluation.compare import checked_target, compare, save

    out = checked_target(out, (original, reconstruction))
    result = compare(original, reconstruction)
    save(result, out)
    line = f"{original.name} and {reconstruction.name}: {result.psnr:.2f} dB -> {out}"
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _wide() -> "Console":
    """A console on which no figure of a table is cut short: a narrow one wraps lines instead."""
    from rich.console import Console

    return Console(width=max(console.width, 132), highlight=False)
