"""Training steps of a run's settings, in processes of their own that step when told to."""

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic, perf_counter
from typing import Any

import torch

from hpcm_scale.config import DataConfig, ModelChoice, RunConfig
from hpcm_scale.errors import RunError
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.zoo import build, chosen_model
from hpcm_scale.planning.launches import LaunchCounter
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.units import peak_resident, reset_peak, resident

LAUNCHING = r"^(cuda|cu)(Launch|GraphLaunch)"
"""Names, in a profile, of the calls that start work on a GPU."""
WARM_UP = 2
"""Steps before the measured ones: the second has all optimizer state and DeepSpeed's trace."""


ANSWER_TIMEOUT = 600.0
"""Seconds a rank may take over what it was asked: the first step may compile for minutes."""


@dataclass(frozen=True)
class Case:
    """One way to train a network."""

    name: str
    run: RunConfig
    ranks: int = 1
    bare: bool = False
    """A plain PyTorch loop with torch's Adam instead of the DeepSpeed engine."""


def case(
    name: str,
    choice: ModelChoice,
    *,
    checkpointing: bool | int = False,
    deepspeed: str = "zero3",
    batch: int = 4,
    crop: int = 256,
    ranks: int = 1,
    bare: bool = False,
    precision: str = "fp32",
    compiled: bool = False,
) -> Case:
    """A case of `batch` crops over `ranks`; no data is read.

    Args:
        precision: fp32, tf32, bf16 or auto, as RunConfig has it.
        compiled: through torch.compile, as CUDA graphs where they can be.
    """
    run = RunConfig(
        name="bench",
        data=DataConfig(train="-", crop=crop),
        model=choice,
        steps=1,
        batch=batch,
        deepspeed=deepspeed,
        precision=precision,  # pyright: ignore[reportArgumentType]
        compile="blocks" if compiled else "none",
        checkpoint_activations=checkpointing,
    )
    return Case(name, run, ranks, bare)


def _work(pipe: Connection, case: Case, rank: int, port: int, threads: int) -> None:
    """One rank: answers "step" with seconds, "memory" with (base, peak), "launches" with how many
    a step makes, until "end"."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(case.ranks),
        "LOCAL_SIZE": str(case.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        step, base = _prepare(case, threads)
        pipe.send(None)
        while (asked := pipe.recv()) != "end":
            if asked == "memory":
                pipe.send((base, _peak_bytes()))
                continue
            if asked == "launches":
                pipe.send(launches_of(step))
                continue
            start = perf_counter()
            step()
            _settled()
            pipe.send(perf_counter() - start)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  whatever it is, the parent reports it
        pipe.send(error if isinstance(error, RunError) else RunError(f"{case.name}: {error!r}"))


def _settled() -> None:
    """Wait until the device has done what was ordered."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    """Most bytes of the device so far; of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_resident()


def launches_of(step: Callable[[], object]) -> int:
    """Kernels and graphs that a step launches on a GPU; on a CPU, operations it dispatches."""
    if not torch.cuda.is_available():
        with LaunchCounter() as counter:
            step()
        return counter.launches
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        _settled()
    return sum(
        entry.count for entry in profile.key_averages() if re.search(LAUNCHING, entry.key, re.I)
    )


def _prepare(case: Case, threads: int) -> tuple[Callable[[], None], int]:
    """A function that makes one optimizer step, and the process's size before it was built."""
    from hpcm_scale.training.engine import accelerator, build_engine, init_distributed, uses_bf16
    from hpcm_scale.training.loss import RateDistortion

    _, world = init_distributed(case.run.guard.timeout)
    torch.set_num_threads(threads)
    base = resident()
    reset_peak()
    run = case.run
    model = chosen_model(run.model)
    objective = RateDistortion(run.loss)
    rows, crop = run.batch // world, run.data.crop
    device = accelerator().current_device_name()
    x = torch.rand(rows, 3, crop, crop).to(device, memory_format=torch.channels_last)
    y, z = (torch.rand(shape).to(device) - 0.5 for shape in noise_shapes(model, rows, crop, crop))
    dtype = torch.bfloat16 if uses_bf16(run) else torch.float32
    if case.bare:
        torch.manual_seed(run.seed)
        network = build(model).to(device)
        optimizer = torch.optim.Adam(network.parameters(), run.optimizer.lr)

        def step() -> None:
            objective.per_image(network(x, (y, z)), x)[:, 0].mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), run.optimizer.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad()

    else:
        engine = build_engine(run, model, world)

        def step() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            loss = objective.per_image(engine(x.to(dtype), (y, z)), x)[:, 0].mean()
            engine.backward(loss)
            engine.step()

    return step, base


class Workers:
    """The ranks of one case, each a process that steps when told to.

    Raises:
        RunError: if a rank fails, or none answers within `ANSWER_TIMEOUT`, here and in every call.
    """

    def __init__(self, case: Case, threads: int) -> None:
        self.case = case
        port = free_port()
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(case.ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, case, rank, port, threads), daemon=True
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        try:
            self._answers()
        except RunError:
            self.close()  # or one that hangs would keep its memory of the device
            raise

    def _answers(self) -> list[Any]:
        """What each rank says to the last question."""
        answers = []
        deadline = monotonic() + ANSWER_TIMEOUT
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(max(0.0, deadline - monotonic())):
                raise RunError(
                    f"{self.case.name}: rank {rank} has not answered for {ANSWER_TIMEOUT:.0f} s"
                )
            try:
                answers.append(pipe.recv())
            except EOFError:
                raise RunError(f"{self.case.name}: a process ended, out of memory?") from None
            if isinstance(answers[-1], RunError):
                raise answers[-1]
        return answers

    def step(self) -> float:
        """Seconds of one optimizer step, of the slowest rank."""
        for pipe in self.pipes:
            pipe.send("step")
        return max(self._answers())

    def memory(self) -> tuple[int, int]:
        """Bytes in memory before anything was built, and at most so far, of the largest rank."""
        for pipe in self.pipes:
            pipe.send("memory")
        return max(self._answers(), key=lambda pair: pair[1] - pair[0])

    def launches(self) -> int:
        """Launches of one optimizer step, of the rank that makes most."""
        for pipe in self.pipes:
            pipe.send("launches")
        return max(self._answers())

    def close(self) -> None:
        """End the ranks' processes, by force those that take over ten seconds."""
        for pipe in self.pipes:
            pipe.close()
        deadline = monotonic() + 10
        for process in self.processes:
            process.join(max(0.0, deadline - monotonic()))
            if process.is_alive():
                process.kill()


@contextmanager
def working(case: Case, threads: int) -> Iterator[Workers]:
    """The ranks of `case`, ended afterwards.

    Raises:
        RunError: if a rank fails.
    """
    workers = Workers(case, threads)
    try:
        yield workers
    finally:
        workers.close()
