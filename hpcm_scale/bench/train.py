"""Step time and memory of a run's settings, measured in processes of their own."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.table import Table

from hpcm_scale.bench.model import sgemm_rate
from hpcm_scale.config import DataConfig, ModelChoice, RunConfig, configs_folder
from hpcm_scale.errors import RunError
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.complexity import count_flops
from hpcm_scale.models.zoo import build, chosen_model
from hpcm_scale.planning.memory import rank_memory
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.training.zero_layout import ZeroLayout
from hpcm_scale.units import GIB, MIB, peak_rss

WARM_UP = 2
"""Steps before the measured ones: the second has all optimizer state and DeepSpeed's trace."""


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
) -> Case:
    """A case of `batch` crops over `ranks`, in fp32; no data is read."""
    run = RunConfig(
        name="bench",
        data=DataConfig(train="-", crop=crop),
        model=choice,
        steps=1,
        batch=batch,
        deepspeed=deepspeed,
        precision="fp32",
        checkpoint_activations=checkpointing,
    )
    return Case(name, run, ranks, bare)


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Most bytes this process has had in memory since its start or `reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return peak_rss()


def reset_peak() -> None:
    """Let `peak_resident` start again from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _work(pipe: Connection, case: Case, rank: int, port: int, threads: int) -> None:
    """One rank: answers ("step",) with seconds and ("memory",) with (base, peak) until closed."""
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
                pipe.send((base, peak_resident()))
                continue
            start = perf_counter()
            step()
            pipe.send(perf_counter() - start)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  whatever it is, the parent reports it
        pipe.send(error if isinstance(error, RunError) else RunError(f"{case.name}: {error!r}"))


def _prepare(case: Case, threads: int) -> tuple[Callable[[], None], int]:
    """A function that makes one optimizer step, and the process's size before it was built."""
    from hpcm_scale.training.engine import build_engine, init_distributed
    from hpcm_scale.training.loss import RateDistortion

    _, world = init_distributed(case.run.guard.timeout)
    torch.set_num_threads(threads)
    base = resident()
    reset_peak()
    run = case.run
    model = chosen_model(run.model)
    objective = RateDistortion(run.loss)
    rows, crop = run.batch // world, run.data.crop
    x = torch.rand(rows, 3, crop, crop).contiguous(memory_format=torch.channels_last)
    y, z = (torch.rand(shape) - 0.5 for shape in noise_shapes(model, rows, crop, crop))
    if case.bare:
        torch.manual_seed(run.seed)
        network = build(model)
        optimizer = torch.optim.Adam(network.parameters(), run.optimizer.lr)

        def step() -> None:
            objective.per_image(network(x, (y, z)), x)[:, 0].mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), run.optimizer.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad()

    else:
        engine = build_engine(run, model, world)

        def step() -> None:
            loss = objective.per_image(engine(x, (y, z)), x)[:, 0].mean()
            engine.backward(loss)
            engine.step()

    return step, base


class Workers:
    """The ranks of one case, each a process that steps when told to."""

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
        self._answers()

    def _answers(self) -> list[Any]:
        answers = []
        for pipe in self.pipes:
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

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.join(10)
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


def bench_train(choice: ModelChoice, batch: int, crop: int, repeats: int, threads: int) -> Table:
    """A run's steps, with and without recomputed activations, beside a bare PyTorch loop's.

    The cases step in turn, each in a process of its own, and the sgemm peak is measured before
    every step: on a shared machine only times taken together can be compared.

    Raises:
        RunError: if a case fails.
    """
    cases = [
        case("bare PyTorch loop", choice, deepspeed="zero0", batch=batch, crop=crop, bare=True),
        case("zero0", choice, deepspeed="zero0", batch=batch, crop=crop),
        case("zero3", choice, deepspeed="zero3", batch=batch, crop=crop),
        case("zero3, recomputing", choice, checkpointing=True, batch=batch, crop=crop),
    ]
    model = chosen_model(choice)
    flops = batch * count_flops(model, crop).train
    torch.set_num_threads(threads)
    times: list[list[float]] = [[] for _ in cases]
    shares: list[list[float]] = [[] for _ in cases]
    peaks = []
    with ExitStack() as stack:
        workers = [stack.enter_context(working(case, threads)) for case in cases]
        for _ in range(WARM_UP):
            for worker in workers:
                worker.step()
        for _ in range(repeats):
            for i, worker in enumerate(workers):
                peaks.append(sgemm_rate())
                times[i].append(worker.step())
                shares[i].append(flops / times[i][-1] / peaks[-1])
        memory = [worker.memory()[1] for worker in workers]

    table = Table(title=f"{model.name}, steps of {batch} crops of {crop}², medians of {repeats}")
    table.add_column("")
    for column in ("seconds", "of the bare loop", "of sgemm peak", "peak memory GiB"):
        table.add_column(column, justify="right")
    for i, row in enumerate(cases):
        ratio = median(mine / bare for mine, bare in zip(times[i], times[0], strict=True))
        cells = (f"{median(times[i]):.3f}", f"{ratio:.2f}", f"{median(shares[i]):.0%}")
        table.add_row(row.name, *cells, f"{memory[i] / GIB:.2f}")
    table.caption = (
        f"{threads} threads, sgemm {median(peaks) / 1e9:.0f} GFLOP/s, {flops / 1e9:.0f} GFLOP "
        "a step (recomputation not counted)"
    )
    return table


MEASURED = tuple(
    (width, stage, ranks, checkpointing)
    for width in (0.1, 0.25, 0.5)
    for stage in ("zero0", "zero3")
    for ranks in (1, 2)
    for checkpointing in (False, True)
)
"""Runs whose memory is compared with its prediction: width, settings, ranks, recomputation."""


def predicted(case: Case) -> float:
    """Bytes at most in one process of a case on a CPU."""
    run = case.run
    model = chosen_model(run.model)
    path = configs_folder("deepspeed") / f"{run.deepspeed}.json"
    memory = rank_memory(
        model,
        ZeroLayout.read(json.loads(path.read_text())),
        ranks=case.ranks,
        micro_batch=run.batch // case.ranks,
        crop=run.data.crop,
        checkpointing=run.checkpoint_activations,
    )
    return memory.device + memory.host


def measure(case: Case, steps: int = 4, threads: int = 1) -> tuple[int, int]:
    """Bytes of a process of a case that has joined the job, and at most in so many steps."""
    with working(case, threads) as workers:
        for _ in range(steps):
            workers.step()
        return workers.memory()


def measure_memory(
    cells: Iterable[tuple[float, str, int, bool]] = MEASURED, batch: int = 4
) -> Table:
    """Predicted and measured peaks of real runs of Base, in fp32 on this machine's CPU.

    The base process has imported everything and joined the job, and built nothing.
    """
    table = Table(title=f"memory of a rank, base, steps of {batch} crops of 256²")
    for name in ("width", "deepspeed", "ranks", "recomputed"):
        table.add_column(name)
    for name in ("predicted MiB", "measured MiB", "difference", "over base process"):
        table.add_column(name, justify="right")
    for width, stage, ranks, checkpointing in cells:
        one = case(
            f"{stage}, width {width:g}",
            ModelChoice(width=width),
            checkpointing=checkpointing,
            deepspeed=stage,
            batch=batch,
            ranks=ranks,
        )
        (base, real), said = measure(one), predicted(one)
        table.add_row(
            f"{width:g}",
            stage,
            str(ranks),
            "all" if checkpointing else "none",
            f"{said / MIB:.0f}",
            f"{real / MIB:.0f}",
            f"{said / real - 1:+.1%}",
            f"{(said - base) / (real - base) - 1:+.1%}",
        )
    return table
