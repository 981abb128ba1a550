"""Optimizer state that ZeRO-3 keeps on disks, into checkpoints and back.

DeepSpeed 0.19 copies its swap files beside a checkpoint as they are: without checksums, without a
word of which parameters they hold, and on the way back without Adam's count of steps or the groups
too small to be swapped. Here every sub-group of a rank becomes a safetensors file of its own, put
together and written one at a time, so that neither way needs more memory than a step.
"""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from hpcm_scale.errors import CheckpointError
from hpcm_scale.training.async_checkpoint_writer import CheckpointWriter
from hpcm_scale.training.deepspeed_internals import SwappedOptimizer
from hpcm_scale.training.zero_checkpoint import MASTER, swapped_file

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running averages, by DeepSpeed's names."""


class NvmeState:
    """The sub-groups of one rank's optimizer that are on disk between steps."""

    def __init__(self, engine: Any) -> None:
        self.optimizer, self.rank = SwappedOptimizer(engine), engine.global_rank
        self.optimizer.take_over_checkpoints(self._load)

    @staticmethod
    def of(engine: Any) -> "NvmeState | None":
        """None if the engine keeps all of its state in memory."""
        return NvmeState(engine) if SwappedOptimizer.has(engine) else None

    def save(self, writer: CheckpointWriter, folder: Path) -> None:
        """Write this rank's files of a checkpoint."""
        optimizer = self.optimizer
        for group, master in enumerate(optimizer.masters):
            if not optimizer.is_swapped(group):
                continue  # DeepSpeed's own file has it
            optimizer.swap_in(group)
            state = optimizer.state.get(master, {})
            tensors = {MASTER: master.data, **{name: state[name] for name in MOMENTS if state}}
            metadata = {"step": str(state.get("step", 0))}
            writer.save_tensors(folder / swapped_file(self.rank, group), tensors, metadata)
            optimizer.release(group)

    def _load(self, load_dir: str, tag: str, load_optimizer_states: bool = True) -> bool:
        """In place of the engine's method of that name.

        Raises:
            CheckpointError: if the files are of another division into sub-groups.
        """
        folder, optimizer = Path(load_dir) / tag, self.optimizer
        saved = optimizer.saved_state(load_dir, tag)
        flats, states = saved["fp32_flat_groups"], saved["optimizer_state_dict"]["state"]
        masters = optimizer.masters
        if len(flats) != len(masters):
            raise CheckpointError(
                f"{folder}: its optimizer state is in {len(flats)} sub-groups, this run's in "
                f"{len(masters)}; keep the sub_group_size of its DeepSpeed configuration"
            )
        for group, master in enumerate(masters):
            swapped = optimizer.is_swapped(group)
            if swapped:
                optimizer.swap_in(group)
            if flats[group].numel() == 0:
                values, step = _read(folder / swapped_file(self.rank, group))
            else:
                state = states.get(group, {})
                values = {MASTER: flats[group], **{n: state[n] for n in MOMENTS if state}}
                step = state.get("step", 0)
            if values[MASTER].numel() != master.numel():
                raise CheckpointError(
                    f"{folder}: its sub-group {group} has {values[MASTER].numel()} parameters, "
                    f"this run's {master.numel()}; keep the sub_group_size of its DeepSpeed "
                    "configuration and the number of ranks"
                )
            master.data.copy_(values.pop(MASTER))
            if values:
                optimizer.state[master] = {"step": step} | values
            optimizer.put_back(group, swapped)
        return True


def _read(path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of a sub-group and the steps Adam has made with them."""
    with safe_open(path, framework="pt") as stored:
        metadata: dict[str, Any] = stored.metadata()
        # Copies: mapped, they would need the file for as long as the run goes on.
        return {name: stored.get_tensor(name).clone() for name in stored.keys()}, int(  # noqa: SIM118
            metadata["step"]
        )
