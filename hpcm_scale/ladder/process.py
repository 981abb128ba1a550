"""The process that trains one run of a ladder: its command, its environment, how it is stopped."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch
import yaml

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import RunError
from hpcm_scale.files import atomic_write


def command(config: Path, ranks: int, resume: str) -> list[str]:
    """Command that trains the run in a configuration file.

    One rank is a plain process, spared the ten seconds of DeepSpeed's launcher; more go through it.
    """
    python = [sys.executable, "-u", "-m"]
    if ranks == 1:
        return [*python, "hpcm_scale.cli.rank", "--config", str(config), "--resume", resume]
    options = ["--resume", resume, "--accelerators", str(ranks)]
    return [*python, "hpcm_scale", "train", str(config), *options]


def environment(ranks: int, jobs: int, slot: int) -> dict[str, str]:
    """Variables of one of `jobs` runs that go on at once: its share of the cores or GPUs.

    Raises:
        RunError: if there are fewer GPUs than that takes.
    """
    added = {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    if torch.cuda.is_available():
        if ranks * jobs > torch.cuda.device_count():
            raise RunError(
                f"--jobs {jobs} of --ranks {ranks} need {ranks * jobs} GPUs, "
                f"this host has {torch.cuda.device_count()}"
            )
        if jobs > 1:
            mine = range(slot * ranks, (slot + 1) * ranks)
            added["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))
        return os.environ | {"DS_ACCELERATOR": "cuda"} | added
    threads = max(1, len(os.sched_getaffinity(0)) // (ranks * jobs))
    defaults = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
    return defaults | os.environ | added


def start(
    config: RunConfig,
    notes: Path,
    *,
    resume: str = "auto",
    ranks: int = 1,
    jobs: int = 1,
    slot: int = 0,
    inherit: tuple[int, ...] = (),
) -> subprocess.Popen:
    """Start to train `config`; notes/NAME.yaml is what is trained, notes/NAME.log what is said.

    Args:
        slot: which of the `jobs` at once.
        inherit: descriptors that the process keeps open.
    """
    path = notes / f"{config.name}.yaml"
    values = config.model_dump(mode="json", exclude_none=True)
    atomic_write(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    with open(notes / f"{config.name}.log", "a") as log:
        return subprocess.Popen(
            command(path, ranks, resume),
            env=environment(ranks, jobs, slot),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=inherit,
            # Ctrl-C reaches a terminal's whole group; the runs are told by `stop`, once.
            start_new_session=True,
        )


def stop(process: subprocess.Popen) -> None:
    """Tell a run to save and stop; it ends with code 75 once its checkpoint is whole."""
    with suppress(ProcessLookupError):  # it ended by itself
        os.kill(process.pid, signal.SIGTERM)


def last_words(log: Path) -> str:
    """The line of a log that says why its run ended: the trainer's own last, else the last."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "left no log"
    lines = [line.strip() for line in lines if line.strip()]
    own = [line.removeprefix("train: ") for line in lines if line.startswith("train: ")]
    return next(reversed(own), None) or next(reversed(lines), "said nothing")
