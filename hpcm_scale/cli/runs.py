"""Verbs on run folders."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hpcm_scale.cli.program import app, console

if TYPE_CHECKING:
    from rich.console import Group

    from hpcm_scale.runs.watch import WatchedRun


@app.command()
def watch(
    runs: list[Path] = typer.Argument(help="Run folders, or folders of them."),
    output: Path = typer.Option(
        None, "-o", "--output", help="Draw into a .png or .svg file instead of the terminal."
    ),
    x: str = typer.Option(
        "step", "--x", help="What goes to the right: step, crops, flops, seconds."
    ),
    metric: str = typer.Option("loss", help="A field of the rows, such as loss, bpp or psnr."),
    follow: bool = typer.Option(False, help="Go on until Ctrl-C."),
    every: float = typer.Option(5.0, min=0.5, help="Seconds between looks, with --follow."),
) -> None:
    """Plot runs side by side while they go on, and list where each stands."""
    from rich.live import Live

    from hpcm_scale.errors import RunError
    from hpcm_scale.runs.watch import X_LABELS, watched

    if x not in X_LABELS:
        raise RunError(f"--x: {x!r} is not one of {', '.join(X_LABELS)}")
    found = watched(runs)
    shown = _look(found, x, metric, output)
    if not follow:
        console.print(shown)
        return
    with Live(shown, console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every)
                for run in found:
                    run.update()
                live.update(_look(found, x, metric, output), refresh=True)
        except KeyboardInterrupt:
            return


@app.command()
def checkpoints(
    run: Path = typer.Argument(help="A run folder."),
    verify: bool = typer.Option(False, "--verify", help="Read every byte and compare checksums."),
    prune: bool = typer.Option(False, "--prune", help="Delete all but the newest whole ones."),
    keep: int = typer.Option(None, min=1, help="How many --prune keeps [default: the run's]"),
) -> None:
    """List, verify or prune the checkpoints of a run."""
    from rich.table import Table

    from hpcm_scale.errors import CheckpointError, RunError
    from hpcm_scale.runs.run_record import RunRecord
    from hpcm_scale.training import checkpoint
    from hpcm_scale.training.resume import RunLock

    if not RunRecord.exists(run):
        raise RunError(f"{run}: is not a run folder (no run.json)")
    config = RunRecord.read(run).field("config.checkpoint", dict)
    if prune:
        lock = RunLock(run)
        lock.acquire()  # not while the run itself deletes
        wrong = checkpoint.damage(checkpoint.at(checkpoint.newest(run)))
        if wrong:
            raise CheckpointError(f"{run}: nothing deleted: the newest checkpoint's {wrong}")
        for gone in checkpoint.prune(run, keep or config["keep"], config["keep_every"]):
            console.print(f"deleted {gone.folder}", highlight=False, soft_wrap=True)
        lock.release()
    found = checkpoint.checkpoints(run)
    table = Table("checkpoint", "ranks", "ZeRO", "GB", "written", "state")
    damaged = []
    for one in found:
        record = one.record or {}
        state = "not finished" if one.record is None else "whole"
        if verify and one.record is not None:
            wrong = checkpoint.damage(one)
            state = wrong or "verified"
            damaged += [one.folder.name] if wrong else []
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.folder.stat().st_mtime))
        ranks, stage = (str(record.get(key, "")) for key in ("world_size", "stage"))
        table.add_row(one.folder.name, ranks, stage, f"{one.size / 1e9:.3f}", written, state)
    console.print(table if found else f"{run}: has no checkpoints")
    if damaged:
        raise CheckpointError(
            f"{run}: {len(damaged)} damaged ({', '.join(damaged)}); --resume auto passes them over"
        )


def _look(runs: "list[WatchedRun]", x: str, metric: str, output: Path | None) -> "Group":
    """Render the runs as they stand; the chart goes to `output` if given."""
    from rich.console import Group

    from hpcm_scale.runs import watch

    if not any(run.begun for run in runs):
        return Group("no rows written yet", watch.table(runs))
    if output is not None:
        watch.save_chart(runs, x, metric, output)
        return Group(watch.table(runs), f"-> {output}")
    # The chart leaves room for the table and the prompt.
    height = max(10, min(30, console.height - len(runs) - 7))
    return Group(
        watch.terminal_chart(runs, x, metric, min(console.width, 120), height), watch.table(runs)
    )


runs_app = typer.Typer(help="Look at run folders.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")


@runs_app.command("compare")
def compare_command(
    first: Path = typer.Argument(help="A run folder."),
    second: Path = typer.Argument(help="Another one."),
) -> None:
    """Say whether two runs computed the same, bit for bit: exit code 1 if not.

    Speeds and memory aside, every figure of every row that both have is compared.
    """
    from hpcm_scale.runs.compare import compare_runs

    rows, different = compare_runs(first, second)
    if different is None:
        console.print(f"equal: {rows} rows of metrics, bit for bit", highlight=False)
        return
    one, other = different.values
    console.print(
        f"different: {different.field} of the {different.kind} row after step {different.step} "
        f"is {one} and {other}",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(1)
