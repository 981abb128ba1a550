"""Run by the launcher on two ranks: in every ZeRO stage, a bad step on one rank is no step on any.

Prints, for each precision, stage and fault, on how many ranks the step was left out, left master
weights and those of the passes alone, was followed by a good one, and this moved the weights
exactly as in a run that never saw the fault.
"""

import argparse
import json
import sys
from itertools import product
from typing import Any

import deepspeed
import torch

from hpcm_scale.training.ema import master_shards
from hpcm_scale.training.engine import init_distributed
from hpcm_scale.training.guard import StepGuard

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int)
parser.parse_args()
RANK, _ = init_distributed(timeout=60)
CLIP = 0.5
FAULTS = ("loss", "gradient", "overflow")
OVERFLOWING = 3.4e38
"""A number in fp32, infinite in bf16: the largest are 3.4028e38 and 3.3895e38."""


def guarded(bf16: bool, stage: int) -> StepGuard:
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": CLIP if stage else 0.0,
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "Adam", "params": {"lr": 0.1, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "steps_per_print": 2**31,
    }
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    engine, *_ = deepspeed.initialize(
        model=network, model_parameters=network.parameters(), config=config
    )
    return StepGuard(engine, CLIP)


def step(guard: StepGuard, fault: str | None) -> bool:
    x = torch.linspace(-1, 1, 12).view(4, 3) + RANK
    bias = guard.engine.module[2].bias
    loss = guard.engine(x.to(bias.dtype)).float().square().mean()
    if fault == "loss" and RANK == 1:
        loss = loss * float("nan")
    if fault == "gradient" and RANK == 1:
        # d√u/du at 0 is infinite, and 0 · ∞ no number, though the loss is one.
        loss = loss + (bias * 0).sum().sqrt()
    if fault == "overflow" and RANK == 1:
        loss = loss + (bias - bias.detach()).float().sum() * OVERFLOWING  # the loss stays as it is
    guard.engine.backward(loss)
    return guard.step(loss).stepped


def own_part(parameter: Any) -> torch.Tensor:
    """This rank's values of a parameter, which stage 3 pads; all of it in the others."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter
    return part[: max(0, parameter.ds_numel - RANK * part.numel())]


def weights(guard: StepGuard) -> list[torch.Tensor]:
    """Copies of this rank's master weights, and of its part of those the passes compute with."""
    masters = [shard.values for shard in master_shards(guard.engine).values()]
    used = [own_part(parameter) for parameter in guard.engine.module.parameters()]
    return [tensor.detach().clone() for tensor in (*masters, *used)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


found = {}
for bf16, stage in ((False, 0), *product((False, True), (1, 2, 3))):
    clean, faulty = guarded(bf16, stage), guarded(bf16, stage)
    moved = step(clean, None) and step(faulty, None)
    for fault in FAULTS if bf16 else FAULTS[:2]:
        before = weights(faulty)
        skipped = not step(faulty, fault)
        kept = same(before, weights(faulty))
        moved = step(clean, None) and step(faulty, None) and moved
        equal = same(weights(clean), weights(faulty)) and not same(before, weights(faulty))
        verdict = torch.tensor([skipped, kept, moved, equal], dtype=torch.int32)
        torch.distributed.all_reduce(verdict)
        found[f"{'bf16' if bf16 else 'fp32'} {stage} {fault}"] = verdict.tolist()
if RANK == 0:
    sys.stdout.write(f"\n{json.dumps(found)}\n")
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # or threads that meet a peer which has ended may abort
