"""The program `hpcm-scale`: each verb is a thin call into one folder of the package.

Heavy imports stay inside the verbs, so that `hpcm-scale --help` and the fits do not wait for torch.
"""

import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from hpcm_scale import __version__
from hpcm_scale.errors import HpcmError

app = typer.Typer(
    name="hpcm-scale",
    help="Train HPCM image codecs at any scale, fit their scaling laws, compress images with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit()


@app.command()
def fit(
    runs: list[Path] = typer.Argument(help="Run folders, or folders of them."),
    out: Path = typer.Option(Path("report"), "-o", "--out", help="Where the report goes."),
    size: str = typer.Option("total", help="What N counts: total, transform, hyper or context."),
    target_size: float = typer.Option(1e10, min=1, help="N to extrapolate to."),
    confidence: float = typer.Option(0.95, min=0.5, max=0.999, help="Level of the intervals."),
    seed_noise: float = typer.Option(
        0.01, min=1e-6, max=1, help="Relative noise between seeds, assumed if the runs cannot tell."
    ),
) -> None:
    """Fit scaling laws to finished runs; write law.json, plots and a report."""
    from hpcm_scale.errors import RunError
    from hpcm_scale.scaling import report, summary
    from hpcm_scale.scaling.records import SIZE_PARTS, read_runs
    from hpcm_scale.scaling.study import Settings, study

    if size not in SIZE_PARTS:
        raise RunError(f"--size: {size!r} is not one of {', '.join(SIZE_PARTS)}")
    settings = Settings(size, target_size, confidence, seed_noise)
    result = study(read_runs(runs), settings)
    for piece in summary.summary(result):
        console.print(piece)
    written = report.write_report(result, out)
    console.print(f"{len(written)} files in {out}: law.json, plots as PNG and SVG", highlight=False)


@app.command()
def pack(
    source: str = typer.Argument(help="A folder of images, or a quoted glob."),
    out: Path = typer.Argument(help="Folder for the shards and manifest.json."),
    recipe: Path | None = typer.Option(None, help="A recipe: shards/*.yaml."),
    part: str = typer.Option("1/1", help="Pack lots i, i+n, ... only, as i/n: one host of n."),
    strict: bool = typer.Option(False, "--strict", help="Stop at the first corrupt image."),
    jobs: int | None = typer.Option(None, min=1, help="Processes; all cores by default."),
) -> None:
    """Pack a folder of images into tar shards with a manifest.

    Interrupted, run it again: it goes on from the last whole lot. On n hosts, run it with --part
    1/n ... n/n into one folder (or gather their OUT/lots in one), then once more without.
    """
    from hpcm_scale.data import inspect
    from hpcm_scale.data.pack import pack, parse_part
    from hpcm_scale.data.recipe import read_recipe

    manifest = pack(
        source,
        out,
        read_recipe(recipe) if recipe else None,
        part=parse_part(part),
        strict=strict,
        jobs=jobs,
        console=console,
    )
    if manifest is None:
        console.print(f"part {part} of {out} is packed; when all are, run again without --part")
    else:
        console.print(inspect.summary(manifest))


def main() -> None:
    """Entry point: a user's error becomes one line on stderr and exit code 2."""
    try:
        app()
    except HpcmError as error:
        line = Text.assemble(("hpcm-scale: ", "red"), " ".join(str(error).split()))
        errors.print(line, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
