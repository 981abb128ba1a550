"""Which arithmetic of EXACT.md each layer of a model has; its file says so."""

from dataclasses import dataclass, field
from typing import Any

VERSIONS = (1, 2)


@dataclass(frozen=True)
class Arithmetic:
    """1: weights of 14 bits. 2: weights of a byte, but for the layers listed."""

    version: int = 1
    wide: frozenset[str] = field(default_factory=frozenset)
    """Layers of arithmetic 2 whose weights keep 14 bits, by dotted name."""

    def is_narrow(self, name: str) -> bool:
        """Whether the weights of a layer are bytes."""
        return self.version == 2 and name not in self.wide

    def to_json(self) -> dict[str, Any]:
        """As a model file holds it."""
        return {"version": self.version, "wide": sorted(self.wide)}

    @classmethod
    def from_json(cls, value: Any) -> "Arithmetic":
        """
        Raises:
            ValueError: if `value` describes none that this version knows.
        """
        if value is None:  # of a file from before there were two
            return cls()
        if not isinstance(value, dict) or value.keys() != {"version", "wide"}:
            raise ValueError(f"arithmetic: {str(value)[:80]} has not version and wide")
        version, wide = value["version"], value["wide"]
        if version not in VERSIONS or isinstance(version, bool):
            raise ValueError(f"arithmetic: version {str(version)[:20]} is none of {VERSIONS}")
        if not isinstance(wide, list) or not all(isinstance(name, str) for name in wide):
            raise ValueError("arithmetic: wide is not a list of names")
        return cls(version, frozenset(wide))


ORIGINAL = Arithmetic()
"""That of model files from before there were two."""
