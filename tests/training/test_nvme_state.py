"""Optimizer state that lies on disks between steps, into a checkpoint and back."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcm_scale.errors import CheckpointError
from hpcm_scale.training.async_checkpoint_writer import CheckpointWriter
from hpcm_scale.training.nvme_state import NvmeState


class SwappingOptimizer:
    """What the state needs of a ZeRO-3 optimizer: groups of over 10 weights lie on disk."""

    swap_optimizer = True

    def __init__(self, sizes: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(size: int) -> Tensor:
            return torch.rand(size, generator=generator)

        self.disk = {
            i: {"master": draw(n), "exp_avg": draw(n), "exp_avg_sq": draw(n), "step": seed}
            for i, n in enumerate(sizes)
        }
        self.fp32_partitioned_groups_flat = [torch.nn.Parameter(torch.empty(0)) for _ in sizes]
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.network: dict[int, Tensor] = {}
        self.most_at_once = 0
        for i, size in enumerate(sizes):
            if size <= 10:
                self._optimizer_states_and_gradient_swap_in(i)

    def _swappable_optimizer_subgroup(self, i: int) -> bool:
        return self.disk[i]["master"].numel() > 10

    def _optimizer_states_and_gradient_swap_in(self, i: int) -> None:
        master = self.fp32_partitioned_groups_flat[i]
        state = dict(self.disk[i])
        master.data = state.pop("master").clone()
        self.state[master] = {k: v.clone() if k != "step" else v for k, v in state.items()}
        held = sum(m.numel() > 10 for m in self.fp32_partitioned_groups_flat)
        self.most_at_once = max(self.most_at_once, held)

    def _release_swap_buffers(self, i: int) -> None:
        master = self.fp32_partitioned_groups_flat[i]
        master.data = torch.empty(0)
        self.state.pop(master, None)

    def _optimizer_states_and_gradient_swap_out(self, i: int) -> None:
        master = self.fp32_partitioned_groups_flat[i]
        self.disk[i] = {"master": master.data.clone()} | self.state[master]
        self._release_swap_buffers(i)

    def _reassign_or_swap_out_partitioned_parameters(self, i: int) -> None:
        self.network[i] = self.fp32_partitioned_groups_flat[i].data.clone()


def engine(optimizer: SwappingOptimizer, saved: dict[str, Any] | None = None) -> Any:
    reader = SimpleNamespace(load=lambda path, where: {"optimizer_state_dict": saved})
    return SimpleNamespace(
        optimizer=optimizer,
        global_rank=0,
        checkpoint_engine=reader,
        _get_zero_ckpt_name=lambda folder, tag: f"{folder}/{tag}",
    )


def deepspeeds_own(optimizer: SwappingOptimizer) -> dict[str, Any]:
    """What DeepSpeed saves: the groups in memory, and nothing of those on disk."""
    flats = [m.data.clone() for m in optimizer.fp32_partitioned_groups_flat]
    kept = {
        i: dict(optimizer.state[m])
        for i, m in enumerate(optimizer.fp32_partitioned_groups_flat)
        if m in optimizer.state
    }
    return {"fp32_flat_groups": flats, "optimizer_state_dict": {"state": kept}}


def save(optimizer: SwappingOptimizer, folder: Path) -> dict[str, Any]:
    writer = CheckpointWriter(background=False)
    folder.mkdir()
    writer.start(folder)
    own = deepspeeds_own(optimizer)
    NvmeState(engine(optimizer)).save(writer, folder)
    writer.finish()
    assert writer.error is None
    return own


def load(optimizer: SwappingOptimizer, folder: Path, own: dict[str, Any]) -> None:
    made = engine(optimizer, own)
    NvmeState(made)
    assert made._load_zero_checkpoint(str(folder.parent), folder.name)


def test_what_was_saved_comes_back_steps_of_adam_included(tmp_path):
    old = SwappingOptimizer([25, 4, 12], seed=7)
    own = save(old, tmp_path / "step-00000001")
    assert old.most_at_once == 1  # one sub-group in memory at a time
    new = SwappingOptimizer([25, 4, 12], seed=8)
    load(new, tmp_path / "step-00000001", own)
    for i, expected in old.disk.items():
        if i == 1:  # small enough to stay in memory
            master = new.fp32_partitioned_groups_flat[i]
            found = {"master": master.data} | new.state[master]
        else:
            found = new.disk[i]
        assert found["step"] == expected["step"] == 7
        for name in ("master", "exp_avg", "exp_avg_sq"):
            assert torch.equal(found[name], expected[name])
        assert torch.equal(new.network[i], expected["master"])


def test_another_division_into_groups_is_refused(tmp_path):
    own = save(SwappingOptimizer([25, 4], seed=7), tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"2 sub-groups, this run's in 1; keep the sub_group"):
        load(SwappingOptimizer([29], seed=8), tmp_path / "step-00000001", own)
    with pytest.raises(CheckpointError, match=r"has 25 parameters, this run's 24"):
        load(SwappingOptimizer([24, 5], seed=8), tmp_path / "step-00000001", own)


def test_an_engine_that_keeps_all_in_memory_has_none():
    assert NvmeState.of(SimpleNamespace(optimizer=SimpleNamespace(swap_optimizer=False))) is None
