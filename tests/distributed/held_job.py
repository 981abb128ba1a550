"""Runs a forward pass under ZeRO-3 on one of two ranks; prints what gathered values stay in memory.

    python tests/distributed/held_job.py FOLDER RANK PORT

Rank 0 prints the number of parameters whose values are there after DeepSpeed has let them go, all
1×1 convolutions and resamplings being products with weights as they lie, as on a GPU.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

ALL_RELEASED = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 1,
    "stage3_prefetch_bucket_size": 0,
}


def main(folder: Path, rank: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    from hpcm_scale.bench.train_workers import case
    from hpcm_scale.config import ModelChoice
    from hpcm_scale.models.blocks import resampling
    from hpcm_scale.models.codec_network import noise_shapes
    from hpcm_scale.models.zoo import chosen_model
    from hpcm_scale.planning.memory import kernels_of
    from hpcm_scale.training.engine import build_engine, init_distributed, leave_job
    from hpcm_scale.training.job import leave

    config = folder / f"config-{rank}.json"
    config.write_text(json.dumps({"zero_optimization": ALL_RELEASED}))
    init_distributed(timeout=300)
    run = case("", ModelChoice(width=0.025), deepspeed=str(config), batch=2, ranks=2).run
    model = chosen_model(run.model)
    engine = build_engine(run, model, 2)
    seen: dict[Any, list[StorageWeakRef]] = defaultdict(list)

    def note(module: torch.nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.numel():
                seen[parameter].append(StorageWeakRef(parameter.data.untyped_storage()))

    for module in engine.module.modules():
        module.register_forward_pre_hook(note)
    x = torch.rand(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    y, z = (torch.rand(shape) - 0.5 for shape in noise_shapes(model, 1, 256, 256))
    resampling.as_it_lies = lambda weight, _: weight.is_contiguous()
    with kernels_of("cuda"):
        output = engine(x, (y, z))
    parameters = list(engine.module.parameters())
    released = [p for p in parameters if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
    held = [p for p in released if any(not storage.expired() for storage in seen[p])]
    if rank == 0:
        figures = {
            "parameters": len(parameters),
            "released": len(released),
            "held": sum(p.ds_numel for p in held),
        }
        sys.stdout.write(f"{json.dumps(figures)}\n")
    del output
    torch.distributed.barrier()
    leave_job()
    leave(0, "")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
