"""Memory a rank needs, by class, before any of it is allocated.

Parameters, gradients and optimizer state follow from counts and from how DeepSpeed 0.19 keeps
them; activations are counted by running forward and backward on the meta device, with an account of
every storage that is made and freed. `hpcm-scale plan --measure` holds the sums against real runs.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from hpcm_scale.config import ModelConfig
from hpcm_scale.config.strict import cached
from hpcm_scale.heap import HEAP_BOUNDARY, TIGHT_HEAP_BOUNDARY
from hpcm_scale.models import delayed_gradients, linear
from hpcm_scale.models.blocks import residual
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.storage_tracker import StorageTracker
from hpcm_scale.models.zoo import build
from hpcm_scale.training.zero_layout import UPDATED_AT_ONCE, ZeroLayout
from hpcm_scale.units import GIB, MIB

FP32, BF16 = 4, 2
ADAM = 2 * FP32
"""Bytes of Adam's two running averages of a parameter."""
UPDATE = 2 * FP32
"""Bytes a parameter that torch's Adam makes and frees while it updates one tensor."""
FRAMEWORK_CPU = {0: 430 * MIB, 1: 450 * MIB, 2: 450 * MIB, 3: 480 * MIB}
"""A CPU process that trains Base at width 0.1, by ZeRO stage, less what is counted here: Python,
torch and DeepSpeed with what they import and map, and the scratch memory of torch's kernels
(measured on Linux x86, 1 thread; stages 1 and 2 lie between)."""
FRAMEWORK_ACCELERATOR = 3 * GIB // 2
"""CUDA context, kernels and NCCL's channels on a GPU: assumed, not measured."""
ALL_REDUCE_ELEMENTS = 500_000_000
"""Gradients that DeepSpeed's stage 0 copies together to reduce them."""
HEAP_WASTE, HEAP_CHURN = 0.05, 1.0
"""What glibc's heap holds over what is alive in it, as shares of all and of what the passes free:
blocks of all sizes leave gaps. Measured with FRAMEWORK_CPU, for Base at widths 0.1 to 0.5; with
checkpointing the heap still grows by a tenth over the first ten steps. A fixed M_MMAP_THRESHOLD of
256 KiB to 4 MiB gives most of it back and costs 15 to 70 % of the speed."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch's activations, their gradients and all temporaries."""

    kept: int
    """Alive when the forward pass is over."""
    peak: int
    """Most at once, with what the backward pass recomputes."""
    peak_with_gradients: int
    """The same with the gradients of all parameters, which appear while activations go."""
    retained: int
    """What a CPU's heap does not give back once they are freed."""


@contextmanager
def kernels_of(device: str) -> Iterator[None]:
    """Let the residual pairs work on meta tensors as they do on `device`: in rows on a CPU.

    And on a CPU's tensors as on an accelerator, for comparisons: by products alone.
    """
    rows, few = residual._rows_at_once, linear.CONVOLUTION_POSITIONS
    held = delayed_gradients.HELD_BYTES, delayed_gradients.CPU_HELD_BYTES
    on_cpu = device == "cpu"
    residual._rows_at_once = lambda x, hidden: residual.cpu_rows(hidden) if on_cpu else len(x)
    linear.CONVOLUTION_POSITIONS = few if on_cpu else 0
    delayed_gradients.HELD_BYTES = delayed_gradients.CPU_HELD_BYTES = held[on_cpu]
    try:
        yield
    finally:
        residual._rows_at_once, linear.CONVOLUTION_POSITIONS = rows, few
        delayed_gradients.HELD_BYTES, delayed_gradients.CPU_HELD_BYTES = held


@cached
def count_activations(
    model: ModelConfig,
    crop: int,
    micro_batch: int,
    checkpointing: bool | int,
    bf16: bool = False,
    device: str = "cpu",
    boundary: int = HEAP_BOUNDARY,
) -> Activations:
    """Count what a forward and backward pass keep alive beside the parameters.

    Args:
        crop: side of the square crops, in pixels.
        checkpointing: as RunConfig.checkpoint_activations.
        device: whose kernels and allocator: "cpu" works through residual pairs in rows, and its
            heap holds more than is alive; an accelerator's caching allocator is taken as exact.
        boundary: bytes from which on a block is not that heap's.
    """
    if device != "cpu" and micro_batch > 2:
        # Every tensor but the parameters' gradients grows with the batch; one count takes seconds.
        one, two = (
            count_activations(model, crop, crops, checkpointing, bf16, device) for crops in (1, 2)
        )
        return Activations(
            *(
                getattr(two, name) + (micro_batch - 2) * (getattr(two, name) - getattr(one, name))
                for name in ("kept", "peak", "peak_with_gradients", "retained")
            )
        )
    dtype = torch.bfloat16 if bf16 else torch.float32
    # Building a network draws from torch's generator, which the caller keeps as it was.
    with torch.random.fork_rng([]), torch.device("meta"), kernels_of(device):
        network = build(model).to(dtype)
        network.checkpoint_activations(checkpointing)
        x = torch.empty(micro_batch, 3, crop, crop)
        x = x.contiguous(memory_format=torch.channels_last)
        y, z = noise_shapes(model, micro_batch, crop, crop)
        noise = (torch.empty(y), torch.empty(z))
        state = [*network.parameters(), *network.buffers()]
        account = StorageTracker(state, boundary if device == "cpu" else 0)
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(account.keep_gradient)
        with account:
            output = network(x.to(dtype), noise)
            loss = output.bits.sum() + (output.x_hat.float() - x).square().mean()
            kept = sum(account.live)
            loss.backward()
    heap, mapped = account.peak
    waste = retained = 0
    if device == "cpu":
        waste = int(heap * (HEAP_WASTE + HEAP_CHURN * (1 - kept / (heap + mapped))))
        retained = heap + waste
    return Activations(kept, heap + mapped + waste, account.peak_with_gradients + waste, retained)


