"""Verbs of the scaling-law harness."""

from pathlib import Path

import typer

from hpcm_scale.cli.program import app, console


@app.command()
def fit(
    runs: list[Path] = typer.Argument(help="Run folders, or folders of them."),
    out: Path = typer.Option(Path("report"), "-o", "--out", help="Where the report goes."),
    size: str = typer.Option("total", help="What N counts: total, transform, hyper or context."),
    target_size: float = typer.Option(1e10, min=1, help="N to extrapolate to."),
    budget: float = typer.Option(
        None, min=1, help="Training FLOPs to spend best [default: 1, 10, 100 times the largest run]"
    ),
    confidence: float = typer.Option(0.95, min=0.5, max=0.999, help="Level of the intervals."),
    bootstraps: int = typer.Option(1000, min=100, help="Resamples of the runs."),
    seed_noise: float = typer.Option(
        0.01, min=1e-6, max=1, help="Relative noise between seeds, assumed if the runs cannot tell."
    ),
) -> None:
    """Fit scaling laws to finished runs; write law.json, plots and a report."""
    from hpcm_scale.errors import RunError
    from hpcm_scale.scaling import report, summary
    from hpcm_scale.scaling.records import SIZE_PARTS, read_runs
    from hpcm_scale.scaling.results import Settings
    from hpcm_scale.scaling.study import study

    if size not in SIZE_PARTS:
        raise RunError(f"--size: {size!r} is not one of {', '.join(SIZE_PARTS)}")
    settings = Settings(size, target_size, budget, confidence, seed_noise, bootstraps)
    result = study(read_runs(runs), settings)
    for piece in summary.summary(result):
        console.print(piece)
    written = report.write_report(result, out)
    console.print(f"{out / 'report.html'} and {len(written) - 1} files beside it", highlight=False)
