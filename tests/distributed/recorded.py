"""Run by the launcher in place of launch/train.py: trains, and records what each step consumes.

Each rank appends a line a step to RECORD/rank-N.jsonl, after the step and by one write, so that a
killed process leaves whole lines.
"""

import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "launch"))

import train  # noqa: E402

from hpcm_scale.data.stream import TrainStream  # noqa: E402
from hpcm_scale.training.loop import Trainer  # noqa: E402
from hpcm_scale.training.transfer import Batch  # noqa: E402

given = TrainStream.__iter__
taken = Trainer.step
samples: dict[int, list[int]] = {}
"""What the stream put into the batch of each step not yet taken."""


def batches(self: TrainStream) -> Iterator[dict[str, Any]]:
    for batch in given(self):
        samples[batch["step"]] = batch["sample"].tolist()
        yield batch


def step(self: Trainer, batch: Batch) -> object:
    done = taken(self, batch)
    crops = [image for part in batch.micro_batches for image in part.crops]
    line = {
        "session": int(os.environ["SESSION"]),
        "at": time.time(),
        "step": batch.step,
        "epoch": batch.epoch,
        "samples": samples.pop(batch.step),
        "crops": [zlib.crc32(image.numpy().tobytes()) for image in crops],
        "loss": done.loss,
    }
    path = Path(os.environ["RECORD"]) / f"rank-{self.rank}.jsonl"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)
    return done


TrainStream.__iter__ = batches
Trainer.step = step
train.main()
