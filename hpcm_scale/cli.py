"""The program `hpcm-scale`: each verb is a thin call into one folder of the package.

Heavy imports stay inside the verbs, so that `hpcm-scale --help` and the fits do not wait for torch.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from hpcm_scale import __version__
from hpcm_scale.errors import HpcmError

if TYPE_CHECKING:
    from hpcm_scale.config import ModelConfig
    from hpcm_scale.models.complexity import Share
    from hpcm_scale.weights.modelfile import ModelInfo

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


@app.command()
def pack(
    paths: list[str] = typer.Argument(
        metavar="[SOURCE] OUT",
        help="A folder of images or a quoted glob (or the recipe's), and the dataset's folder.",
    ),
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
    from hpcm_scale.errors import ConfigError

    if len(paths) > 2:
        raise ConfigError(f"pack takes [SOURCE] OUT, not {len(paths)} paths; quote a glob")
    *source, out = paths
    manifest = pack(
        source[0] if source else None,
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


@app.command()
def encode(
    inputs: list[str] = typer.Argument(help="Pictures (PNG, JPEG, WebP, ...); - for a pipe."),
    output: str | None = typer.Option(
        None, "-o", "--output", help="File, folder or -; beside each input by default."
    ),
    model: str | None = typer.Option(
        None, "-m", "--model", help="Model file, or its name in the folder HPCM_MODELS."
    ),
    verify: bool = typer.Option(False, "--verify", help="Decode the result before writing it."),
    device: str = typer.Option("cpu", help="Where the network runs: cpu, cuda, cuda:1, ..."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
    memory: float = typer.Option(2.0, min=0.05, help="GiB the network may work in."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Where time and bits went."),
) -> None:
    """Compress pictures to .hpcm files."""
    from hpcm_scale.codec.commands import encode_files

    encode_files(inputs, output, model, _device(device, threads), _bytes(memory), verify, verbose)


@app.command()
def decode(
    inputs: list[str] = typer.Argument(help="Files made by encode; - for a pipe."),
    output: str | None = typer.Option(
        None, "-o", "--output", help="File, folder or -; its extension chooses the format."
    ),
    model: str | None = typer.Option(
        None, "-m", "--model", help="Model file or name; found by identity in HPCM_MODELS."
    ),
    device: str = typer.Option("cpu", help="Where the network runs: cpu, cuda, cuda:1, ..."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
    memory: float = typer.Option(2.0, min=0.05, help="GiB the network may work in."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Where time went."),
) -> None:
    """Decompress .hpcm files to pictures."""
    from hpcm_scale.codec.commands import decode_files

    decode_files(inputs, output, model, _device(device, threads), _bytes(memory), verbose)


@app.command()
def compare(
    original: Path = typer.Argument(help="A picture."),
    reconstruction: Path = typer.Argument(help="What became of it."),
    out: Path = typer.Option(Path("side_by_side.png"), "-o", "--out", help="Picture to write."),
) -> None:
    """Measure a reconstruction against its original and put them side by side."""
    from hpcm_scale.evaluation.compare import compare, save

    result = compare(original, reconstruction)
    save(result, out)
    console.print(
        f"{original.name} and {reconstruction.name}: {result.psnr:.2f} dB -> {out}",
        highlight=False,
        soft_wrap=True,
    )


def _bytes(gib: float) -> int:
    return int(gib * 2**30)


def _device(name: str, threads: int | None) -> str:
    """The device by that name, checked, with torch's threads set."""
    import torch

    from hpcm_scale.errors import ConfigError

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device: {name!r} cannot be used ({reason})") from None
    return name


@app.command()
def export(
    run: Path = typer.Argument(help="A run's folder."),
    target: Path = typer.Argument(help="The .safetensors file to write."),
) -> None:
    """Gather a run's newest checkpoint into one model file, with its frozen coding tables."""
    from hpcm_scale.weights.export import export_run

    _say_written(str(run), target, export_run(run, target))


@app.command("import")
def import_(
    checkpoint: Path = typer.Argument(help="A published checkpoint: .pth.tar or .safetensors."),
    target: Path = typer.Argument(help="The .safetensors file to write."),
    variant: str = typer.Option(help="Which network it holds: base, large, phi or 1b."),
    lmbda: float | None = typer.Option(None, "--lambda", help="The λ it was trained for."),
) -> None:
    """Turn a published HPCM checkpoint into a model file."""
    from hpcm_scale.weights.official import import_published

    written = import_published(checkpoint, variant, target, lmbda)
    _say_written(str(checkpoint), target, written)


def _say_written(source: str, target: Path, written: "ModelInfo") -> None:
    """The line about a model file just written."""
    megabytes = target.stat().st_size / 1e6
    console.print(
        f"{source} -> {target}  {megabytes:.1f} MB  model {written.label}  {written.identity[:16]}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def info(
    target: str = typer.Argument(help="A variant of configs/models, or a model or .hpcm file."),
    width: float = typer.Option(1.0, help="Width dial, for a variant."),
    depth: float = typer.Option(1.0, help="Depth dial, for a variant."),
) -> None:
    """Say what a file is, or count a variant's parameters and arithmetic."""
    from hpcm_scale.errors import ConfigError
    from hpcm_scale.models.zoo import model_config, variants

    if target in variants() or target.endswith((".yaml", ".yml")):
        from hpcm_scale.models.complexity import complexity_table

        config = model_config(target, width, depth)
        _complexity(complexity_table(config), config)
        return
    if not Path(target).is_file():
        names = ", ".join(variants())
        raise ConfigError(f"{target}: is neither a file nor one of the variants {names}")
    from hpcm_scale.codec.commands import describe

    for field, value in describe(target):
        console.print(f"{field:>18}  {value}", highlight=False, markup=False, soft_wrap=True)