def parameter_sizes(model: ModelConfig) -> tuple[int, int]:
    """Parameters of a network, and of its largest tensor."""
    with torch.random.fork_rng([]), torch.device("meta"):
        sizes = [parameter.numel() for parameter in build(model).parameters()]
    return sum(sizes), max(sizes)


def recomputed_parameters(model: ModelConfig) -> int:
    """Parameters of the largest part that activation checkpointing recomputes at once.

    A coding step and the shared net that runs in it. torch's checkpoint keeps what the recomputed
    part saves for its backward pass, gathered weights among them, until that is over.
    """
    with torch.random.fork_rng([]), torch.device("meta"):
        network = build(model)
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in network.named_modules()}
    step = max((n for name, n in sizes.items() if re.fullmatch(r"steps\.\d+", name)), default=0)
    shared = max((n for name, n in sizes.items() if re.fullmatch(r"shared_\w+", name)), default=0)
    return step + shared


@cached
def viewed_parameters(model: ModelConfig, crop: int) -> int:
    """Parameters of which the forward pass saves a view for the backward pass.

    DeepSpeed frees a gathered parameter by giving it an empty tensor: autograd, which saves the
    parameter itself where it can, lets go of the values too, but not those of a view: the matrix
    that a 1×1 convolution or a resampling is. A CPU, whose kernels are others, holds fewer.
    """
    with torch.random.fork_rng([]), torch.device("meta"), kernels_of("cuda"):
        network = build(model)
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        network.checkpoint_activations(False)
        whole = {p.untyped_storage()._cdata: p for p in network.parameters()}
        viewed = set()

        def look(saved: torch.Tensor) -> torch.Tensor:
            key = saved.untyped_storage()._cdata
            if key in whole and saved.shape != whole[key].shape:
                viewed.add(key)
            return saved

        y, z = noise_shapes(model, 1, crop, crop)
        x = torch.empty(1, 3, crop, crop).contiguous(memory_format=torch.channels_last)
        with torch.autograd.graph.saved_tensors_hooks(look, lambda saved: saved):
            network(x, (torch.empty(y), torch.empty(z)))
    return sum(whole[key].numel() for key in viewed)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by class: on its device, in its host's memory and on disk.

    On a CPU the device is the host: `total` holds both.
    """

    parameters: float
    gradients: float
    optimizer: float
    """Master weights where there are any beside the parameters, and Adam's averages."""
    ema: float
    activations: float
    """With gradients of all parameters kept (stages 0 and 1), what comes on top of them."""
    buffers: float
    """Of collectives, and parameters gathered from other ranks."""
    update: float
    """Made and freed by the optimizer step, when the activations are gone."""
    retained: float
    """By a CPU's heap of the activations, during the optimizer step."""
    copy: float
    """Of the state, while a checkpoint is written in the background or a sub-group from disk."""
    framework: float
    host: float
    """Offloaded to the host's memory, and the buffers that serve disks."""
    disk: float

    @property
    def device(self) -> float:
        """Most bytes at once on the device."""
        state = self.parameters + self.gradients + self.optimizer + self.ema + self.framework
        return state + self.buffers + max(self.activations, self.retained + self.update)


