"""A moving average of the weights, spread over ranks as the optimizer's weights are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import safe_open
from torch import Tensor, nn

from hpcm_scale.errors import CheckpointError


class ParamShard(NamedTuple):
    """What this rank holds of one parameter's fp32 weights."""

    start: int
    """Index of its first value in the flattened parameter."""
    values: Tensor
    """1-D float32; the optimizer's own memory, not a copy."""


def master_shards(engine: DeepSpeedEngine) -> dict[str, ParamShard]:
    """This rank's part of the fp32 weights the optimizer updates, by parameter name.

    All of every parameter in stage 0, where nothing is spread. In the other stages the pieces of
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


class ShardedEMA:
    """avg <- decay · avg + (1 − decay) · weights, once a step."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine
        self.shards = {
            name: ParamShard(shard.start, shard.values.detach().clone())
            for name, shard in master_shards(engine).items()
        }

    def update(self, decay: float) -> None:
        """Take the current weights in."""
        weights = master_shards(self.engine)
        torch._foreach_lerp_(
            [shard.values for shard in self.shards.values()],
            [weights[name].values.detach() for name in self.shards],
            1 - decay,
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network computes with the average inside this block; every rank must enter it."""
        weights = master_shards(self.engine)
        if not self.engine.bfloat16_enabled():  # they may be the network's own
            weights = {name: ParamShard(start, w.clone()) for name, (start, w) in weights.items()}
        _put(self.engine, self.shards)
        try:
            yield
        finally:
            _put(self.engine, weights)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of the file a checkpoint keeps for this rank."""
        starts = {name: shard.start for name, shard in self.shards.items()}
        metadata = {"starts": json.dumps(starts), "world": str(self.engine.world_size)}
        return {name: shard.values for name, shard in self.shards.items()}, metadata

    def load(self, files: list[Path]) -> None:
        """Take this rank's pieces from those of all ranks of a checkpoint, however many they were.

        Raises:
            CheckpointError: if they do not cover a parameter.
        """
        missing = {name: shard.values.numel() for name, shard in self.shards.items()}
        for file in files:
            with safe_open(file, framework="pt") as stored:
                starts = json.loads(stored.metadata()["starts"])
                for name in starts.keys() & self.shards.keys():
                    mine, start = self.shards[name], starts[name]
                    part = stored.get_slice(name)
                    length = part.get_shape()[0]
                    low = max(start, mine.start)
                    high = min(start + length, mine.start + mine.values.numel())
                    if low < high:
                        values = part[low - start : high - start]
                        mine.values[low - mine.start : high - mine.start].copy_(values)
                        missing[name] -= high - low
        lacking = [name for name, count in missing.items() if count > 0]
        if lacking:
            raise CheckpointError(
                f"{files[0].parent if files else 'checkpoint'}: the average of the weights lacks "
                f"parts of {lacking[0]} and {len(lacking) - 1} more"
            )


@torch.no_grad()
def _put(engine: DeepSpeedEngine, shards: dict[str, ParamShard]) -> None:
    """Make the network compute with `shards`."""
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
    optimizer = engine.optimizer
    engine.empty_partition_cache()
    for name, parameter in engine.module.named_parameters():
        if name in shards:
            values = shards[name].values
            parameter.ds_tensor.data[: values.numel()].copy_(values)
    kept = optimizer.persistent_parameters  # small ones, whole on every rank between the passes
    if kept:
        kept[0].all_gather(kept)


def load_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a network, which ZeRO-3 may have spread already, whole weights by name."""
    for name, parameter in module.named_parameters():
        # Rank 0's values reach the others when the block ends.
        spread = hasattr(parameter, "ds_id")
        with (
            torch.no_grad(),
            deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=spread),
        ):
            if parameter.numel():
                parameter.copy_(state[name])