def _complexity(shares: "list[Share]", config: "ModelConfig") -> None:
    """Print the complexity table of a network, against the papers' figures where they give them."""
    from rich.table import Table

    table = Table("part", title=config.name)
    table.add_column("parameters (M)", justify="right")
    table.add_column("kMACs/pixel", justify="right")
    for share in shares:
        style = "bold" if share.part.startswith(("sum", "as the papers")) else None
        millions, kmacs = f"{share.parameters / 1e6:.3f}", f"{share.kmacs_per_pixel:.2f}"
        table.add_row(share.part, millions, kmacs, style=style)
    if config.published:
        printed, counted = config.published, shares[-1]
        table.add_section()
        pairs = (
            (printed.parameters_m, counted.parameters / 1e6),
            (printed.kmacs_per_pixel, counted.kmacs_per_pixel),
        )
        table.add_row("the papers print", *("" if p is None else f"{p:.2f}" for p, _ in pairs))
        table.add_row(
            "difference", *("" if p is None else f"{100 * (c / p - 1):+.3f} %" for p, c in pairs)
        )
    console.print(table)


@app.command()
def verify(
    dataset: str = typer.Argument(help="Folder of a dataset."),
    jobs: int | None = typer.Option(None, min=1, help="Processes; all cores by default."),
) -> None:
    """Check every byte, offset and image of a dataset against its manifest."""
    from hpcm_scale.data.verify import verify
    from hpcm_scale.errors import DataError

    problems = verify(dataset, jobs=jobs, console=console)
    for problem in problems:
        console.print(f"{problem}", highlight=False, markup=False, soft_wrap=True)
    if problems:
        raise DataError(f"{dataset}: {len(problems)} problems")
    console.print(f"{dataset}: every shard and image is what the manifest says")


@app.command()
def inspect(
    dataset: str = typer.Argument(help="Folder or URL of a dataset."),
    sheet: Path = typer.Option(Path("contact_sheet.png"), help="Contact sheet to write."),
) -> None:
    """Show what a dataset holds: counts, sizes, and a contact sheet (of a local one)."""
    from hpcm_scale.data import inspect
    from hpcm_scale.data.remote import is_remote
    from hpcm_scale.data.shards import read_manifest

    manifest = read_manifest(dataset)
    console.print(inspect.summary(manifest))
    console.print(inspect.side_histogram(manifest))
    if not is_remote(dataset):
        count = inspect.contact_sheet(dataset, manifest, sheet)
        console.print(f"{sheet}: {count} images")


@app.command()
def index(
    folder: Path = typer.Argument(help="A folder of WebDataset tars, such as img2dataset's."),
    val: str | None = typer.Option(None, help="Glob of the tars kept for validation."),
    min_side: int = typer.Option(256, min=1, help="Images with a shorter side are not listed."),
    jobs: int | None = typer.Option(None, min=1, help="Processes; all cores by default."),
) -> None:
    """Give a manifest to tars made elsewhere, without rewriting them."""
    from hpcm_scale.data import inspect
    from hpcm_scale.data.index import index

    manifest = index(folder, val=val, min_side=min_side, jobs=jobs, console=console)
    console.print(inspect.summary(manifest))


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
    from hpcm_scale.data.bench import bench_data, bench_resume

    console.print(bench_data(dataset, crop, images, repeats, workers=[0, 1, 2]))
    console.print(bench_resume(dataset, crop))


@bench.command("model")
def bench_model(
    variant: str = typer.Argument("base", help="A variant of configs/models."),
    width: float = typer.Option(1.0, help="Width dial."),
    size: str = typer.Option("768x512", help="Picture size, as WIDTHxHEIGHT."),
    repeats: int = typer.Option(5, min=1, help="Measurements; medians are shown."),
    train: bool = typer.Option(True, help="Also a training step of 4 crops of 256x256."),
    compiled: bool = typer.Option(False, "--compile", help="Transforms through torch.compile."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
) -> None:
    """Time a network part by part, with random weights, against the sgemm peak."""
    from hpcm_scale.errors import ConfigError
    from hpcm_scale.models.bench import bench_model
    from hpcm_scale.models.zoo import model_config

    _device("cpu", threads)
    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise ConfigError(f"--size: {size!r} is not WIDTHxHEIGHT")
    columns, rows = map(int, sides)
    config = model_config(variant, width)
    console.print(bench_model(config, columns, rows, repeats, train, compiled))


@bench.command("codec")
def bench_codec(
    pictures: list[str] = typer.Argument(help="Pictures of one size."),
    model: str | None = typer.Option(None, "-m", "--model", help="Model file or name."),
    repeats: int = typer.Option(3, min=1, help="Times each is coded; medians are shown."),
    device: str = typer.Option("cpu", help="Where the network runs."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
    memory: float = typer.Option(2.0, min=0.05, help="GiB the network may work in."),
) -> None:
    """Encode and decode times, by network and entropy coding, against the sgemm peak."""
    from hpcm_scale.codec.bench import bench_files

    device = _device(device, threads)
    console.print(bench_files(pictures, model, repeats, device, _bytes(memory)))


def main() -> None:
    """Entry point: a user's error becomes one line on stderr and exit code 2."""
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
    except (HpcmError, OSError) as error:  # a full disk or a read-only folder is no bug either
        line = Text.assemble(("hpcm-scale: ", "red"), " ".join(str(error).split()))
        errors.print(line, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
