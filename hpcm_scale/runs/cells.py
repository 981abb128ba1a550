"""Names and numbers of tables as people and programs write them."""

import re

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_NUMBER = re.compile(r"([0-9.,]+(?:e[+-]?[0-9]+)?)([kmbgt]?)", re.IGNORECASE)


def plain_name(name: str) -> str:
    """Letters and digits of a column's name in lower case."""
    return re.sub("[^a-z0-9]", "", name.lower())


def number_of(value: object) -> float | None:
    """The number that a cell holds, 7B and 1,000 too; None if it holds none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = _NUMBER.fullmatch(str(value).strip()) if value is not None else None
    if match is None:
        return None
    try:
        return float(match[1].replace(",", "")) * _SCALES[match[2].lower()]
    except ValueError:
        return None
