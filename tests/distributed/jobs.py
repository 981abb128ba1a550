"""Runs of a small network as processes through the launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hpcm_scale.training.rendezvous import free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

RUN = """
name: small
seed: 3
model: {variant: base, width: 0.025}
data: {streams: 4, workers: 0, shuffle_buffer: 4}
optimizer: {lr: 1.0e-3}
steps: 3
batch: 4
log_every: 1
precision: fp32
"""


def deepspeed(ranks: int) -> list[str]:
    """The launcher for so many processes, on a port that is free."""
    head = [str(BIN / "deepspeed"), "-q", "--num_accelerators", str(ranks)]
    return [*head, "--master_port", str(free_port())]


def environment() -> dict[str, str]:
    """What the launcher needs in its environment."""
    path = f"{BIN}:{os.environ['PATH']}"
    # One thread a rank: on a busy machine two wait for each other more than they work.
    return os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path}


def command(
    out: Path, dataset: Path, ranks: int, *changes: str, resume: str = "never"
) -> list[str]:
    """Trains in `ranks` processes: through the launcher, or without it for one."""
    config = out / "run.yaml"
    out.mkdir(parents=True, exist_ok=True)
    config.write_text(RUN)
    arguments = ["launch/train.py", "--config", str(config), "--resume", resume]
    for change in (f"data.train={dataset}", f"out={out}", *changes):
        arguments += ["--set", change]
    return [*(deepspeed(ranks) if ranks > 1 else [sys.executable]), *arguments]


def verb(out: Path, dataset: Path, ranks: int, *changes: str, resume: str = "never") -> list[str]:
    """The same by `hpcm-scale train`."""
    _, script, _, config, *others = command(out, dataset, 1, *changes, resume=resume)
    assert script == "launch/train.py"
    program = [sys.executable, "-m", "hpcm_scale", "train", config]
    return [*program, "--accelerators", str(ranks), *others]


def launch(
    out: Path, dataset: Path, ranks: int, *changes: str, resume: str = "never"
) -> subprocess.CompletedProcess:
    """Train to the end."""
    return subprocess.run(
        command(out, dataset, ranks, *changes, resume=resume),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )


def rows(out: Path, kind: str) -> list[dict]:
    """The rows of one kind that the run in `out` has left."""
    lines = (out / "small" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]
