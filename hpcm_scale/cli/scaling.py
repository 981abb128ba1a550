"""Verbs of the scaling-law harness."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hpcm_scale.cli.program import app, console

if TYPE_CHECKING:
    from hpcm_scale.config import LadderConfig
    from hpcm_scale.ladder.runs import LadderRun

ladder = typer.Typer(help="Plan, launch and follow the runs that a scaling law is fitted to.")
app.add_typer(ladder, name="ladder")

LADDER = typer.Argument(help="A ladder: configs/ladders/*.yaml.")
SET = typer.Option(None, "--set", metavar="KEY=VALUE", help="Over the file; may be repeated.")
ONLY = typer.Option(None, help="A run's name, or a pattern such as 'w0.1-*'; may be repeated.")
RANKS = typer.Option(1, min=1, help="Processes, or GPUs, of each run.")
JOBS = typer.Option(1, min=1, help="Runs at once; each gets its share of the cores or GPUs.")
TABLES = "Tables"
LONGEST = typer.Option(False, "--longest-first", help="Fills --jobs better than smallest first.")


@app.command()
def fit(
    runs: list[Path] = typer.Argument(
        help="Run folders, folders of them, or runs of other programs: tables (.csv, .tsv, .json, "
        ".jsonl, .parquet), folders of TensorBoard events or of W&B's offline runs."
    ),
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
    n: str = typer.Option(None, "--n", help="Column of parameters.", rich_help_panel=TABLES),
    d: str = typer.Option(
        None, "--d", help="Column of data seen: tokens, crops.", rich_help_panel=TABLES
    ),
    c: str = typer.Option(None, "--c", help="Column of training FLOPs.", rich_help_panel=TABLES),
    loss: str = typer.Option(None, "--loss", help="Column of losses.", rich_help_panel=TABLES),
    batch: str = typer.Option(
        None,
        "--batch",
        help="Column of data a step, in the unit of --d: fits steps and batch apart.",
        rich_help_panel=TABLES,
    ),
    lr: str = typer.Option(
        None,
        "--lr",
        help="Column of learning rates: of runs that differ in it alone the best counts.",
        rich_help_panel=TABLES,
    ),
    group: str = typer.Option(
        None, "--group", help="Column of families: each has its own law.", rich_help_panel=TABLES
    ),
    step: float = typer.Option(
        None,
        min=0,
        help="Of tables with a row a step: the last row up to this step, not of all, counts.",
        rich_help_panel=TABLES,
    ),
    flops_per: float = typer.Option(
        None,
        min=0,
        help="Without a column of data: D = C / (this x N); 6 for transformers.",
        rich_help_panel=TABLES,
    ),
    drop_highest: int = typer.Option(
        0, min=0, help="Leave out so many runs of highest loss.", rich_help_panel=TABLES
    ),
) -> None:
    """Fit scaling laws to finished runs; write law.json, plots and a report.

    Of a table's columns those not named are guessed by their usual names, and shown.
    """
    from hpcm_scale.errors import RunError
    from hpcm_scale.runs.records import SIZE_PARTS, read_runs
    from hpcm_scale.runs.run_table import Columns, is_table, read_tables
    from hpcm_scale.scaling import report, summary
    from hpcm_scale.scaling.fit_results import Settings
    from hpcm_scale.scaling.study import study
    from hpcm_scale.scaling.table_study import table_study

    if size not in SIZE_PARTS:
        raise RunError(f"--size: {size!r} is not one of {', '.join(SIZE_PARTS)}")
    settings = Settings(size, target_size, budget, confidence, seed_noise, bootstraps)
    columns = Columns(n, d, c, loss, batch, lr, group)
    tables = [path for path in runs if is_table(path)]
    if tables and len(tables) < len(runs):
        raise RunError("tables and run folders are fitted apart: give one kind at a time")
    if tables:
        found, notes = read_tables(tables, columns, drop_highest, step)
        of_tables = table_study(found, notes, settings, flops_per)
        for piece in summary.table_summary(of_tables):
            console.print(piece)
        written = report.write_table_report(of_tables, out)
        console.print(f"{written[0]} and {len(written) - 1} files beside it", highlight=False)
        return
    if columns != Columns() or drop_highest or flops_per or step is not None:
        raise RunError(
            "--n, --d, --c, --loss, --batch, --lr, --group, --step, --flops-per, --drop-highest: "
            "for tables"
        )
    result = study(read_runs(runs), settings)
    for piece in summary.summary(result):
        console.print(piece)
    written = report.write_report(result, out)
    console.print(f"{out / 'report.html'} and {len(written) - 1} files beside it", highlight=False)


@ladder.command("plan")
def plan_ladder(
    path: Path = LADDER,
    only: list[str] = ONLY,
    ranks: int = RANKS,
    jobs: int = JOBS,
    longest_first: bool = LONGEST,
    probe: bool = typer.Option(True, help="Measure a few steps of each network not yet measured."),
    changes: list[str] = SET,
) -> None:
    """List every run: parameters, arithmetic, learning rate, predicted time and memory.

    What was measured is kept in OUT/ladder/probe.json; delete it to measure again.
    """
    from hpcm_scale.ladder.plan import costs, in_order, table

    runs = in_order(_runs(path, changes, only)[1], longest_first)
    with console.status("measuring") as shown:
        known = costs(runs, ranks, jobs, probe, shown.update)
    _print(table(runs, known, ranks, jobs))


@ladder.command("run")
def run_ladder(
    path: Path = LADDER,
    only: list[str] = ONLY,
    ranks: int = RANKS,
    jobs: int = JOBS,
    longest_first: bool = LONGEST,
    slurm: bool = typer.Option(False, "--slurm", help="Print a SLURM array script instead."),
    changes: list[str] = SET,
) -> None:
    """Train what is not done, smallest first; go on where a run was broken off.

    A run that fails is reported, at the end too, and the others go on: exit code 1. Ctrl-C or
    SIGTERM lets the runs save and stop: exit code 75; the same command continues.
    """
    from hpcm_scale.ladder.launcher import Launcher
    from hpcm_scale.ladder.launcher import slurm as script
    from hpcm_scale.ladder.plan import in_order
    from hpcm_scale.ladder.runs import status

    config, runs = _runs(path, changes, only)
    runs = in_order(runs, longest_first)
    left = [run for run in runs if status(run).state != "done"]
    if slurm and left:
        print(script(config, path, changes or [], left, ranks, jobs), end="")  # noqa: T201
        return
    _say(f"{config.name}: {len(runs)} runs, {len(runs) - len(left)} done")
    launcher = Launcher(left, ranks, jobs, _say)
    code = launcher.run()
    for name, reason in launcher.failed.items():
        _say(f"failed: {name}: {reason}")
    raise typer.Exit(code)


@ladder.command("status")
def ladder_status(path: Path = LADDER, only: list[str] = ONLY, changes: list[str] = SET) -> None:
    """Where each run stands: state, step, losses, time taken and left."""
    from hpcm_scale.ladder.table import table

    _print(table(_runs(path, changes, only)[1]))


@ladder.command("compare")
def compare_ablations(
    path: Path = LADDER,
    records: Path = typer.Option(None, help="Copied records [default: the runs themselves]."),
    confidence: float = typer.Option(0.95, min=0.5, max=0.999, help="Level of the intervals."),
    changes: list[str] = SET,
) -> None:
    """Compare the ablations of a ladder with the size they change, seed by seed."""
    from hpcm_scale.ladder.table import compared

    _print(compared(_runs(path, changes, None)[1], records, confidence))


@ladder.command("records")
def ladder_records(
    path: Path = LADDER,
    target: Path = typer.Argument(help="Folder to copy to; `hpcm-scale fit` reads it."),
    only: list[str] = ONLY,
    changes: list[str] = SET,
) -> None:
    """Copy run.json and thinned metrics of finished runs: what fits read, without weights."""
    from hpcm_scale.ladder.runs import copy_records

    written, left = copy_records(_runs(path, changes, only)[1], target)
    size = sum(file.stat().st_size for folder in written for file in folder.iterdir())
    _say(f"{len(written)} runs -> {target}  {size / 1e6:.2f} MB")
    if left:
        _say(f"not done: {', '.join(left)}")


def _runs(
    path: Path, changes: list[str] | None, only: list[str] | None
) -> "tuple[LadderConfig, list[LadderRun]]":
    from hpcm_scale.config import load_ladder
    from hpcm_scale.ladder.runs import chosen, ladder_runs

    config = load_ladder(path, changes)
    return config, chosen(ladder_runs(config), only)


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print(table: object) -> None:
    """A table with no figure cut short: a narrow terminal wraps its lines instead."""
    from rich.console import Console

    Console(width=max(console.width, 132), highlight=False).print(table)