def rank_memory(
    model: ModelConfig,
    spread: ZeroLayout,
    *,
    ranks: int,
    micro_batch: int,
    crop: int = 256,
    checkpointing: bool | int = True,
    bf16: bool = False,
    ema: bool = False,
    background_copy: bool = False,
    device: str = "cpu",
) -> Memory:
    """Bytes of the rank that needs most.

    Args:
        device: "cpu", or anything else for an accelerator.
        background_copy: whether checkpoints are copied to host memory before they are written.
    """
    count, largest = parameter_sizes(model)
    stage, each = spread.stage, BF16 if bf16 else FP32
    share = count / ranks
    cpu = device == "cpu"
    offloaded = spread.optimizer_on != "none"
    boundary = TIGHT_HEAP_BOUNDARY if spread.optimizer_on == "nvme" else HEAP_BOUNDARY
    work = count_activations(model, crop, micro_batch, checkpointing, bf16, device, boundary)

    gradients = each * (count if stage < 2 else share)
    parameters = each * (share if stage == 3 else count)
    # Stages 0 (fp32) and 3 (fp32, nothing offloaded) update the parameters themselves.
    own_master = bf16 or stage in (1, 2) or offloaded
    states = (ADAM + (FP32 if own_master else 0)) * (share if stage else count)
    ema_bytes = FP32 * (share if stage else count) if ema else 0.0
    saved = each * (share if stage == 3 else count / ranks) + states + ema_bytes
    memory = Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=states,
        ema=ema_bytes,
        activations=work.peak_with_gradients - gradients if stage < 2 else work.peak,
        buffers=_buffers(spread, count, largest, ranks, each, cpu),
        retained=work.retained,
        update=_update(spread, count, largest, ranks, cpu),
        copy=saved if background_copy and not offloaded else 0.0,
        framework=FRAMEWORK_CPU[stage] if cpu else FRAMEWORK_ACCELERATOR,
        host=0.0,
        disk=0.0,
    )
    if stage == 3 and (ranks > 1 or spread.parameters_on != "none"):
        held = recomputed_parameters(model) if checkpointing else viewed_parameters(model, crop)
        memory = replace(
            memory, buffers=memory.buffers + each * _held(spread, largest, held, count)
        )
    if offloaded:
        memory = _offload_optimizer(memory, spread, share, largest)
    if spread.parameters_on != "none":
        memory = _offload_parameters(memory, spread, share, largest, each)
    return memory


def _offload_optimizer(memory: Memory, spread: ZeroLayout, share: float, largest: int) -> Memory:
    """`memory` with optimizer state and average in the host's memory, or the state on disk."""
    host, disk, copy = memory.host + memory.ema, memory.disk, memory.copy
    gradients = memory.gradients
    if spread.stage > 1:
        # They stay on the host, once as they arrive and, unless on disk, once as the optimizer
        # reads them.
        host, gradients = host + gradients, 0.0
    state = memory.optimizer + FP32 * share
    if spread.optimizer_on == "cpu":
        host += state
    else:
        disk += state
        # A sub-group's masters and averages at a time: the file's bytes, and its parts.
        sub_group = FP32 * min(spread.sub_group + largest, share)
        copy = 2 * 3 * sub_group
        host += spread.optimizer_buffers * sub_group
    return replace(
        memory, gradients=gradients, optimizer=0.0, ema=0.0, host=host, disk=disk, copy=copy
    )


def _offload_parameters(
    memory: Memory, spread: ZeroLayout, share: float, largest: int, each: int
) -> Memory:
    """`memory` with parameters of `each` bytes in the host's memory, or on disk behind buffers."""
    if spread.parameters_on == "cpu":
        return replace(memory, parameters=0.0, host=memory.host + memory.parameters)
    buffers = each * (
        spread.parameter_buffers * spread.parameter_buffer
        + min(spread.parameters_in_cpu, share)
        + min(spread.sub_group + largest, share)  # on the way back to the disk
    )
    return replace(
        memory,
        parameters=0.0,
        host=memory.host + buffers,
        disk=memory.disk + memory.parameters,
    )


def _buffers(
    spread: ZeroLayout, count: int, largest: int, ranks: int, each: int, cpu: bool
) -> float:
    """Bytes of collectives and of gathered parameters."""
    if spread.stage == 0:
        return each * min(count, ALL_REDUCE_ELEMENTS) if ranks > 1 else 0.0
    bucket = max(spread.reduce_bucket, largest)
    if cpu:  # memory never touched is never given
        bucket = min(bucket, count)
    if spread.stage < 3:
        return each * bucket * (2 if spread.overlap or spread.stage == 1 else 1)
    gathered = 0.0
    if ranks > 1 or spread.parameters_on != "none":
        live = max(spread.live_parameters, largest) + spread.prefetch_bucket
        gathered = min(live, count)
    # The bucket itself and what reduce-scatter lays out from it.
    return each * (2 * bucket + gathered)


def _held(spread: ZeroLayout, largest: int, held: int, count: int) -> int:
    """Of `held` gathered parameters, which autograd keeps, those beyond what may be live."""
    live = max(spread.live_parameters, largest) + spread.prefetch_bucket
    return max(0, min(held, count) - min(live, count))


def _update(spread: ZeroLayout, count: int, largest: int, ranks: int, cpu: bool) -> float:
    """Bytes that an optimizer step makes and frees: temporaries, and flat fp32 gradients."""
    if spread.optimizer_on != "none":
        return 0.0  # DeepSpeed's own Adam works in place
    if spread.stage == 0:
        return UPDATE * (largest if cpu and count > UPDATED_AT_ONCE else count)
    share = count / ranks
    tensor = min(share, spread.sub_group + largest / ranks) if spread.stage == 3 else share
    return (UPDATE + FP32) * tensor
