"""Optimizer state that ZeRO-3 keeps on disks, into checkpoints and back.

DeepSpeed 0.19 copies its swap files beside a checkpoint as they are: without checksums, without a
word of which parameters they hold, and on the way back without Adam's count of steps or the groups
too small to be swapped. Here every sub-group of a rank becomes a safetensors file of its own, put
together and written one at a time, so that neither way needs more memory than a step.
"""

from pathlib import Path
from typing import Any

from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import safe_open
from torch import Tensor

from hpcm_scale.errors import CheckpointError
from hpcm_scale.training.async_checkpoint_writer import CheckpointWriter
from hpcm_scale.training.zero_checkpoint import MASTER, swapped_file

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running averages, by DeepSpeed's names."""


class NvmeState:
    """The sub-groups of one rank's optimizer that are on disk between steps."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine, self.optimizer, self.rank = engine, engine.optimizer, engine.global_rank
        engine.zero_nvme_offload_optimizer = lambda: False  # what it does then is done here
        engine._load_zero_checkpoint = self._load

    @staticmethod
    def of(engine: DeepSpeedEngine) -> "NvmeState | None":
        """None if the engine keeps all of its state in memory."""
        return NvmeState(engine) if getattr(engine.optimizer, "swap_optimizer", False) else None

    def save(self, writer: CheckpointWriter, folder: Path) -> None:
        """Write this rank's files of a checkpoint."""
        optimizer = self.optimizer
        for group, master in enumerate(optimizer.fp32_partitioned_groups_flat):
            if not optimizer._swappable_optimizer_subgroup(group):
                continue  # DeepSpeed's own file has it
            optimizer._optimizer_states_and_gradient_swap_in(group)
            state = optimizer.state.get(master, {})
            tensors = {MASTER: master.data, **{name: state[name] for name in MOMENTS if state}}
            metadata = {"step": str(state.get("step", 0))}
            writer.save_tensors(folder / swapped_file(self.rank, group), tensors, metadata)
            optimizer._release_swap_buffers(group)

    def _load(self, load_dir: str, tag: str, load_optimizer_states: bool = True) -> bool:
        """In place of the engine's method of that name.

        Raises:
            CheckpointError: if the files are of another division into sub-groups.
        """
        folder, optimizer = Path(load_dir) / tag, self.optimizer
        path = self.engine._get_zero_ckpt_name(load_dir, tag)
        saved = self.engine.checkpoint_engine.load(path, "cpu")["optimizer_state_dict"]
        flats, states = saved["fp32_flat_groups"], saved["optimizer_state_dict"]["state"]
        masters = optimizer.fp32_partitioned_groups_flat
        if len(flats) != len(masters):
            raise CheckpointError(
                f"{folder}: its optimizer state is in {len(flats)} sub-groups, this run's in "
                f"{len(masters)}; keep the sub_group_size of its DeepSpeed configuration"
            )
        for group, master in enumerate(masters):
            swapped = optimizer._swappable_optimizer_subgroup(group)
            if swapped:
                optimizer._optimizer_states_and_gradient_swap_in(group)
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
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if swapped:
                optimizer._optimizer_states_and_gradient_swap_out(group)
        return True


def _read(path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of a sub-group and the steps Adam has made with them."""
    with safe_open(path, framework="pt") as stored:
        metadata: dict[str, Any] = stored.metadata()
        # Copies: mapped, they would need the file for as long as the run goes on.
        return {name: stored.get_tensor(name).clone() for name in stored.keys()}, int(  # noqa: SIM118
            metadata["step"]
        )
