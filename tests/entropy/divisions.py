"""What a GPU would not divide, seen on a CPU."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

UNITS = (1024, 4096)
"""Of the grid and of factors: powers of two, whose products are the quotients."""


class NearestQuotients(TorchDispatchMode):
    """Refuses divisions by numbers of the host: CUDA multiplies by their reciprocals instead."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("aten::div") and isinstance(args[1], int | float):
            assert args[1] in UNITS, f"a division by {args[1]}"
        assert not func.name().startswith(("aten::mean", "aten::reciprocal"))
        return func(*args, **(kwargs or {}))
