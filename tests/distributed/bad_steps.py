"""Run by the launcher on two ranks: in every ZeRO stage, a bad step on one rank is no step on any.

Prints, for each stage and fault, whether every rank left its weights alone, and then moved them
with the next good step exactly as a run that never saw the fault.
"""

import argparse
import json
import sys

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


def guarded(stage: int) -> StepGuard:
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": CLIP if stage else 0.0,
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
    loss = guard.engine(x).square().mean()
    if fault == "loss" and RANK == 1:
        loss = loss * float("nan")
    if fault == "gradient" and RANK == 1:
        # d√u/du at 0 is infinite, and 0 · ∞ no number, though the loss is one.
        loss = loss + (guard.engine.module[2].bias * 0).sum().sqrt()
    guard.engine.backward(loss)
    return guard.step(loss).stepped


def weights(guard: StepGuard) -> list[torch.Tensor]:
    return [piece.values.detach().clone() for piece in master_shards(guard.engine).values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


found = {}
for stage in range(4):
    for fault in ("loss", "gradient"):
        clean, faulty = guarded(stage), guarded(stage)
        moved = step(clean, None) and step(faulty, None)
        before = weights(faulty)
        skipped = not step(faulty, fault)
        kept = same(before, weights(faulty))
        moved = moved and step(clean, None) and step(faulty, None)
        equal = same(weights(clean), weights(faulty)) and not same(before, weights(faulty))
        verdict = torch.tensor([skipped and kept and moved and equal], dtype=torch.int32)
        torch.distributed.all_reduce(verdict)
        found[f"{stage} {fault}"] = int(verdict)
if RANK == 0:
    sys.stdout.write(f"\n{json.dumps(found)}\n")
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # or threads that meet a peer which has ended may abort
