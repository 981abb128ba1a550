"""Verbs that code pictures."""

from pathlib import Path

import typer

from hpcm_scale.cli.program import app, bytes_of, checked_device, console


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

    encode_files(
        inputs, output, model, checked_device(device, threads), bytes_of(memory), verify, verbose
    )


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
