"""The verb that checks an engine against the conformance kit."""

from pathlib import Path

import typer

from hpcm_scale.cli.program import app, checked_engine, console


@app.command()
def conform(
    engine: str | None = typer.Option(
        None, help="What computes: torch, or numpy; torch where it is installed."
    ),
    write: Path | None = typer.Option(
        None, "--write", metavar="FOLDER", help="Write the kit out, for another decoder; no check."
    ),
    device: str = typer.Option("cpu", help="Where the network runs: cpu, cuda, cuda:1, ..."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all cores by default."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Also name the files that pass."),
) -> None:
    """Decode files whose every symbol is known, and name the first step that differs in each."""
    import re

    from hpcm_scale.conformance.check import check_kit
    from hpcm_scale.conformance.kit import FOLDER, PEERS, write_out
    from hpcm_scale.errors import DataError

    if write is not None:
        if write.exists():
            raise DataError(f"--write: {write} is there already; name a folder that is not")
        write_out(FOLDER, write)
        write_out(PEERS, write / PEERS.name)
        package = FOLDER.parents[1]
        for page in ("conformance/CONFORMANCE.md", "codec/FORMAT.md", "entropy/EXACT.md"):
            text = (package / page).read_text(encoding="utf-8")
            # They link to each other from folder to folder; there they lie side by side.
            text = re.sub(r"\(\.\./\w+/(\w+\.md)\)", r"(\1)", text)
            (write / Path(page).name).write_text(text, encoding="utf-8")
        console.print(f"{write}: models, files, expected.json and pages", highlight=False)
        return
    device, name = checked_engine(engine, device, threads)
    done = failed = 0
    for checked in check_kit(name, device):
        done += 1
        failed += checked.fault is not None
        if checked.fault is not None or verbose:
            console.print(
                f"{checked.name}: {checked.fault or 'as it should be'}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    if failed:
        raise DataError(f"conform: {failed} of {done} files differ, by engine {name}")
    console.print(f"{done} files are as they should be, by engine {name}", highlight=False)
