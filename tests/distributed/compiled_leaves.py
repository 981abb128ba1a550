"""Run by the launcher on two ranks: blocks that ZeRO-3 gathers as one, compiled and as they are.

Prints the losses of each backend of torch.compile, and of none.
"""

import argparse
import json
import sys

import deepspeed
import torch

from hpcm_scale.models.blocks.residual import PConvRB
from hpcm_scale.training.engine import compile_leaves, init_distributed

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int)
parser.parse_args()
RANK, _ = init_distributed(timeout=300)
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "torch_adam": True}},
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 1,
        "stage3_prefetch_bucket_size": 0,
    },
    "steps_per_print": 2**31,
}


def losses(backend: str | None) -> list[float]:
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=CONFIG):
        network = torch.nn.Sequential(PConvRB(16, 4, 2), PConvRB(16, 4, 2))
    if backend is not None:
        compile_leaves(network, backend)
    deepspeed.utils.set_z3_leaf_modules(network, [PConvRB])
    engine, *_ = deepspeed.initialize(
        model=network, model_parameters=network.parameters(), config=CONFIG
    )
    # DeepSpeed lets go of the parameters of a block whose input needs no gradient too early.
    x = torch.rand(1, 16, 16, 16, generator=torch.manual_seed(RANK), requires_grad=True)
    found = []
    for _ in range(4):
        loss = engine(x.contiguous(memory_format=torch.channels_last)).square().mean()
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        found.append(total.item())
        assert not any(parameter.numel() for parameter in network.parameters())  # all released
    return found


found = {str(backend): losses(backend) for backend in (None, "aot_eager", "inductor")}
if RANK == 0:
    sys.stdout.write(f"\n{json.dumps(found)}\n")
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # or threads that meet a peer which has ended may abort
