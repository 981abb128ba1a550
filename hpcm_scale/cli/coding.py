"""Verbs that code pictures."""

import typer

from hpcm_scale.cli.program import app, bytes_of, check_threads, checked_engine

MODELS, MACHINE = "Models", "Machine"
"""Panels of the help, behind the options that people need most."""
DEVICE = typer.Option(
    "cpu",
    help="Where the network runs: cpu, cuda, cuda:1, ...",
    rich_help_panel=MACHINE,
)
ENGINE = typer.Option(
    None,
    help="What computes: torch, or numpy; torch where it is installed.",
    rich_help_panel=MACHINE,
)
DECODER = typer.Option(
    None,
    "--engine",
    help="What computes: torch, or numpy; by default the one that is done first, start included.",
    rich_help_panel=MACHINE,
)
THREADS = typer.Option(
    None,
    min=1,
    help="CPU threads of each job; all cores, shared out, by default.",
    rich_help_panel=MACHINE,
)
MEMORY = typer.Option(
    2.0,
    min=0.05,
    help="GiB the network may work in, in each job.",
    rich_help_panel=MACHINE,
)
STRIP = typer.Option(
    False, "--strip", help="Leave out EXIF, XMP, resolution and colour tags; keep the profile."
)
FORCE = typer.Option(False, "--force", help="Replace results that are there already.")


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
    quality: float | None = typer.Option(
        None, "-q", "--quality", help="1 for the smallest file to 100 for the best picture [50]"
    ),
    size: str | None = typer.Option(None, help="Bytes the file may have, such as 200KB."),
    bpp: float | None = typer.Option(None, help="Bits a pixel that the file may have."),
    psnr: float | None = typer.Option(None, help="dB that the decoded picture has at least."),
    total_size: str | None = typer.Option(
        None, help="Bytes that all files together may have, at one quality."
    ),
    progressive: bool = typer.Option(
        False,
        "--progressive",
        help="Let the file's beginning give a preview, for 12 bytes or so.",
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Decode each result before writing it, and compare."
    ),
    strip: bool = STRIP,
    skip_existing: bool = typer.Option(
        False, "--skip-existing", help="Leave out pictures whose result is there already."
    ),
    force: bool = FORCE,
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
    exact_pixels: bool | None = typer.Option(
        None,
        "--exact-pixels/--no-exact-pixels",
        help="The same pixels on every machine, to the last bit; the default where models can.",
        rich_help_panel=MODELS,
        show_default=False,
    ),
    device: str = DEVICE,
    engine: str | None = ENGINE,
    threads: int | None = THREADS,
    memory: float = MEMORY,
) -> None:
    """Compress pictures to .hpcm files, which decode to the same symbols on every machine."""
    from hpcm_scale.codec.aim import NO_AIM, Aim
    from hpcm_scale.codec.commands import ArithmeticOptions, FileOptions, encode_files
    from hpcm_scale.errors import ConfigError
    from hpcm_scale.units import parse_size

    most = None if size is None else parse_size("--size", size)
    total = None if total_size is None else parse_size("--total-size", total_size)
    aim = Aim(quality, most, bpp, psnr)
    if total is not None and aim != NO_AIM:
        raise ConfigError("--total-size: give it without --quality, --size, --bpp and --psnr")
    options = FileOptions(
        output,
        force,
        skip_existing,
        strip,
        verbose,
        *checked_engine(engine, device, threads),
        bytes_of(memory),
        jobs,
        threads,
    )
    arithmetic = ArithmeticOptions(not fast, exact_pixels)
    encode_files(inputs, options, model, aim, arithmetic, verify, total, progressive)


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
    preview: bool = typer.Option(
        False,
        "--preview",
        help="Show the beginning of progressive files, even if their ends are lacking.",
    ),
    strip: bool = STRIP,
    skip_existing: bool = typer.Option(
        False, "--skip-existing", help="Leave out files whose result is there already."
    ),
    force: bool = FORCE,
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
    device: str = DEVICE,
    engine: str | None = DECODER,
    threads: int | None = THREADS,
    memory: float = MEMORY,
) -> None:
    """Decompress .hpcm files to pictures."""
    from hpcm_scale.codec.commands import FileOptions, decode_files

    cheaper = engine is None and device == "cpu"
    check_threads(threads)
    options = FileOptions(
        output,
        force,
        skip_existing,
        strip,
        verbose,
        *((device, None) if cheaper else checked_engine(engine, device, threads)),
        bytes_of(memory),
        jobs,
        threads,
    )
    decode_files(inputs, options, model, preview)
