"""Trains narrow networks of several variants in one job, so that its processes start once.

    python tests/distributed/peers_job.py CONFIG OUT RANK WORLD PORT VARIANT...

Of one rank, OUT/<variant>/plain is a run under ZeRO-0 without recomputation. Of two, under ZeRO-3
with it: OUT/<variant>/spread is trained through, OUT/<variant>/resumed stopped halfway and
continued. What a variant raised is in OUT/<variant>/error-<rank>.txt.
"""

import os
import sys
import threading
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch

PLAIN = ("deepspeed=zero0", "checkpoint_activations=false")
SPREAD = ("deepspeed=zero3", "checkpoint_activations=true")


def main(config: Path, out: Path, rank: int, world: int, port: str, variants: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    from hpcm_scale.config import load_run
    from hpcm_scale.training.engine import init_distributed, leave_job
    from hpcm_scale.training.job import leave
    from hpcm_scale.training.prepare import prepare
    from hpcm_scale.training.watchdog import NoWatchdog

    init_distributed(timeout=300)

    def train(variant: str, name: str, resume: str, *changes: str) -> None:
        changes = (f"name={name}", f"out={out / variant}", f"model.variant={variant}", *changes)
        run = load_run(config, list(changes))
        prepared = prepare(run, resume, rank, world, threading.Event())
        with prepared.monitor or nullcontext():
            prepared.trainer.run_to_end(prepared.monitor, NoWatchdog())
        prepared.lock.release()

    for variant in variants:
        (out / variant).mkdir(parents=True, exist_ok=True)
        try:
            if world == 1:
                train(variant, "plain", "never", *PLAIN)
                continue
            train(variant, "spread", "never", *SPREAD)
            train(variant, "resumed", "never", *SPREAD, f"steps={load_run(config).steps // 2}")
            train(variant, "resumed", "auto", *SPREAD)
        except Exception:  # noqa: BLE001 - the other variants are trained all the same
            (out / variant / f"error-{rank}.txt").write_text(traceback.format_exc())
    leave_job()
    leave(0, "")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        sys.argv[5],
        sys.argv[6:],
    )
