"""Operations a training step dispatches: on an accelerator each is a launch that takes its time."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpcm_scale.config import ModelConfig
from hpcm_scale.config.strict import cached
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.zoo import build
from hpcm_scale.planning.memory import kernels_of

LAUNCH_SECONDS = 6e-6
"""Of one launch from PyTorch: 4 to 8 µs on the hosts of today's GPUs, an assumption."""
ALLOCATIONS = ("aten::empty", "aten::new_empty")
"""What names of operations that only take memory begin with."""


class LaunchCounter(TorchDispatchMode):
    """Counts dispatched operations that compute: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not func.is_view and not func.name().startswith(ALLOCATIONS):
            self.launches += 1
        return func(*args, **(kwargs or {}))


@cached
def count_launches(model: ModelConfig, crop: int, checkpointing: bool | int) -> int:
    """Launches of one forward and backward pass on an accelerator, however many crops it takes.

    The optimizer's update and what DeepSpeed adds are not counted.
    """
    with torch.random.fork_rng([]), torch.device("meta"), kernels_of("accelerator"):
        network = build(model)
        network.checkpoint_activations(checkpointing)
        x = torch.empty(1, 3, crop, crop).contiguous(memory_format=torch.channels_last)
        y, z = noise_shapes(model, 1, crop, crop)
        with LaunchCounter() as counter:
            output = network(x, (torch.empty(y), torch.empty(z)))
            loss = output.bits.sum() + (output.x_hat - x).square().mean()
            loss.backward()
    return counter.launches
