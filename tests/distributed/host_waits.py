"""Run as a job of one: counts what makes the host wait for the device in a step, by ZeRO stage.

    python tests/distributed/host_waits.py DATASET OUT

On a CPU nothing waits, so the device is told apart by descent: what is computed from parameters,
or from anything that was, would lie on a GPU, and reading it from Python would wait. Prints the
calls that read of each step, and those of a step with a `float(loss)` put in.
"""

import gc
import json
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpcm_scale.config import DataConfig, ModelChoice, RunConfig
from hpcm_scale.training.engine import init_distributed
from hpcm_scale.training.loop import Trainer
from hpcm_scale.training.prepare import prepare

READS = ("tolist", "cpu", "numpy", "__array__", "__bool__", "__float__", "__int__", "item")
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique")


class Descent:
    """Storages that would lie on the device."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.reads: list[str] = []

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.known.discard, key)

    def has(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.known


class Operations(TorchDispatchMode):
    """Follows the descent through every operation, and notes those that wait."""

    def __init__(self, descent: Descent) -> None:
        super().__init__()
        self.descent = descent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(self.descent.has(tensor) for tensor in inputs)
        out = func(*args, **(kwargs or {}))
        if on_device:
            if func.name().startswith(WAITING):
                self.descent.reads.append(func.name())
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.descent.add(leaf)
        return out


class Reads(TorchFunctionMode):
    """Notes reads that no operation is dispatched for."""

    def __init__(self, descent: Descent) -> None:
        super().__init__()
        self.descent = descent

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS[:4] and args and self.descent.has(args[0]):
            self.descent.reads.append(name)
        return func(*args, **(kwargs or {}))


def trainer_of(stage: str, folder: Path, dataset: str) -> Trainer:
    run = RunConfig(
        name=stage,
        out=folder,
        model=ModelChoice(width=0.025),
        data=DataConfig(train=dataset, streams=4, workers=0, shuffle_buffer=4),
        deepspeed=stage,
        steps=9,
        batch=2,
        micro_batch=1,
        optimizer={"ema": 0.9},  # pyright: ignore[reportArgumentType]
    )
    return prepare(run, "never", 0, 1, threading.Event()).trainer


def reads_of_a_step(trainer: Trainer, spoiled: bool = False) -> list[str]:
    descent = Descent()
    for thing in gc.get_objects():
        # Of the states that were there before, Adam's count of steps alone is the host's.
        if isinstance(thing, Tensor) and thing.dim() and thing.numel():
            descent.add(thing)
    batch = trainer.batches.next()
    one_pass = trainer._pass
    if spoiled:
        trainer._pass = lambda part: [f := one_pass(part), float(f.sum())][0]
    with Reads(descent), Operations(descent):
        trainer.step(batch)
    trainer._pass = one_pass
    return descent.reads


dataset, out = sys.argv[1:]
init_distributed(timeout=60)
found = {}
for stage in ("zero0", "zero1", "zero2", "zero3"):
    trainer = trainer_of(stage, Path(out), dataset)
    trainer.step(trainer.batches.next())  # states are made in the first
    found[stage] = [reads_of_a_step(trainer), reads_of_a_step(trainer, spoiled=True)]
sys.stdout.write(f"\n{json.dumps(found)}\n")
torch.distributed.destroy_process_group()
