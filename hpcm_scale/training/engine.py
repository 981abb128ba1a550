"""From a run's configuration to a DeepSpeed engine on every rank."""

import json
import os
import sys
import warnings
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from hpcm_scale.config import ModelConfig, RunConfig, configs_folder
from hpcm_scale.errors import ConfigError
from hpcm_scale.heap import settle_heap
from hpcm_scale.models.blocks.bottleneck import Bottleneck
from hpcm_scale.models.blocks.residual import PConvRB
from hpcm_scale.models.blocks.sampling import ResidualBlock
from hpcm_scale.models.codec_network import CodecNetwork, CompiledCall
from hpcm_scale.models.torch_internals import has_native_bf16
from hpcm_scale.models.zoo import build, network_class
from hpcm_scale.runs.network import init_file
from hpcm_scale.training.deepspeed_internals import (
    partitioned_at_init,
    skip_recovery_script,
    skip_shared_memory_operator,
)
from hpcm_scale.training.ema import load_weights
from hpcm_scale.training.extension_locks import drop_stale_locks
from hpcm_scale.training.parameter_groups import parameter_groups
from hpcm_scale.training.parametrization import scale_initial, scalings
from hpcm_scale.training.rendezvous import (
    check_device,
    choose_interface,
    collective_timeout,
    describe_job,
    local_size,
    open_store,
)
from hpcm_scale.training.single_precision import set_tf32
from hpcm_scale.training.start import principal_network
from hpcm_scale.training.zero_layout import UPDATED_AT_ONCE
from hpcm_scale.units import peak_rss
from hpcm_scale.weights.model_file import load_model

LEAVES = (PConvRB, Bottleneck, ResidualBlock)
"""Blocks that ZeRO-3 gathers and releases as one, for a third of the collectives and hooks. None of
a shared net: DeepSpeed 0.19 reduces a leaf's gradients at its every use."""


def accelerator() -> Any:
    """DeepSpeed's interface to the device that ranks compute on."""
    return get_accelerator()


def peak_memory() -> int:
    """Most bytes this rank has had on its device; on a CPU, resident."""
    device = accelerator()
    return peak_rss() if device.device_name() == "cpu" else device.max_memory_allocated()


