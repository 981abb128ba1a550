"""A model file's parameters, handed out by name and shape, every one of them asked for once."""

from collections.abc import Mapping

import numpy as np

from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.errors import CheckpointError

_SHOWN = 80
"""Characters of a name from a file in an error."""


class Parameters:
    """Parameters in float32 by name.

    A network that takes what it needs cannot be larger than the file it is made from: the first
    parameter that is not there ends it.

    Args:
        arrays: by name, in float32.
        arithmetic: of the exact layers made of them.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], arithmetic: Arithmetic = ORIGINAL) -> None:
        self._arrays = arrays
        self.arithmetic = arithmetic
        self._taken: set[str] = set()

    def take(self, name: str, *shape: int) -> np.ndarray:
        """A parameter.

        Raises:
            CheckpointError: if it is missing or of another shape.
        """
        if name not in self._arrays:
            raise CheckpointError(f"parameters do not fit the model: {name} is missing")
        array = self._arrays[name]
        if array.shape != shape:
            raise CheckpointError(f"{name} has shape {array.shape}, the model needs {shape}")
        self._taken.add(name)
        return array

    def part(self, prefix: str) -> "Parameters":
        """Those whose names begin so, of arithmetic 1, to be handed out once more."""
        arrays = {name: a for name, a in self._arrays.items() if name.startswith(prefix)}
        return Parameters(arrays)

    def check_all_taken(self) -> None:
        """Raises CheckpointError if the file has parameters that no part of the network took."""
        left = sorted(self._arrays.keys() - self._taken)
        if left:
            raise CheckpointError(
                f"parameters do not fit the model: {len(left)} unknown "
                f"{[name[:_SHOWN] for name in left[:3]]}"
            )
