"""The process that trains one run of a ladder: its command, its environment, how it is stopped."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import torch
import yaml

import hpcm_scale
from hpcm_scale.config import RunConfig
from hpcm_scale.errors import RunError
from hpcm_scale.files import atomic_write

LAUNCHER = "deepspeed.launcher.runner"
ROOT = Path(hpcm_scale.__file__).parent.parent
"""The checkout, or where the package is installed."""


def entry() -> Path:
    """launch/train.py.

    Raises:
        RunError: if the package was installed without it.
    """
    path = ROOT / "launch" / "train.py"
    if not path.is_file():
        raise RunError(f"{path}: is missing; ladders are run from a checkout of the repository")
    return path


def command(config: Path, ranks: int, resume: str) -> list[str]:
    """What trains the run in a configuration file.

    One rank is a plain process, spared the ten seconds of DeepSpeed's launcher; more go through it.
    """
    train = [str(entry()), "--config", str(config), "--resume", resume]
    if ranks == 1:
        return [sys.executable, "-u", *train]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", LAUNCHER, "-q"]
    return [*launcher, "--num_accelerators", str(ranks), "--master_port", str(port), *train]


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
    """Begin to train `config`; notes/NAME.yaml is what is trained, notes/NAME.log what is said.

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
    try:
        if LAUNCHER not in process.args:
            os.kill(process.pid, signal.SIGTERM)
            return
        # The launcher would kill its ranks before they have saved: they are told instead.
        ranks = [
            child.pid
            for child in psutil.Process(process.pid).children(recursive=True)
            if any(part.startswith("--local_rank") for part in child.cmdline())
        ]
        for pid in ranks:
            os.kill(pid, signal.SIGTERM)
        if not ranks:
            os.killpg(process.pid, signal.SIGTERM)
    except (psutil.Error, ProcessLookupError):
        return  # it ended by itself


def last_words(log: Path) -> str:
    """The line of a log that says why its run ended: the trainer's own last, else the last."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "left no log"
    lines = [line.strip() for line in lines if line.strip()]
    own = [line.removeprefix("train: ") for line in lines if line.startswith("train: ")]
    return next(reversed(own), None) or next(reversed(lines), "said nothing")
