"""How published checkpoints name and order what a network of ours holds."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedLayout:
    """How the published checkpoints of one architecture are laid out."""

    names: Callable[[Any], dict[str, str]]
    """From a network's configuration: our parameter name -> the published one, for each."""
    variants: tuple[str, ...]
    """Names in configs/models that were published."""
    ignored: re.Pattern[str]
    """Names of other tensors in checkpoints: constants, tables that export computes again."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration that imported weights need, and models trained here do not."""
    because: str = ""
    """Why they need them."""
    ones: re.Pattern[str] | None = None
    """Parameters that older checkpoints lack, all of them or none, because they stayed 1."""
    ones_mean: str = ""
    """Meaning of their absence, for the note."""
    unused: re.Pattern[str] | None = None
    """Parameters of checkpoints that no result depends on: left out with a remark."""
    synonyms: tuple[tuple[re.Pattern[str], str], ...] = ()
    """Patterns of names that some checkpoints have, and the name that others have instead."""

    def current_name(self, name: str) -> str:
        """`name`, or what it is a synonym of."""
        for pattern, other in self.synonyms:
            name = pattern.sub(other, name)
        return name
