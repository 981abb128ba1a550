"""Verbs that measure speed on this machine."""

from functools import partial
from pathlib import Path

import typer

from hpcm_scale.cli.program import app, bytes_of, checked_device, console

bench = typer.Typer(help="Measure speed on this machine, as ratios within one run.")
app.add_typer(bench, name="bench")


@bench.command("data")
def bench_data(
    dataset: str = typer.Argument(help="Folder of a dataset."),
    crop: int = typer.Option(256, min=1, help="Side of the crops."),
    images: int = typer.Option(256, min=1, help="Images a measurement takes."),
    repeats: int = typer.Option(3, min=1, help="Measurements of each loader; medians are shown."),
) -> None:
    """Images/s of the training stream, of plain webdataset and of a folder, 0 to 2 workers.

    And how long it takes to resume late in an epoch of a million samples.
    """
    from hpcm_scale.bench.data import bench_data, bench_resume

    console.print(bench_data(dataset, crop, images, repeats, workers=[0, 1, 2]))
    console.print(bench_resume(dataset, crop))


@bench.command("model")
def bench_model(
    variant: str = typer.Argument("base", help="A variant of configs/models."),
    width: float = typer.Option(1.0, help="Width multiplier."),
    size: str = typer.Option("768x512", help="Picture size, as WIDTHxHEIGHT."),
    repeats: int = typer.Option(5, min=1, help="Measurements; medians are shown."),
    train: bool = typer.Option(True, help="Also a training step of 4 crops of 256x256."),
    compiled: bool = typer.Option(False, "--compile", help="Transforms through torch.compile."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
) -> None:
    """Time a network part by part, with random weights, against the rates of large products."""
    from hpcm_scale.bench.model import bench_model
    from hpcm_scale.errors import ConfigError
    from hpcm_scale.models.zoo import model_config

    checked_device("cpu", threads)
    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise ConfigError(f"--size: {size!r} is not WIDTHxHEIGHT")
    columns, rows = map(int, sides)
    config = model_config(variant, width)
    console.print(bench_model(config, columns, rows, repeats, train, compiled))


@bench.command("train")
def bench_train(
    variant: str = typer.Argument("base", help="A variant of configs/models."),
    width: float = typer.Option(1.0, help="Width multiplier."),
    batch: int = typer.Option(4, min=1, help="Crops of a step."),
    crop: int = typer.Option(256, min=64, help="Side of the crops."),
    repeats: int = typer.Option(5, min=1, help="Measured steps of each; medians are shown."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
) -> None:
    """Training steps through DeepSpeed against a bare PyTorch loop and large products."""
    import torch

    from hpcm_scale.bench.train import bench_train
    from hpcm_scale.config import ModelChoice

    choice = ModelChoice(variant=variant, width=width)
    table = bench_train(choice, batch, crop, repeats, threads or torch.get_num_threads())
    console.print(table)


@bench.command("coordinates")
def bench_coordinates(
    variant: str = typer.Argument("base", help="A variant of configs/models."),
    widths: str = typer.Option("0.05,0.075,0.1,0.15,0.25", help="Width multipliers."),
    base_width: float = typer.Option(0.1, min=1e-3, help="The one that mup takes for its base."),
    seeds: int = typer.Option(8, min=1, help="Networks of each width."),
    steps: int = typer.Option(4, min=1, help="Training steps."),
    lr: float = typer.Option(2e-4, min=1e-9, help="Learning rate."),
    eps: float = typer.Option(1e-8, min=0, help="Adam's epsilon; the trainer's by default."),
    only: str = typer.Option(None, help="standard or mup; both by default."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
) -> None:
    """Check that learning rates transfer: what a few steps change in each layer, by width."""
    from hpcm_scale.bench.coordinates import PARAMETRIZATIONS, Check, measure, table
    from hpcm_scale.errors import ConfigError

    checked_device("cpu", threads)
    try:
        chosen = tuple(float(width) for width in widths.split(","))
    except ValueError:
        raise ConfigError(f"--widths: {widths!r} is not a list of numbers") from None
    if len(chosen) < 2 or min(chosen) <= 0:
        raise ConfigError(f"--widths: {widths!r} is not two or more numbers above 0")
    if only not in (None, *PARAMETRIZATIONS):
        raise ConfigError(f"--only: {only!r} is not one of {', '.join(PARAMETRIZATIONS)}")
    check = Check(variant, chosen, base_width, seeds, steps, lr, eps=eps)
    for parametrization in PARAMETRIZATIONS:
        if only in (None, parametrization):
            console.print(table(measure(check, parametrization), check, parametrization))


@bench.command("gpu")
def bench_gpu(
    out: Path = typer.Argument(Path("runs/gpu-check"), help="Folder of report, record and runs."),
    name: str | None = typer.Option(
        None, help="Also keep the record as launch/records/NAME.json, where `plan` finds it."
    ),
) -> None:
    """Everything a machine with a GPU has to prove, under an hour; a CPU does it smaller.

    Doctor, parity with the CPU, exact files, ZeRO stages, kill and resume, step times with and
    without graphs, memory, data. Exit code 1 if a check fails.
    """
    from hpcm_scale.bench.gpu_check import GpuCheck, plan_here
    from hpcm_scale.planning.measured import RECORDS

    say = partial(console.print, highlight=False, markup=False)
    record = GpuCheck(plan_here(), out.absolute(), say).run()
    if name is not None:
        RECORDS.mkdir(parents=True, exist_ok=True)
        record.save(RECORDS / f"{name}.json")
    console.print(f"{out / 'report.html'}, {out / 'record.json'}")
    if not all(check.passed for check in record.checks):
        raise typer.Exit(1)


@bench.command("codec")
def bench_codec(
    pictures: list[str] = typer.Argument(help="Pictures of one size."),
    model: str | None = typer.Option(None, "-m", "--model", help="Model file or name."),
    repeats: int = typer.Option(3, min=1, help="Times each is coded; medians are shown."),
    portable: bool = typer.Option(
        True, "--portable/--fast", help="Exact arithmetic beside floating point, or only the last."
    ),
    device: str = typer.Option("cpu", help="Where the network runs."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
    memory: float = typer.Option(2.0, min=0.05, help="GiB the network may work in."),
    busy: int = typer.Option(
        0, min=0, help="Also beside so many busy processes: what shared cores cost."
    ),
) -> None:
    """Encode and decode times, in parts, against the rates of large products."""
    from hpcm_scale.bench.codec import bench_files

    device = checked_device(device, threads)
    memory_bytes = bytes_of(memory)
    console.print(bench_files(pictures, model, repeats, device, memory_bytes, portable, busy))
