"""Strict pydantic models: unknown keys are errors, a bad value is named in one line."""

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, ParamSpec, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpcm_scale.errors import ConfigError

log = logging.getLogger(__name__)

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class StrictModel(BaseModel):
    """Unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Name of a field in version 0.1 -> its name now. The old names are read for one version."""
    templates: ClassVar[Mapping[str, "type[StrictModel]"]] = {}
    """Fields with values of another model that is validated later, such as a ladder's run."""


T = TypeVar("T", bound=StrictModel)


P = ParamSpec("P")
R = TypeVar("R")


def cached(function: Callable[P, R]) -> Callable[P, R]:
    """Keep the results of `function` for the arguments it was last called with.

    `lru_cache` for functions of frozen models, which type checkers take for unhashable.
    """
    return lru_cache(maxsize=256)(function)  # pyright: ignore[reportReturnType]


def describe(error: ValidationError, source: str) -> str:
    """One line for a pydantic error: source, dotted field, value and rule."""
    parts = []
    for item in error.errors():
        field = ".".join(str(p) for p in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            parts.append(f"{field}: unknown key")
        elif not field or item["type"] == "value_error":
            parts.append(f"{field}.{message}" if field else message)
        elif item["type"] == "missing":
            parts.append(f"{field}: is required")
        else:
            parts.append(f"{field}: {item['input']!r}: {message[0].lower()}{message[1:]}")
    return f"{source}: " + "; ".join(parts)


def parse(kind: type[T], values: Any, source: str) -> T:
    """Validate `values` as `kind`.

    Raises:
        ConfigError: naming `source`, the field, the value and the rule it breaks.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected keys and values, found {type(values).__name__}")
    try:
        return kind.model_validate(current_names(kind, values, source))
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from None


def current_names(
    kind: type[StrictModel],
    values: Mapping[str, Any],
    source: str,
    inside: str = "",
    notice: bool = True,
) -> dict[str, Any]:
    """`values` of a `kind` with renamed fields under their current names.

    Args:
        inside: dotted section that `values` are of, with a dot at its end, for messages.
        notice: whether to warn of each; not for records, which nobody edits.

    Raises:
        ConfigError: if a field is given by both of its names.
    """
    current: dict[str, Any] = {}
    for key, value in values.items():
        name = _current_name(kind, key, source, inside, notice)
        if name != key and name in values:
            raise ConfigError(f"{source}: {inside}{key}: is the old name of {name}, also given")
        section = section_of(kind, name)
        if section is not None and isinstance(value, Mapping):
            value = current_names(section, value, source, f"{inside}{name}.", notice)
        current[name] = value
    return current


def current_key(kind: type[StrictModel], key: str, source: str) -> str:
    """A dotted key of a `kind` with renamed fields under their current names, with a notice."""
    section: type[StrictModel] | None = kind
    names: list[str] = []
    for part in key.split("."):
        if section is not None:
            part = _current_name(section, part, source, "".join(f"{name}." for name in names))
            section = section_of(section, part)
        names.append(part)
    return ".".join(names)


def _current_name(
    kind: type[StrictModel], key: str, source: str, inside: str, notice: bool = True
) -> str:
    name = kind.renamed.get(key, key)
    if name != key and notice:
        was, now = f"{inside}{key}", f"{inside}{name}"
        log.warning("%s: %s is now called %s; the old name is read until 0.3", source, was, now)
    return name


def section_of(kind: type[StrictModel], name: str) -> type[StrictModel] | None:
    """The model of a field that is a section of its own; None for other fields."""
    if name in kind.templates:
        return kind.templates[name]
    field = kind.model_fields.get(name)
    kinds = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, StrictModel)), None)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if the file cannot be read or is not a YAML mapping.
    """
    import yaml  # here: coding a picture reads none

    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level")
    return values


def set_dotted(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Put `value` at the dotted `key` of nested mappings, making those that are missing.

    Raises:
        ConfigError: naming `source`, if a part of the key is a value and not a section.
    """
    section = values
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{source}: {parent} is a value, not a section")
    section[last] = value


def read_changed(
    kind: type[StrictModel], path: Path | str, changes: list[str] | None
) -> dict[str, Any]:
    """The values of a `kind` in a YAML file with `section.key=value` over them.

    Renamed fields come under their current names, so that a change of a field wins over the file
    whichever names the two use.

    Args:
        changes: values are read as YAML.

    Raises:
        ConfigError: for a file or a change that cannot be read.
    """
    import yaml

    values = current_names(kind, read_yaml(path), str(path))
    for change in changes or []:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {change}: is not key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {change}: {error}") from None
        source = f"--set {change}"
        set_dotted(values, current_key(kind, key, source), value, source)
    return values


def configs_folder(kind: str) -> Path:
    """The folder configs/<kind>: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "configs" / kind
    return inside if inside.is_dir() else package.parent / "configs" / kind
