"""The run of a soak: its pictures, its processes, and what they have recorded."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from hpcm_scale.data.order import Order
from hpcm_scale.data.pack import pack
from hpcm_scale.data.recipe import read_recipe
from hpcm_scale.data.shards import read_manifest
from tests.distributed.jobs import ROOT, deepspeed, environment

RANKS = 2
BATCH = 2
SEED = 3
CROP = 256
STREAMS = 4
SHUFFLED = 4
EVERY = 5
"""Steps between checkpoints."""

RUN = f"""
name: soak
seed: {SEED}
model: {{variant: base, width: 0.025}}
data:
  {{crop: {CROP}, streams: {STREAMS}, workers: 1, shuffle_buffer: {SHUFFLED}, max_bad_rate: 0}}
optimizer: {{lr: 1.0e-3, ema: 0.9}}
deepspeed: zero3
precision: fp32
batch: {BATCH}
log_every: 1
validate_every: 40
checkpoint: {{every: {EVERY}, keep: 2}}
guard: {{timeout: 60}}
"""


def make_dataset(folder: Path) -> Path:
    """Forty smooth random pictures, one of them for validation, in shards of ten or so."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(40):
        coarse = generator.integers(0, 256, (8, 9, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((288, 272), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:02d}.png")
    recipe = folder / "recipe.yaml"
    recipe.write_text("{licence: made here, min_side: 256, shard_mb: 0.7, val: {names: ['00']}}")
    pack(str(folder), folder / "shards", read_recipe(recipe))
    return folder / "shards"


def order_of(dataset: Path) -> Order:
    """The order in which the run has to consume its samples."""
    split = read_manifest(str(dataset)).split("train", str(dataset))
    return Order([shard.samples for shard in split.shards], STREAMS, SEED, SHUFFLED)


def copy_code(target: Path) -> Path:
    """The code that all sessions run: a change to it in between could change their rounding."""
    for folder in ("hpcm_scale", "configs", "launch"):
        shutil.copytree(ROOT / folder, target / folder)
    entry = Path("tests", "distributed", "recorded.py")
    (target / entry).parent.mkdir(parents=True)
    shutil.copy(ROOT / entry, target / entry)
    return target


class Job:
    """Sessions of one run, one after the other.

    Args:
        code: as `copy_code` leaves it.
        out: gets the run's folder; it may become full.
        record: gets what the ranks consume, and a log of every session.
    """

    def __init__(self, code: Path, out: Path, record: Path, dataset: Path, steps: int) -> None:
        self.code = code
        self.run, self.record, self.dataset, self.steps = out / "soak", record, dataset, steps
        self.session = 0
        self.shared_left = 0
        """DeepSpeed's buffers that killed jobs have left in shared memory; removed here."""
        self.process: subprocess.Popen | None = None
        self._seen: dict[int, psutil.Process] = {}
        record.mkdir(parents=True)
        (record / "run.yaml").write_text(RUN)

    def begin(self) -> None:
        """Start the next session."""
        self.session += 1
        self._seen = {}
        changes = (f"data.train={self.dataset}", f"out={self.run.parent}", f"steps={self.steps}")
        arguments = ["--config", str(self.record / "run.yaml"), "--resume", "auto"]
        for change in changes:
            arguments += ["--set", change]
        described = {"SESSION": str(self.session), "RECORD": str(self.record)}
        described["PYTHONPATH"] = str(self.code)  # before the package that is installed
        launcher = deepspeed(RANKS)
        self._port = launcher[-1]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*launcher, "tests/distributed/recorded.py", *arguments],
                cwd=self.code,
                env=environment() | described,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> Path:
        """What the newest session prints."""
        return self.record / f"session-{self.session:02d}.log"

    @property
    def ended(self) -> bool:
        """Whether the launcher of the newest session has ended."""
        return self.process.poll() is not None

    def tree(self) -> list[psutil.Process]:
        """The launcher and all it has started, as far as seen alive."""
        try:
            top = psutil.Process(self.process.pid)
            for process in (top, *top.children(recursive=True)):
                self._seen[process.pid] = process
        except psutil.NoSuchProcess:
            pass
        return list(self._seen.values())

    def ranks(self) -> list[psutil.Process]:
        """The training processes of the newest session, rank 0 first; without their workers."""
        found = {}
        for process in self.tree():
            try:
                words, parent = process.cmdline(), process.parent()
                forked = parent is not None and parent.cmdline() == words
            except psutil.Error:
                continue
            for word in words:
                if word.startswith("--local_rank=") and not forked:
                    found[int(word.removeprefix("--local_rank="))] = process
        return [found[rank] for rank in sorted(found)]

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Until `condition`, the end of the session or so many seconds; returns which it was."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if condition():
                return True
            if self.ended:
                return False
            time.sleep(0.02)
        return False

    def end(self, seconds: float = 300) -> tuple[int | None, int]:
        """Wait for the end of the session: exit code (None: it had to be killed), processes left.

        A process counts as left that outlives the launcher by ten seconds.
        """
        self.tree()
        limit = time.monotonic() + seconds
        while not self.ended and time.monotonic() < limit:
            self.tree()
            time.sleep(0.1)
        code = self.process.poll()
        _, left = psutil.wait_procs(self.tree(), timeout=10)
        for process in left:
            process.kill()
        self.process.wait()
        for buffer in Path("/dev/shm").glob(f"deepspeed_*_{self._port}_*"):
            buffer.unlink()
            self.shared_left += 1
        return code, len(left)

    def step(self) -> int:
        """Steps that rank 0 has done, by its newest line; 0 before the first."""
        try:
            with (self.record / "rank-0.jsonl").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 1000))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return 0
        newest = json.loads(lines[-1])
        return newest["step"] + 1

    def stepping(self) -> bool:
        """Whether the newest session has done a step."""
        lines = self.consumed(0)
        return bool(lines) and lines[-1]["session"] == self.session

    def consumed(self, rank: int) -> list[dict]:
        """The lines of a rank, oldest first."""
        path = self.record / f"rank-{rank}.jsonl"
        return [*map(json.loads, path.read_text().splitlines())] if path.exists() else []

    def rows(self, kind: str) -> list[dict]:
        """The rows of one kind in the run's metrics."""
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == kind]
