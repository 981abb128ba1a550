"""Trains with frozen parts under ZeRO-3 and records what stays gathered on this rank afterwards.

    python tests/distributed/gathered_job.py CONFIG OUT RANK PORT

OUT/gathered-<rank>.json: the number of parameters, and the names of those whose whole values this
rank still holds after a step.
"""

import json
import os
import sys
import threading
from pathlib import Path

import torch


def main(config: Path, out: Path, rank: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    from hpcm_scale.config import load_run
    from hpcm_scale.training.engine import init_distributed, leave_job
    from hpcm_scale.training.job import leave
    from hpcm_scale.training.prepare import prepare
    from hpcm_scale.training.watchdog import NoWatchdog

    init_distributed(timeout=300)
    run = load_run(config, [f"out={out}", "checkpoint_activations=true"])
    prepared = prepare(run, "never", rank, 2, threading.Event())
    engine = prepared.trainer.engine
    parameters, gathered = dict(engine.module.named_parameters()), set()
    step = engine.step

    def step_and_look() -> None:
        step()
        gathered.update(
            name
            for name, parameter in parameters.items()
            if parameter.ds_status != ZeroParamStatus.NOT_AVAILABLE
        )

    engine.step = step_and_look
    prepared.trainer.run_to_end(None, NoWatchdog())
    (out / f"gathered-{rank}.json").write_text(json.dumps([len(parameters), sorted(gathered)]))
    prepared.lock.release()
    leave_job()
    leave(0, "")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
