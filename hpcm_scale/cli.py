"""The program `hpcm-scale`: each verb is a thin call into one folder of the package.

Heavy imports stay inside the verbs, so that `hpcm-scale --help` and the fits do not wait for torch.
"""

import sys

import typer
from rich.console import Console
from rich.text import Text

from hpcm_scale import __version__
from hpcm_scale.errors import HpcmError

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


def main() -> None:
    """Entry point: a user's error becomes one line on stderr and exit code 2."""
    try:
        app()
    except HpcmError as error:
        line = Text.assemble(("hpcm-scale: ", "red"), " ".join(str(error).split()))
        errors.print(line, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
