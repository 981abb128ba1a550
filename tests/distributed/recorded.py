"""Run by the launcher in place of launch/train.py: trains, and records what each step consumes.

Each rank appends a line a step to RECORD/rank-N.jsonl, after the step and by one write, so that a
killed process leaves whole lines.
"""

import json
import os
import sys
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "launch"))

import train  # noqa: E402

from hpcm_scale.training.loop import Trainer  # noqa: E402

taken = Trainer.step


def step(self: Trainer, batch: dict) -> object:
    done = taken(self, batch)
    line = {
        "session": int(os.environ["SESSION"]),
        "at": time.time(),
        "step": batch["step"],
        "epoch": batch["epoch"],
        "samples": batch["sample"].tolist(),
        "crops": [zlib.crc32(image.numpy().tobytes()) for image in batch["crop"]],
        "loss": done.loss,
    }
    path = Path(os.environ["RECORD"]) / f"rank-{self.rank}.jsonl"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)
    return done


Trainer.step = step
train.main()
