"""Verbs on models and model files."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hpcm_scale.cli.program import app, console

if TYPE_CHECKING:
    from hpcm_scale.config import ModelConfig
    from hpcm_scale.models.complexity import Share
    from hpcm_scale.weights.model_file import ModelInfo


@app.command()
def export(
    run: Path = typer.Argument(help="A run's folder."),
    target: Path = typer.Argument(help="The .safetensors file to write."),
    checkpoint: str = typer.Option(
        None, help="A checkpoint of the run, such as step-00000150 [default: the newest]"
    ),
    weights: str = typer.Option(
        None, help="ema or raw: moving average or last weights [default: ema if the run has one]"
    ),
    shard_size: str = typer.Option(
        None, help="Bytes a file may hold, such as 5GB; more goes into shards with an index."
    ),
    half: bool = typer.Option(False, "--half", help="Round to float16, for half of the size."),
    in_bytes: bool = typer.Option(
        False,
        "--bytes",
        help="Also the weights that coding takes as bytes: a third, of HPCM models.",
    ),
    check: bool = typer.Option(
        True, help="Compare the model's validation loss with the run's before it is put in place."
    ),
) -> None:
    """Write a checkpoint of a run as a model file, with its frozen coding tables."""
    from hpcm_scale.errors import ConfigError
    from hpcm_scale.training.export import export_run
    from hpcm_scale.units import parse_size

    if weights not in (None, "ema", "raw"):
        raise ConfigError(f"--weights: {weights!r} is neither ema nor raw")
    limit = None if shard_size is None else parse_size("--shard-size", shard_size)
    doing = "writing and comparing its validation loss (--no-check leaves it out)"
    with console.status(f"{target}: {doing if check else 'writing'}"):
        done = export_run(
            run,
            target,
            step=checkpoint,
            weights=weights,
            shard_size=limit,
            half=half,
            in_bytes=in_bytes,
            check=check,
        )
    source = f"{done.checkpoint} ({'moving average' if done.weights == 'ema' else 'weights'})"
    _say_written(source, done.info, done.check)


@app.command("import")
def import_(
    checkpoint: Path = typer.Argument(help="A published checkpoint: .pth.tar or .safetensors."),
    target: Path = typer.Argument(help="The .safetensors file to write."),
    variant: str | None = typer.Option(
        None, help="Which network it holds; found from its tensors if not given."
    ),
    lmbda: float | None = typer.Option(None, "--lambda", help="The λ it was trained for."),
) -> None:
    """Turn a published HPCM checkpoint into a model file."""
    from hpcm_scale.weights.published import import_published

    imported = import_published(checkpoint, variant, target, lmbda)
    _say_written(str(checkpoint), imported.info)
    for note in imported.notes:
        console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True)


def _say_written(source: str, written: "ModelInfo", remark: str = "") -> None:
    """The line about a model file just written."""
    from hpcm_scale.weights.stored_model import files_of

    files = files_of(written.path)
    shards = f" and {len(files) - 1} shards" if len(files) > 1 else ""
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    console.print(
        f"{source} -> {written.path}{shards}  {megabytes:.1f} MB  model {written.label}  "
        f"{written.identity[:16]}  {remark}".rstrip(),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command()
def info(
    target: str = typer.Argument(
        help="A variant of configs/models, or a picture, .hpcm or model file; - for a pipe."
    ),
    width: float = typer.Option(1.0, help="Width multiplier, for a variant."),
    depth: float = typer.Option(1.0, help="Depth multiplier, for a variant."),
) -> None:
    """Say what a file is, or count a variant's parameters and arithmetic."""
    from hpcm_scale.config.variants import model_config, variants
    from hpcm_scale.errors import ConfigError

    if target in variants() or target.endswith((".yaml", ".yml")):
        from hpcm_scale.models.complexity import complexity_table

        config = model_config(target, width, depth)
        _complexity(complexity_table(config), config)
        return
    if target != "-" and not Path(target).is_file():
        names = ", ".join(variants())
        raise ConfigError(f"{target}: is neither a file nor one of the variants {names}")
    from hpcm_scale.codec.describe import describe

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
