"""Verbs that pack, list and check datasets."""

from pathlib import Path

import typer

from hpcm_scale.cli.program import app, console


@app.command()
def pack(
    paths: list[str] = typer.Argument(
        metavar="[SOURCE] OUT",
        help="A folder of images or a quoted glob (the recipe's by default); the dataset's folder.",
    ),
    recipe: Path | None = typer.Option(None, help="A recipe: shards/*.yaml."),
    part: str = typer.Option("1/1", help="Pack chunks i, i+n, ... only, as i/n: one host of n."),
    append: bool = typer.Option(
        False,
        "--append",
        help="Add to a packed dataset the images it does not have; its shards and split stay.",
    ),
    strict: bool = typer.Option(False, "--strict", help="Stop at the first corrupt image."),
    jobs: int | None = typer.Option(None, min=1, help="Processes; all cores by default."),
) -> None:
    """Pack a folder of images into tar shards with a manifest.

    Interrupted, run it again: it resumes from the last whole chunk. On n hosts, run it with --part
    1/n ... n/n into one folder (or gather their OUT/chunks in one), then once more without.
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
        append=append,
        strict=strict,
        jobs=jobs,
        console=console,
    )
    if manifest is None:
        console.print(f"part {part} of {out} is packed; when all are, run again without --part")
    else:
        console.print(inspect.summary(manifest))


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
    member: str | None = typer.Option(
        None,
        metavar="ENDING",
        help="Of several images of a key, the one to take: what follows the key in its name, such "
        "as jpg or left.jpg.",
    ),
    all_members: bool = typer.Option(
        False, "--all-members", help="Take every image as a sample of its own (stereo pairs)."
    ),
    key_split: str = typer.Option(
        "auto",
        metavar="auto|first|last",
        help="The dot at which a key ends. auto: the first, as in WebDataset, but frame.0001.jpg, "
        "frame.0002.jpg are samples each.",
    ),
    jobs: int | None = typer.Option(None, min=1, help="Processes; all cores by default."),
) -> None:
    """Give a manifest to tars made elsewhere, without rewriting them.

    Of several images of one key the plainest ending is taken: jpg, not depth.png. What is not taken
    is counted, with an example.
    """
    from hpcm_scale.data import inspect
    from hpcm_scale.data.index import index
    from hpcm_scale.data.tar_samples import Choice
    from hpcm_scale.errors import ConfigError, printable

    if key_split not in ("auto", "first", "last"):
        raise ConfigError(f"--key-split: {key_split!r} is not one of auto, first, last")
    if member is not None and all_members:
        raise ConfigError("--member: takes one image of each key, --all-members all; give one")
    choice = Choice(member and member.lstrip("."), all_members, key_split)
    manifest = index(folder, val=val, min_side=min_side, choice=choice, jobs=jobs, console=console)
    console.print(inspect.summary(manifest))
    for kind, example in manifest.report["examples"].items():
        text = f"left out, {kind}: {manifest.report['skipped'][kind]}, such as {example}"
        console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
