"""Operations a training step dispatches: on an accelerator each is a launch that takes its time."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hpcm_scale.config import ModelConfig
from hpcm_scale.config.strict import cached
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.zoo import build
from hpcm_scale.planning.memory import kernels_of

LAUNCH_SECONDS = 6e-6
"""Of one launch from PyTorch: 4 to 8 µs on the hosts of today's GPUs, an assumption."""
NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::_unsafe_view")
"""What names of operations begin with that only take memory, or are views though not marked so."""


class LaunchCounter(TorchDispatchMode):
    """Counts dispatched operations that compute: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.paused = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not (self.paused or func.is_view or func.name().startswith(NO_KERNEL)):
            self.launches += 1
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and args[0].is_meta:
            # The meta device gives (B, C, H, W) as such, which devices give as they got it.
            kept = args[0].stride(1) == 1  # of a part of the channels, too
            return out.contiguous(memory_format=torch.channels_last) if kept else out
        return out


class _Graph(torch.autograd.Function):
    """A stage as one launch forward and one backward, whatever it consists of."""

    @staticmethod
    def forward(
        ctx: Any, counter: LaunchCounter, stage: Any, inputs: tuple[Any, ...], *tensors: Tensor
    ) -> Tensor:
        ctx.counter, ctx.shapes = counter, tensors
        counter.paused = True
        out = stage(*inputs)
        counter.paused = False
        counter.launches += 1
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        ctx.counter.launches += 1
        return None, None, None, *(torch.empty_like(tensor) for tensor in ctx.shapes)


@cached
def count_launches(
    model: ModelConfig, crop: int, checkpointing: bool | int, graphs: bool = False
) -> int:
    """Launches of one forward and backward pass on an accelerator, however many crops it takes.

    The optimizer's update and what DeepSpeed adds are not counted.

    Args:
        checkpointing: as RunConfig.checkpoint_activations.
        graphs: each transform stage and coding step is one launch a way (RunConfig.compile).
    """
    with torch.random.fork_rng([]), torch.device("meta"), kernels_of("accelerator"):
        network = build(model)
        # As DeepSpeed has it.
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        network.checkpoint_activations(checkpointing)
        x = torch.empty(1, 3, crop, crop).contiguous(memory_format=torch.channels_last)
        y, z = noise_shapes(model, 1, crop, crop)
        noise = (torch.empty(y), torch.empty(z))
        with torch.no_grad():
            network(x, noise)  # makes index tables, once for a run
        counter = LaunchCounter()
        if graphs:

            def graph(stage: Any, *inputs: Any) -> Tensor:
                modules = [stage, *(i for i in inputs if isinstance(i, torch.nn.Module))]
                tensors = [i for i in inputs if isinstance(i, Tensor)]
                tensors += [p for module in modules for p in module.parameters()]
                return _Graph.apply(counter, stage, inputs, *tensors)

            network.run = graph
        with counter:
            output = network(x, noise)
            loss = output.bits.sum() + (output.x_hat - x).square().mean()
            loss.backward()
    return counter.launches
