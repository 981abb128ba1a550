"""Memory layout of a DeepSpeed configuration: where state lies, sizes of buffers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UPDATED_AT_ONCE = 4_000_000
"""Parameters up to which stage 0 on a CPU updates all tensors together (torch's foreach, the same
bits): hundreds of small tensors take longer to call for than to update. It makes temporaries of all
of them."""


@dataclass(frozen=True)
class ZeroLayout:
    """Where a DeepSpeed configuration keeps state; sizes in elements, DeepSpeed's defaults."""

    stage: int
    optimizer_on: str = "none"
    """Where offloaded optimizer state is: none (with the rank), cpu or nvme."""
    parameters_on: str = "none"
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    live_parameters: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    overlap: bool = False
    optimizer_buffers: int = 4
    parameter_buffers: int = 5
    parameter_buffer: int = 100_000_000
    parameters_in_cpu: int = 1_000_000_000

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "ZeroLayout":
        """Read a DeepSpeed configuration such as configs/deepspeed holds."""
        zero = config["zero_optimization"]
        optimizer, parameters = (zero.get(f"offload_{of}") or {} for of in ("optimizer", "param"))
        read = {
            "optimizer_on": (optimizer, "device"),
            "parameters_on": (parameters, "device"),
            "reduce_bucket": (zero, "reduce_bucket_size"),
            "prefetch_bucket": (zero, "stage3_prefetch_bucket_size"),
            "live_parameters": (zero, "stage3_max_live_parameters"),
            "sub_group": (zero, "sub_group_size"),
            "overlap": (zero, "overlap_comm"),
            "optimizer_buffers": (optimizer, "buffer_count"),
            "parameter_buffers": (parameters, "buffer_count"),
            "parameter_buffer": (parameters, "buffer_size"),
            "parameters_in_cpu": (parameters, "max_in_cpu"),
        }
        given = {name: section[key] for name, (section, key) in read.items() if key in section}
        numbers: dict[str, Any] = {
            name: int(v) if isinstance(v, float) else v for name, v in given.items()
        }
        return cls(int(zero["stage"]), **numbers)
