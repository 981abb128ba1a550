"""Every private name of DeepSpeed, and of torch's distributed code, that training relies on.

Pinned to deepspeed 0.19 (pyproject.toml); tests/training/test_deepspeed_internals.py holds the
installed version to `NAMES`. Engines and optimizers are typed `Any`: DeepSpeed's classes are
unions whose members have what is used here only in some stages.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import deepspeed
import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import Tensor, nn
from torch._appdirs import user_cache_dir

NAMES = {
    "deepspeed.comm.torch": ("build_shm_op",),
    "deepspeed.runtime.engine.DeepSpeedEngine": (
        "_copy_recovery_script",
        "_get_zero_ckpt_name",
        "_load_zero_checkpoint",
        "empty_partition_cache",
        "zero_nvme_offload_optimizer",
        "zero_offload_optimizer",
    ),
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3": (
        "_loss_scale_update_and_overflow_cleanup",
        "_optimizer_states_and_gradient_swap_in",
        "_optimizer_states_and_gradient_swap_out",
        "_overflow_check_and_loss_scale_update",
        "_reassign_or_swap_out_partitioned_parameters",
        "_release_swap_buffers",
        "_swappable_optimizer_subgroup",
        "_get_norm_groups",
        "check_overflow",
        "get_param_id",
        "has_overflow",
    ),
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer": (
        "has_overflow",
        "scaled_global_norm",
    ),
    "deepspeed.runtime.utils": ("combine_grad_norm_groups",),
    "torch.distributed.ProcessGroup": ("_get_sequence_number_for_group",),
    "torch.distributed.distributed_c10d": ("_get_default_group",),
    "torch": ("_foreach_lerp_",),
    "torch._appdirs": ("user_cache_dir",),
}
"""Module or class -> what of it is used. Attributes made at run time (grad_position,
fp32_partitioned_groups_flat, persistent_parameters, check_grad_overflow, ds_id, ds_numel,
ds_tensor, _hp_mapping) are held by the runs of tests/distributed."""


# ------------------------------------------------------------------ joining a job


def extensions_folder() -> Path:
    """Where torch keeps the operators that DeepSpeed compiles."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or user_cache_dir("torch_extensions"))


def skip_shared_memory_operator() -> None:
    """Keep DeepSpeed from compiling its reductions in shared memory when a job on CPUs starts.

    Only tensor parallelism at inference calls them (`inference_all_reduce`); training adds up over
    gloo with them or without. They would need a compiler, minutes at first use, and 66 MB of
    /dev/shm a rank that no process gives back.
    """
    # Not by an import statement: the attribute `torch` of deepspeed.comm is torch itself.
    backend: Any = import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None


def collective_calls() -> int:
    """Collective operations this rank has called so far; 0 before it has joined the others."""
    if not torch.distributed.is_initialized():
        return 0
    group: Any = torch.distributed.distributed_c10d._get_default_group()
    return group._get_sequence_number_for_group()


@contextmanager
def partitioned_at_init(config: dict[str, Any], enabled: bool) -> Iterator[None]:
    """Partition each parameter as its module is made (`deepspeed.zero.Init`), and leave no trace.

    What it leaves on `nn.Module` hides `__init_subclass__` from classes defined later, so that a
    generic one of them cannot be subscripted.
    """
    own = "__init_subclass__" in vars(nn.Module)
    try:
        with deepspeed.zero.Init(config_dict_or_path=config, enabled=enabled):
            yield
    finally:
        if not own and "__init_subclass__" in vars(nn.Module):
            del nn.Module.__init_subclass__


def skip_recovery_script(engine: Any) -> None:
    """Keep DeepSpeed from writing its conversion scripts beside every checkpoint.

    On a full disk that fails between two collectives; `hpcm-scale export` does what they do.
    """
    engine._copy_recovery_script = lambda _: None


# ------------------------------------------------------------------ parameters and master weights


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has spread a parameter over the ranks."""
    return hasattr(parameter, "ds_id")


class ParamShard(NamedTuple):
    """This rank's part of one parameter's fp32 weights."""

    start: int
    """Index of its first value in the flattened parameter."""
    values: Tensor
    """1-D float32; the optimizer's own memory, not a copy."""


def master_shards(engine: Any) -> dict[str, ParamShard]:
    """This rank's part of the fp32 weights the optimizer updates, by parameter name.

    All of every parameter in stage 0, where nothing is spread. In the other stages the shards of
    all ranks make up every parameter once.
    """
    stage = engine.zero_optimization_stage()
    shards = {}
    for name, parameter in engine.module.named_parameters():
        if stage == 3:
            optimizer = engine.optimizer
            group, first, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            values = optimizer.fp32_partitioned_groups_flat[group].narrow(0, first, count)
            start = engine.global_rank * values.numel()
            values = values[: max(0, parameter.ds_numel - start)]  # the last ones are padding
        elif getattr(parameter, "_hp_mapping", None) is not None:
            mapping = parameter._hp_mapping
            start, values = mapping.lp_fragment_address.start, mapping.hp_fragment
        elif stage == 0:
            start, values = 0, parameter.data.view(-1)
        else:
            continue  # all of it is on other ranks
        if values.numel():
            shards[name] = ParamShard(start, values)
    return shards


