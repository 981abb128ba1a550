"""The verb that explains a configuration."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from hpcm_scale.cli.program import app, console


@app.command()
def config(
    run: Path | None = typer.Argument(None, help="A run's YAML file; without: every field."),
    changes: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="A field over the file, dotted. May be repeated."
    ),
    everything: bool = typer.Option(
        False, "--all", help="Also the fields that stand at their defaults."
    ),
    markdown: bool = typer.Option(
        False, "--markdown", hidden=True, help="Every field as the page FIELDS.md."
    ),
) -> None:
    """Print a run's resolved configuration: each field's value, default and meaning."""
    from rich.padding import Padding
    from rich.text import Text

    from hpcm_scale.config import RunConfig, load_run

    if markdown:
        typer.echo(page())
        return
    values = {} if run is None else load_run(run, changes).model_dump(mode="json")
    for name, default, meaning in fields(RunConfig):
        value = _at(values, name) if run is not None else default
        if value == default and run is not None and not everything:
            continue
        line = Text(name, "bold")
        line.append(f" = {_shown(value)}" if run is not None else "", "")
        if run is None or value != default:
            line.append(f"  (default: {_shown(default)})", "dim")
        console.print(line, soft_wrap=True, highlight=False)
        console.print(Padding(Text(meaning), (0, 0, 0, 4)))


def page() -> str:
    """Every field of a run and of a ladder, in Markdown."""
    from hpcm_scale.config import LadderConfig, RunConfig

    lines = ["# Every field of a configuration", "", "Written by `hpcm-scale config --markdown`."]
    for title, kind in (
        ("A run (configs/runs)", RunConfig),
        ("A ladder (configs/ladders)", LadderConfig),
    ):
        lines += ["", f"## {title}", "", "| field | default | meaning |", "|---|---|---|"]
        for name, default, meaning in fields(kind):
            meaning = meaning.replace("|", "\\|")
            lines.append(f"| `{name}` | {_shown(default)} | {meaning} |")
    return "\n".join(lines)


def fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted name, default and meaning of every field of a configuration, sections entered."""
    from pydantic_core import PydanticUndefined

    from hpcm_scale.config.meanings import meanings
    from hpcm_scale.config.strict import section_of

    said = meanings(kind)
    for name, field in kind.model_fields.items():
        section = section_of(kind, name)
        if section is not None:
            yield from fields(section, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        default = "required" if default is PydanticUndefined else default
        if isinstance(default, tuple):
            default = list(default)
        yield f"{prefix}{name}", default, said.get(name, "")


def _at(values: Mapping[str, Any], dotted: str) -> Any:
    for key in dotted.split("."):
        values = values[key]
    return values


def _shown(value: Any) -> str:
    import yaml

    return (
        yaml.safe_dump(
            value if not isinstance(value, Path) else str(value), default_flow_style=True
        )
        .split("\n...")[0]
        .strip()
    )
