"""Makes real checkpoints of a small network, one of every kind, in two processes.

    python tests/training/deepspeed_run.py FOLDER RANK PORT

FOLDER/KIND/checkpoints/step-00000002 is what DeepSpeed saves; FOLDER/KIND/expected.pt the fp32
weights as DeepSpeed's own functions gather them in the live run.
"""

import json
import os
import sys
import zlib
from pathlib import Path

import torch

WORLD, STEP = 2, "step-00000002"
KINDS = {
    "stage-0": (0, False),
    "stage-1": (1, False),
    "stage-2": (2, False),
    "stage-3": (3, False),
    "stage-0-bf16": (0, True),
    "stage-3-bf16": (3, True),
}
OVERRIDES = {
    "latent_channels": 8,
    "hyper_channels": 4,
    "widths": [4, 4, 8],
    "hyper_width": 4,
    "heads": 2,
    "windows": [1, 1, 1],
}


def main(folder: Path, rank: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    from hpcm_scale.training.engine import init_distributed

    init_distributed(timeout=60)
    for kind, (stage, bf16) in KINDS.items():
        save(folder / kind, stage, bf16, rank)


def save(folder: Path, stage: int, bf16: bool, rank: int) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    from hpcm_scale.models.zoo import build, model_config

    settings = {
        "train_batch_size": WORLD,
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}},
        # Sub-groups of a few parameters each: the small network is spread as a large one is.
        "zero_optimization": {"stage": stage, "sub_group_size": 3000},
        "steps_per_print": 2**31,
    }
    config = model_config("base", overrides=OVERRIDES)
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=stage == 3):
        network = build(config)
    network.to(memory_format=torch.contiguous_format)
    engine, *_ = deepspeed.initialize(
        model=network, model_parameters=network.parameters(), config=settings
    )
    torch.manual_seed(1 + rank)
    x = torch.rand(1, 3, 128, 128)
    output = engine(x.to(torch.bfloat16 if bf16 else torch.float32))
    engine.backward((output.x_hat.float() - x).square().mean() + output.bits.float().mean())
    engine.step()
    engine.save_checkpoint(str(folder / "checkpoints"), tag=STEP)
    if stage:
        whole = [safe_get_full_fp32_param(parameter) for parameter in network.parameters()]
    elif bf16:  # that function does not know the optimizer of this case
        whole = [master for group in engine.optimizer.fp32_groups for master in group]
    else:
        whole = list(network.parameters())
    expected = dict(zip((name for name, _ in network.named_parameters()), whole, strict=True))
    if rank == 0:
        expected = {name: tensor.detach().clone() for name, tensor in expected.items()}
        torch.save(expected, folder / "expected.pt")
    torch.distributed.barrier()
    if rank == 0:
        finish(folder / "checkpoints" / STEP, stage)


def finish(checkpoint: Path, stage: int) -> None:
    """Write what declares a checkpoint whole."""
    files = {
        path.name: {"bytes": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
        for path in checkpoint.iterdir()
        if path.name != "checkpoint.json"
    }
    record = {"step": 2, "world_size": WORLD, "stage": stage, "files": files}
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))
    (checkpoint.parent / "latest").write_text(checkpoint.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
