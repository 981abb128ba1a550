"""Verbs on models and model files."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hpcm_scale.cli.program import app, console

if TYPE_CHECKING:
    from hpcm_scale.config import ModelConfig
    from hpcm_scale.models.complexity import Share
    from hpcm_scale.weights.modelfile import ModelInfo


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
