"""Verbs that code pictures."""

import typer

from hpcm_scale.cli.program import app, bytes_of, checked_device


@app.command()
def encode(
    inputs: list[str] = typer.Argument(help="Pictures (PNG, JPEG, WebP, ...); - for a pipe."),
    output: str | None = typer.Option(
        None, "-o", "--output", help="File, folder or -; beside each input by default."
    ),
    quality: int | None = typer.Option(
        None, "-q", "--quality", min=1, help="1 for the lowest rate there is a model for, 2, ..."
    ),
    model: str | None = typer.Option(
        None, "-m", "--model", help="Model file, or its name in the folder HPCM_MODELS."
    ),
    fast: bool = typer.Option(
        False,
        "--fast",
        help="Floating-point arithmetic: certain to decode only on a machine like this one.",
    ),
    verify: bool = typer.Option(False, "--verify", help="Decode the result before writing it."),
    device: str = typer.Option("cpu", help="Where the network runs: cpu, cuda, cuda:1, ..."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
    memory: float = typer.Option(2.0, min=0.05, help="GiB the network may work in."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Where time and bits went."),
) -> None:
    """Compress pictures to .hpcm files, which decode to the same symbols on every machine."""
    from hpcm_scale.codec.commands import encode_files

    device = checked_device(device, threads)
    encode_files(inputs, output, model, device, bytes_of(memory), verify, verbose, fast, quality)


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

    decode_files(inputs, output, model, checked_device(device, threads), bytes_of(memory), verbose)
