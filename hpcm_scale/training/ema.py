"""A moving average of the weights, spread over ranks as the optimizer's weights are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import safe_open
from torch import Tensor, nn

from hpcm_scale.errors import CheckpointError
from hpcm_scale.training.deepspeed_internals import (
    ParamShard,
    is_partitioned,
    lerp,
    master_shards,
    put_shards,
)


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
        lerp(
            [shard.values for shard in self.shards.values()],
            [weights[name].values.detach() for name in self.shards],
            1 - decay,
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network computes with the average inside this block; every rank must enter it.

        An exception leaves the average in place: giving the weights back is a collective, for
        which the rank that raised it would wait in vain, and the job is over.
        """
        weights = master_shards(self.engine)
        if not self.engine.bfloat16_enabled():  # they may be the network's own
            weights = {name: ParamShard(start, w.clone()) for name, (start, w) in weights.items()}
        put_shards(self.engine, self.shards)
        yield
        put_shards(self.engine, weights)

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


def load_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a network, which ZeRO-3 may have spread already, whole weights by name."""
    for name, parameter in module.named_parameters():
        # Rank 0's values reach the others when the block ends.
        spread = is_partitioned(parameter)
        with (
            torch.no_grad(),
            deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=spread),
        ):
            if parameter.numel():
                parameter.copy_(state[name])