@torch.no_grad()
def put_shards(engine: Any, shards: dict[str, ParamShard]) -> None:
    """Make the network compute with `shards`; a collective in stages 1 to 3."""
    stage = engine.zero_optimization_stage()
    if stage < 3:
        for name, parameter in engine.module.named_parameters():
            whole = torch.zeros(parameter.numel(), device=parameter.device)
            if name in shards:
                start, values = shards[name]
                whole[start : start + values.numel()] = values
            if stage:
                torch.distributed.all_reduce(whole)
            parameter.data.copy_(whole.view_as(parameter))
        return
    # Whole parameters that some module still holds would go on being used.
    engine.empty_partition_cache()
    for name, parameter in engine.module.named_parameters():
        if name in shards:
            values = shards[name].values
            parameter.ds_tensor.data[: values.numel()].copy_(values)
    kept = engine.optimizer.persistent_parameters  # small, whole on every rank between the passes
    if kept:
        kept[0].all_gather(kept)


def lerp(targets: list[Tensor], sources: list[Tensor], weight: float) -> None:
    """targets <- targets + weight · (sources − targets), in place, all at once."""
    torch._foreach_lerp_(targets, sources, weight)  # pyright: ignore[reportPrivateImportUsage]


# ------------------------------------------------------------------ discarding a step


def discards_steps(engine: Any) -> bool:
    """Whether the optimizer is DeepSpeed's own, which can leave a step out."""
    return hasattr(engine.optimizer, "has_overflow")


def decide_steps_by(engine: Any, decide: Callable[[Tensor], Tensor | None]) -> None:
    """Open DeepSpeed's way to discard a step, for floats that overflow, to every precision.

    DeepSpeed would look for bad values in every gradient, then for the norm, and read each answer
    back from the device. The norm alone tells: no sum with a bad value in it is finite.

    Args:
        decide: given the norm of all gradients (negative or not finite where one is bad), gives the
            norm as a tensor of the host, or None to leave the step out; called once a step.
    """
    optimizer = engine.optimizer
    known: list[Tensor] = []

    def has_overflow(*_: Any, **__: Any) -> bool:
        known.clear()
        norm = decide(measure())
        if norm is None:
            return True
        known.append(norm)
        return False

    optimizer.has_overflow = has_overflow
    if engine.zero_optimization_stage() == 3:
        groups = optimizer._get_norm_groups
        measure = lambda: combine_grad_norm_groups(groups())  # noqa: E731
        optimizer._get_norm_groups = lambda: list(known)
        # It looks for overflows of 16-bit floats alone.
        optimizer._overflow_check_and_loss_scale_update = MethodType(_always_check, optimizer)
    else:
        measure = optimizer.scaled_global_norm
        optimizer.scaled_global_norm = lambda *_, **__: known[0]
        optimizer.check_grad_overflow = True


def _always_check(optimizer: Any, update_scale: bool = True) -> bool:
    """Stage 3's `_overflow_check_and_loss_scale_update`, for every precision."""
    optimizer.overflow = False
    optimizer.check_overflow()
    if not update_scale:
        return optimizer.overflow
    return optimizer._loss_scale_update_and_overflow_cleanup()


# ------------------------------------------------------------------ optimizer state on disks


class SwappedOptimizer:
    """A stage 3 optimizer whose state lies on disks between steps, in sub-groups."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._optimizer = engine, engine.optimizer

    @staticmethod
    def has(engine: Any) -> bool:
        """Whether the engine keeps any optimizer state on disks."""
        return bool(getattr(engine.optimizer, "swap_optimizer", False))

    def take_over_checkpoints(self, load: Callable[..., bool]) -> None:
        """Have the engine neither copy swap files on saving nor read them, but call `load`."""
        self._engine.zero_nvme_offload_optimizer = lambda: False
        self._engine._load_zero_checkpoint = load

    @property
    def masters(self) -> list[Any]:
        """Each sub-group's flat fp32 weights."""
        return self._optimizer.fp32_partitioned_groups_flat

    @property
    def state(self) -> Any:
        """Adam's state by master."""
        return self._optimizer.state

    def is_swapped(self, group: int) -> bool:
        """Whether a sub-group is large enough to lie on disk."""
        return self._optimizer._swappable_optimizer_subgroup(group)

    def swap_in(self, group: int) -> None:
        """Read a sub-group's state into memory."""
        self._optimizer._optimizer_states_and_gradient_swap_in(group)

    def release(self, group: int) -> None:
        """Let a sub-group's memory go, unchanged on disk."""
        self._optimizer._release_swap_buffers(group)

    def put_back(self, group: int, swapped: bool) -> None:
        """Give the network a sub-group's weights, and the disk its state."""
        self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if swapped:
            self._optimizer._optimizer_states_and_gradient_swap_out(group)

    def saved_state(self, load_dir: str, tag: str) -> dict[str, Any]:
        """State that DeepSpeed itself saved of this rank's optimizer."""
        path = self._engine._get_zero_ckpt_name(load_dir, tag)
        return self._engine.checkpoint_engine.load(path, "cpu")["optimizer_state_dict"]
