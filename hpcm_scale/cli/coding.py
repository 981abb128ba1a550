"""Verbs that code pictures."""

import typer

from hpcm_scale.cli.program import app, bytes_of, checked_device

MODELS, MACHINE = "Models", "Machine"
"""Panels of the help, behind the options that people need most."""


def model_names(incomplete: str) -> list[str]:
    """Names of models that begin so, for the shell to complete."""
    from hpcm_scale.codec.find_model import Catalogue

    return [name for name in Catalogue().names() if name.startswith(incomplete)]


@app.command()
def encode(
    inputs: list[str] = typer.Argument(
        help="Pictures (PNG, JPEG, WebP, AVIF, TIFF, ...), folders of them, or - for a pipe.",
    ),
    output: str | None = typer.Option(
        None,
        "-o",
        "--output",
        help="File, folder or -; beside each input by default.",
    ),
    quality: int | None = typer.Option(
        None, "-q", "--quality", min=1, help="1 for the lowest rate there is a model for, 2, ..."
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Decode each result before writing it, and compare."
    ),
    strip: bool = typer.Option(
        False, "--strip", help="Leave out EXIF, XMP, resolution and colour tags; keep the profile."
    ),
    skip_existing: bool = typer.Option(
        False, "--skip-existing", help="Leave out pictures whose result is there already."
    ),
    force: bool = typer.Option(False, "--force", help="Replace results that are there already."),
    jobs: int = typer.Option(1, "-j", "--jobs", min=1, help="Pictures at once."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Where time and bits went."),
    model: str | None = typer.Option(
        None,
        "-m",
        "--model",
        help="Model file, or the name of one in the folder HPCM_MODELS or of a bundled one.",
        rich_help_panel=MODELS,
        autocompletion=model_names,
    ),
    fast: bool = typer.Option(
        False,
        "--fast",
        help="Floating-point arithmetic: certain to decode only on a machine like this one.",
        rich_help_panel=MODELS,
    ),
    device: str = typer.Option(
        "cpu",
        help="Where the network runs: cpu, cuda, cuda:1, ...",
        rich_help_panel=MACHINE,
    ),
    threads: int | None = typer.Option(
        None,
        min=1,
        help="CPU threads of each job; all cores, shared out, by default.",
        rich_help_panel=MACHINE,
    ),
    memory: float = typer.Option(
        2.0,
        min=0.05,
        help="GiB the network may work in, in each job.",
        rich_help_panel=MACHINE,
    ),
) -> None:
    """Compress pictures to .hpcm files, which decode to the same symbols on every machine."""
    from hpcm_scale.codec.commands import FileOptions, encode_files

    options = FileOptions(
        output,
        force,
        skip_existing,
        strip,
        verbose,
        checked_device(device, threads),
        bytes_of(memory),
        jobs,
        threads,
    )
    encode_files(inputs, options, model, quality, fast, verify)


@app.command()
def decode(
    inputs: list[str] = typer.Argument(
        help="Files made by encode, folders of them, or - for a pipe.",
    ),
    output: str | None = typer.Option(
        None,
        "-o",
        "--output",
        help="File, folder or -; its extension chooses the format, PNG by default.",
    ),
    strip: bool = typer.Option(
        False, "--strip", help="Leave out EXIF, XMP, resolution and colour tags; keep the profile."
    ),
    skip_existing: bool = typer.Option(
        False, "--skip-existing", help="Leave out files whose result is there already."
    ),
    force: bool = typer.Option(False, "--force", help="Replace results that are there already."),
    jobs: int = typer.Option(1, "-j", "--jobs", min=1, help="Files at once."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Where time went."),
    model: str | None = typer.Option(
        None,
        "-m",
        "--model",
        help="Model file or name; found by identity in HPCM_MODELS and among the bundled ones.",
        rich_help_panel=MODELS,
        autocompletion=model_names,
    ),
    device: str = typer.Option(
        "cpu",
        help="Where the network runs: cpu, cuda, cuda:1, ...",
        rich_help_panel=MACHINE,
    ),
    threads: int | None = typer.Option(
        None,
        min=1,
        help="CPU threads of each job; all cores, shared out, by default.",
        rich_help_panel=MACHINE,
    ),
    memory: float = typer.Option(
        2.0,
        min=0.05,
        help="GiB the network may work in, in each job.",
        rich_help_panel=MACHINE,
    ),
) -> None:
    """Decompress .hpcm files to pictures."""
    from hpcm_scale.codec.commands import FileOptions, decode_files

    options = FileOptions(
        output,
        force,
        skip_existing,
        strip,
        verbose,
        checked_device(device, threads),
        bytes_of(memory),
        jobs,
        threads,
    )
    decode_files(inputs, options, model)