def init_distributed(timeout: float) -> tuple[int, int]:
    """Join the job that the launcher described, or be a job of one.

    Args:
        timeout: seconds a rank waits in one collective operation.

    Returns:
        rank and world size.

    Raises:
        ConfigError: if the ranks cannot meet at MASTER_ADDR and MASTER_PORT, or this one has no
            device.
    """
    rank, world = describe_job()
    if accelerator().device_name() == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # Each rank takes its share of the cores: threads of two ranks on one core wait in turn.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size()))
    if os.environ["LOCAL_RANK"] == "0":
        drop_stale_locks()
    # Operators are compiled by this environment's ninja: another version compiles all anew.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 renamed, and warns at each.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    device = int(os.environ["LOCAL_RANK"])
    if accelerator().device_name() == "cuda":
        check_device(device, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    accelerator().set_device(device)  # or all would take the first
    # Parts of a long sum would be added up in half precision.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    skip_shared_memory_operator()
    store = None
    if world > 1:
        store = open_store(timeout)  # held until torch's own rendezvous shares its server
        choose_interface(store, timeout)
    deepspeed.init_distributed(
        accelerator().communication_backend_name(),
        verbose=False,
        timeout=timedelta(seconds=collective_timeout(timeout)),
    )
    del store
    native_bf16()  # ranks agree while all are here
    deepspeed.comm.barrier()
    return rank, world


def leave_job() -> None:
    """Close this rank's connections: threads that meet a peer which has ended may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def deepspeed_config(run: RunConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run: configs/deepspeed/<name>.json and what the run decides.

    Raises:
        ConfigError: if there is no such file, or batch, micro-batch and ranks do not divide.
    """
    config = _read_deepspeed(run.deepspeed)
    offload = _offload(config, run.folder / "offload")
    if run.batch % world_size:
        raise ConfigError(f"batch: {run.batch} cannot be shared by {world_size} ranks")
    on_rank = run.batch // world_size
    micro_batch = run.micro_batch or on_rank
    if on_rank % micro_batch:
        raise ConfigError(
            f"micro_batch: {micro_batch} does not divide the {on_rank} crops of a rank "
            f"(batch {run.batch} over {world_size} ranks)"
        )
    plain, bf16 = config["zero_optimization"]["stage"] == 0, uses_bf16(run)
    if plain and bf16:
        raise ConfigError(
            f"deepspeed: {run.deepspeed} is stage 0, which is for fp32; in bf16 take zero1, which "
            "spreads only the optimizer's fp32 states"
        )
    if run.optimizer.ema is not None and _device(config, "offload_optimizer") == "nvme":
        raise ConfigError(
            f"optimizer.ema: needs the weights in memory at every step, {run.deepspeed} keeps them "
            "on disks; leave it out or offload to cpu"
        )
    return config | {
        "train_batch_size": run.batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": on_rank // micro_batch,
        # Without an optimizer of DeepSpeed's, the step guard clips.
        "gradient_clipping": 0.0 if plain else run.optimizer.grad_clip_norm,
        "bf16": {"enabled": bf16},
        "optimizer": {
            "type": "AdamW" if run.optimizer.type == "adamw" else "Adam",
            "params": {
                "lr": run.optimizer.lr,
                "betas": list(run.optimizer.betas),
                "weight_decay": run.optimizer.weight_decay,
                # DeepSpeed's own Adam compiles a kernel at first use, which only states that are
                # kept off the accelerator repay; torch's needs nothing.
                "torch_adam": not offload,
            },
        },
        "steps_per_print": 2**31,
        # It would wait for the device before and after every step.
        "timers": {"throughput": {"enabled": False}},
    }


def _read_deepspeed(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix != ".json":
        path = configs_folder("deepspeed") / f"{name}.json"
    try:
        config = json.loads(path.read_text())
    except OSError:
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.json")))
        raise ConfigError(f"deepspeed: {name!r} is not one of {names}") from None
    except ValueError as error:
        raise ConfigError(f"deepspeed: {path} is not JSON ({error})") from None
    if not isinstance(config, dict) or "stage" not in config.get("zero_optimization", {}):
        raise ConfigError(f"deepspeed: {path} has no zero_optimization.stage")
    return config


def _offload(config: dict[str, Any], folder: Path) -> bool:
    """Whether optimizer states leave the accelerator; on disks they go to the run's `folder`."""
    zero = config["zero_optimization"]
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device") == "nvme":
            zero[key].setdefault("nvme_path", str(folder.absolute()))
    return _device(config, "offload_optimizer") != "none"


def _device(config: dict[str, Any], key: str) -> str:
    """Where DeepSpeed keeps what `key` names: none, cpu or nvme."""
    return config["zero_optimization"].get(key, {}).get("device", "none")


def uses_graphs(run: RunConfig, config: dict[str, Any]) -> bool:
    """Whether the passes of a run, with its DeepSpeed `config`, replay CUDA graphs.

    A graph's results last until its next replay: gradients of one pass would not outlive the next,
    and what a recomputed stage gave the forward pass not its recomputation.
    """
    once = config["gradient_accumulation_steps"] == 1 and not run.checkpoint_activations
    # ZeRO-3 gathers parameters to other addresses at every use.
    still = config["zero_optimization"]["stage"] < 3
    return run.compile == "blocks" and once and still and accelerator().device_name() == "cuda"


def uses_bf16(run: RunConfig) -> bool:
    """Whether the passes compute in bfloat16.

    Raises:
        ConfigError: see `deepspeed_config`.
    """
    if run.precision != "auto":
        return run.precision == "bf16"
    if accelerator().device_name() != "cpu":
        return True
    # Stage 0 is for fp32, which a CPU is not slow in.
    return native_bf16() and _read_deepspeed(run.deepspeed)["zero_optimization"]["stage"] > 0


@cache
def native_bf16() -> bool:
    """Whether the CPUs of all ranks have bfloat16; the first call of a job is one of all ranks."""
    mine = torch.tensor([has_native_bf16()], dtype=torch.int32)
    if torch.distributed.is_initialized() and accelerator().device_name() == "cpu":
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MIN)
    return bool(mine)


def build_engine(
    run: RunConfig,
    model: ModelConfig,
    world_size: int,
    universal: bool = False,
    from_init: bool = True,
) -> Any:
    """The network of a run as a DeepSpeedEngine; the same initial weights on any number of ranks.

    Args:
        universal: whether a universal checkpoint will be loaded into it.
        from_init: whether it starts with the weights of `init`, whose network `model` then is, or
            those of `initial_weights`.

    Raises:
        ConfigError: see `deepspeed_config`; if `initial_weights` do not suit the network.
        CheckpointError: if the file of `init` cannot be used.
    """
    config = deepspeed_config(run, world_size)
    set_tf32(run.precision == "tf32")
    if universal:
        config["checkpoint"] = {"load_universal": True}
    stage = config["zero_optimization"]["stage"]
    torch.manual_seed(run.seed)
    network_class(model.architecture)  # no class is defined while DeepSpeed watches them
    with partitioned_at_init(config, enabled=stage == 3):
        network = build(model)
    # DeepSpeed broadcasts parameters as bytes, which needs them contiguous (ZeRO-3's always are).
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    if run.compile == "blocks" and stage < 3:
        network.compile_stages(uses_graphs(run, config))
    elif run.compile == "blocks":
        compile_leaves(network)
    network.checkpoint_activations(run.checkpoint_activations)
    scaled = scalings(run, model)
    if scaled and run.init is None:
        scale_initial(network, scaled)
    if run.init is not None and from_init:
        _start_from(network, run.init)
    elif run.initial_weights == "principal_components" and from_init:
        load_weights(network, principal_network(run, model).state_dict())
    kinds = {type(module) for module in network.modules()}
    if leaves := [kind for kind in LEAVES if kind in kinds]:  # it refuses kinds that are not there
        deepspeed.utils.set_z3_leaf_modules(network, leaves)
    settle_heap(_device(config, "offload_optimizer") == "nvme")
    if not network.repeats_modules:
        # DeepSpeed looks for the next use of a module through all that follow, for every module.
        config["zero_optimization"].setdefault("stage3_max_reuse_distance", 0)
    if stage == 0 and accelerator().device_name() == "cpu":
        few = sum(parameter.numel() for parameter in network.parameters()) <= UPDATED_AT_ONCE
        config["optimizer"]["params"]["foreach"] = few
    groups: Any = parameter_groups(network, run.optimizer, scaled)  # annotated as a module
    engine, *_ = deepspeed.initialize(model=network, model_parameters=groups, config=config)
    skip_recovery_script(engine)
    return engine


def compile_leaves(network: nn.Module, backend: str = "inductor") -> None:
    """Run each block that ZeRO-3 gathers as one through torch.compile, inside of DeepSpeed's hooks.

    They gather its parameters before it and release them after, forward and backward; a larger part
    would be cut at each of them.
    """
    call = CompiledCall(graphs=False, backend=backend)
    for module in network.modules():
        if isinstance(module, LEAVES):
            block: Any = module  # which has a signature of its own
            block.forward = partial(call, block.forward)


def _start_from(network: CodecNetwork, path: Path) -> None:
    """Give a network the weights of a model file; gains that the file lacks are 1 at its λ."""
    loaded = load_model(init_file(path))
    state = loaded.network.state_dict()
    if network.gains is not None and loaded.network.gains is None:
        start = network.gains.start(loaded.info.lmbda)
        channels = loaded.info.config.latent_channels
        state["gains.logs"] = start[:, None].expand(-1, channels)
    load_weights(network, state)
