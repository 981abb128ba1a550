"""Runs of two ranks one of which fails, at every stage: DATASET OUT CASE...

Prints a line of JSON for each case: how both ranks ended, what they said, and how long after the
failure the last of them was gone. A case is `stage:rank` or `stage:rank:deepspeed`. All processes
are forks of this one, which has loaded torch and DeepSpeed once.
"""

import errno
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import DataError
from hpcm_scale.training import (
    async_checkpoint_writer,
    checkpoint,
    ema,
    engine,
    guard,
    job,
    monitor,
    noise,
    prepare,
    profile,
    validate,
)
from hpcm_scale.training.rendezvous import free_port

FORK = multiprocessing.get_context("fork")
RANKS = 2
CAUSE = "made to fail"
"""What every failure says."""
LIMIT = 90.0
"""Seconds after a failure in which both ranks must be gone; the rank that waits would take 600."""


class Stage(NamedTuple):
    """Where a rank fails: the first call of a function, and by what."""

    where: Any
    name: str
    error: Callable[[], Exception]
    code: int
    """Of both ranks."""
    resumes: bool = False
    rank_0_only: bool = False


def bug() -> Exception:
    return ZeroDivisionError(CAUSE)


def data() -> Exception:
    return DataError(f"a shard: {CAUSE}")


def full_disk() -> Exception:
    return OSError(errno.ENOSPC, CAUSE, "some file")


STAGES = {
    "joining": Stage(engine, "skip_shared_memory_operator", bug, 1),
    "opening the data": Stage(prepare, "TrainStream", data, 2),
    "opening validation": Stage(prepare, "open_validation", data, 2, rank_0_only=True),
    "claiming the folder": Stage(prepare.RunLock, "acquire", bug, 1, rank_0_only=True),
    "building": Stage(prepare, "build_engine", bug, 1),
    "loading": Stage(prepare.TrainStream, "load_state_dict", data, 2, resumes=True),
    "recording": Stage(prepare, "write_run_record", full_disk, 2, rank_0_only=True),
    "reading data": Stage(prepare.TrainStream, "_assemble", data, 2),
    "noise": Stage(noise.Noise, "__call__", bug, 1),
    "stepping": Stage(guard.StepGuard, "step", bug, 1),
    "averaging": Stage(ema.ShardedEMA, "update", bug, 1),
    "a row": Stage(monitor.Monitor, "row", full_disk, 2, rank_0_only=True),
    "a trace": Stage(profile.Profile, "_write", full_disk, 2, rank_0_only=True),
    "validation": Stage(validate, "read_images", data, 2),
    "validation arithmetic": Stage(validate, "pad", bug, 1),
    "pictures": Stage(monitor.Monitor, "pictures", full_disk, 2, rank_0_only=True),
    "saving states": Stage(async_checkpoint_writer.CheckpointWriter, "save", bug, 1),
    "saving the average": Stage(async_checkpoint_writer.CheckpointWriter, "save_tensors", bug, 1),
    "writing": Stage(async_checkpoint_writer.CheckpointWriter, "_write", full_disk, 2),
    "completing": Stage(checkpoint, "complete", full_disk, 2, rank_0_only=True),
    "pruning": Stage(checkpoint, "prune", full_disk, 2, rank_0_only=True),
    "closing": Stage(monitor.Monitor, "__exit__", full_disk, 2, rank_0_only=True),
}


def fail_at(stage: Stage, marker: Path) -> None:
    """Make the stage's call fail, and leave the time it did in `marker`."""

    def failing(*_: Any, **__: Any) -> Any:
        marker.write_text(str(time.time()))
        raise stage.error()

    setattr(stage.where, stage.name, failing)


def train(run: RunConfig, resume: str, rank: int, port: int, said: Path) -> None:
    """Be one rank; does not return."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    job.leave(*job.run_here(run, resume))


def try_case(dataset: str, out: Path, case: str) -> dict[str, Any]:
    """One run of two ranks; `out` is a folder of its own."""
    name, failing, *deepspeed = case.split(":")
    stage, marker, port = STAGES[name], out / "failed-at", free_port()
    values = {
        "name": "small",
        "out": out,
        "seed": 3,
        "model": {"width": 0.025},
        "data": {"train": dataset, "streams": 4, "workers": 0, "shuffle_buffer": 4},
        "optimizer": {"ema": 0.9},
        "deepspeed": deepspeed[0] if deepspeed else "zero3",
        "steps": 1,
        "batch": 2,
        "log_every": 1,
        "validate_every": 1,
        "checkpoint": {"every": 1},
        "profile": (0, 1) if name == "a trace" else None,
    }
    sessions = [(values, None)] if stage.resumes else []
    for session, fails in [*sessions, (values | {"steps": 1 + stage.resumes}, int(failing))]:
        run = RunConfig.model_validate(session)
        ranks = []
        for rank in range(RANKS):

            def work(rank: int = rank, fails: int | None = fails, run: RunConfig = run) -> None:
                if rank == fails:
                    fail_at(stage, marker)
                train(run, "auto", rank, port, out / f"said-{rank}")

            ranks.append(FORK.Process(target=work))
        for process in ranks:
            process.start()
        # From the failure on; before it there is nothing that could hang.
        while any(p.is_alive() for p in ranks):
            if marker.exists() and time.time() - float(marker.read_text() or "inf") > LIMIT:
                for process in ranks:
                    process.kill()
            time.sleep(0.05)
    gone = time.time()
    return {
        "case": case,
        "codes": [process.exitcode for process in ranks],
        "expected": stage.code,
        "seconds": gone - float(marker.read_text()) if marker.exists() else None,
        "said": [(out / f"said-{rank}").read_text() for rank in range(RANKS)],
    }


def main() -> None:
    dataset, folder, *cases = sys.argv[1:]
    for number, case in enumerate(cases):
        out = Path(folder) / str(number)
        out.mkdir(parents=True)
        sys.stdout.write(json.dumps(try_case(dataset, out, case)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
