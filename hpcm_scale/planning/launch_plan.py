"""Plan of a run, worked out before it starts and without a process group."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Group, RenderableType
from rich.table import Table

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.data.order import require_divisor
from hpcm_scale.data.stream import TrainStream, read_images
from hpcm_scale.errors import RunError
from hpcm_scale.models.complexity import count_flops, count_parameters
from hpcm_scale.models.zoo import build
from hpcm_scale.planning.memory import FP32, Memory, rank_memory
from hpcm_scale.runs.network import init_file, network_of
from hpcm_scale.runs.run_record import RunRecord
from hpcm_scale.training.build_tools import check_tools
from hpcm_scale.training.engine import deepspeed_config
from hpcm_scale.training.prepare import check_network
from hpcm_scale.training.trackers import check_trackers
from hpcm_scale.training.zero_layout import ZeroLayout
from hpcm_scale.units import gib

CLASSES = (
    "parameters",
    "gradients",
    "optimizer",
    "ema",
    "activations",
    "buffers",
    "update",
    "retained",
    "copy",
    "framework",
    "host",
    "disk",
)
"""Classes of `Memory` in the order they are shown."""


@dataclass(frozen=True)
class LaunchPlan:
    """A run that can start, in figures; rich prints it."""

    run: RunConfig
    model: ModelConfig
    ranks: int
    micro_batch: int
    accumulation: int
    parameters: Mapping[str, int]
    """By part, and "total"."""
    flops_per_image: float
    """Of forward and backward; recomputation not counted."""
    steps: int
    samples: int
    """In an epoch."""
    memory: Mapping[str, Memory]
    """Of a rank, by setting of checkpoint_activations; the run's own first."""
    local_ranks: int
    available: int
    """Bytes free for each rank of this host."""
    checkpoint_bytes: int
    checkpoints: int
    """Kept at most at once, the one being written included."""
    disk_free: int
    note: str = ""
    """Where the network is not the one that the configuration describes."""

    @property
    def epochs(self) -> float:
        return self.steps * self.run.batch / self.samples

    @property
    def rank_bytes(self) -> float:
        """Most a rank needs of what `available` counts."""
        return _needed(next(iter(self.memory.values())))

    def __rich__(self) -> RenderableType:
        return Group(self._summary(), self._memory())

    def _summary(self) -> Table:
        run = self.run
        table = Table(title=f"{run.name}: {self.model.name}", show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        parts = ", ".join(f"{k} {n / 1e6:.3f} M" for k, n in self.parameters.items())
        step = run.batch * self.flops_per_image
        zero = f"{self.ranks} ranks × {self.micro_batch} crops × {self.accumulation} accumulated"
        for row in (
            *self._start(),
            ("batch", f"{run.batch} = {zero}, of {run.data.crop}²"),
            ("parameters", parts),
            ("arithmetic", f"{step:.3g} FLOPs a step, {step * self.steps:.3g} in all"),
            (
                "length",
                f"{self.steps} steps, {self.steps * run.batch} crops, "
                f"{self.epochs:.2f} epochs of {self.samples} images",
            ),
            (
                "checkpoints",
                f"{gib(self.checkpoint_bytes)} each, at most {self.checkpoints} at once; "
                f"{gib(self.disk_free)} free in {run.out}",
            ),
        ):
            table.add_row(*row)
        return table

    def _start(self) -> Iterator[tuple[str, str]]:
        """Rows on where a fine-tuned network comes from, and what of it is trained."""
        run = self.run
        if run.init is not None:
            yield "starts from", f"{init_file(run.init)}{f' ({self.note})' if self.note else ''}"
        if run.initial_weights == "principal_components":
            yield "starts from", "principal components of the training data"
        if run.optimizer.freeze:
            yield "frozen", ", ".join(run.optimizer.freeze)

    def _memory(self) -> Table:
        first, *others = self.memory
        table = Table(title=f"memory of a rank, {self.run.deepspeed}", caption_justify="left")
        table.add_column("class")
        table.add_column(f"activations {first}", justify="right")
        for other in others:
            table.add_column(other, justify="right")
        for name in CLASSES:
            values = [getattr(memory, name) for memory in self.memory.values()]
            if any(values):
                table.add_row(name, *map(gib, values))
        table.add_section()
        table.add_row("at most at once", *(gib(_needed(memory)) for memory in self.memory.values()))
        table.caption = (
            f"{gib(self.available)} available to each of {self.local_ranks} ranks of this host; "
            "the optimizer's update comes when the activations are gone, but for what a heap keeps"
        )
        return table


def launch_plan(run: RunConfig, world_size: int, resume: bool = False) -> LaunchPlan:
    """Check that a run can start, and work out what it will need.

    Args:
        world_size: ranks of the job.
        resume: whether it resumes in a folder that holds it.

    Raises:
        HpcmError: naming the field and a remedy, if configuration, data, disk or memory do not do.
    """
    model, note = network_of(run)
    check_network(run, model)
    with torch.device("meta"):
        network = build(model)
    config = deepspeed_config(run, world_size)
    samples = _check_data(run, world_size)
    if not resume and RunRecord.exists(run.folder):
        raise RunError(f"{run.folder}: already holds a run; choose another `name` or `out`")
    spread = ZeroLayout.read(config)
    check_tools(run.deepspeed, spread)
    check_trackers(run)
    bf16 = config["bf16"]["enabled"]
    flops = count_flops(model, run.data.crop).train
    parameters = count_parameters(network)
    local = min(world_size, int(os.environ.get("LOCAL_SIZE") or world_size))
    device = "cuda" if torch.accelerator.is_available() else "cpu"

    def memory(checkpointing: bool | int) -> Memory:
        return rank_memory(
            model,
            spread,
            ranks=world_size,
            micro_batch=config["train_micro_batch_size_per_gpu"],
            crop=run.data.crop,
            checkpointing=checkpointing,
            bf16=bf16,
            ema=run.optimizer.ema is not None,
            background_copy=run.checkpoint.background and device == "cpu",
            device=device,
        )

    asked = run.checkpoint_activations
    settings = list(dict.fromkeys((int(asked), 0, 1)))
    steps = run.total_steps(flops)
    for_good = steps // run.checkpoint.keep_every if run.checkpoint.keep_every else 0
    plan = LaunchPlan(
        run=run,
        model=model,
        ranks=world_size,
        micro_batch=config["train_micro_batch_size_per_gpu"],
        accumulation=config["gradient_accumulation_steps"],
        parameters=parameters,
        flops_per_image=flops,
        steps=steps,
        samples=samples,
        memory={_wording(setting): memory(setting) for setting in settings},
        local_ranks=local,
        available=available_memory() // (local if device == "cpu" else 1),
        checkpoint_bytes=checkpoint_size(
            parameters["total"], spread, bf16, run.optimizer.ema is not None
        ),
        checkpoints=run.checkpoint.keep + 1 + for_good,
        disk_free=disk_free(run.out),
        note=note,
    )
    _check_room(plan, local)
    return plan


def _check_data(run: RunConfig, world_size: int) -> int:
    """Samples in an epoch, once training and validation data can be read.

    Raises:
        DataError: if not.
    """
    require_divisor(run.data.streams, world_size, run.data.workers)
    stream = TrainStream(
        run.data, seed=run.seed, global_batch=run.batch, rank=0, world_size=world_size
    )
    next(read_images(run.data, "val"))  # opens the set and decodes one
    return stream.split.samples


def _check_room(plan: LaunchPlan, local_ranks: int) -> None:
    """
    Raises:
        RunError: if the host's memory or the disk of `out` is too small.
    """
    run = plan.run
    disk = plan.checkpoints * plan.checkpoint_bytes
    disk += local_ranks * next(iter(plan.memory.values())).disk
    if disk > plan.disk_free:
        raise RunError(
            f"out: {run.out} has {gib(plan.disk_free)} free, {plan.checkpoints} checkpoints "
            f"and what is offloaded need {gib(disk)}; lower checkpoint.keep, raise "
            "checkpoint.keep_every or choose another out"
        )
    if plan.rank_bytes > plan.available:
        smaller = min(_needed(memory) for memory in plan.memory.values())
        remedy = (
            "set checkpoint_activations: true"
            if smaller <= plan.available
            else f"lower micro_batch (now {plan.micro_batch}), spread over more ranks, or take "
            "deepspeed: zero3-infinity"
        )
        raise RunError(
            f"memory: a rank needs {gib(plan.rank_bytes)} and has {gib(plan.available)} "
            f"({plan.local_ranks} ranks on this host); {remedy}"
        )


def _needed(memory: Memory) -> float:
    """Bytes of what a rank allocates from: on a CPU its device is the host."""
    if torch.accelerator.is_available():
        return memory.device
    return memory.device + memory.host + memory.copy


def _wording(checkpointing: int) -> str:
    every = "recomputed" if checkpointing == 1 else f"recomputed, every {checkpointing}-th"
    return every if checkpointing else "kept"


def checkpoint_size(parameters: int, spread: ZeroLayout, bf16: bool, ema: bool) -> int:
    """Bytes of one checkpoint over all ranks: weights, master weights, Adam's averages, average."""
    weights = 2 if bf16 else FP32
    # Stage 3 saves master weights alone, stage 0 in fp32 has no others.
    each = 3 * FP32 + (weights if spread.stage in (1, 2) or (bf16 and spread.stage == 0) else 0)
    return parameters * (each + (FP32 if ema else 0))


def available_memory() -> int:
    """Bytes free on this rank's accelerator, or in this host."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    host = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        host = min(host, int(text) - used)
    return host


def disk_free(folder: Path) -> int:
    """Bytes free where `folder` is or would be made."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def optimal_interval(write_seconds: float, mean_time_to_failure: float) -> float:
    """Seconds between checkpoints that lose least: √(2·C·M) (Young 1974; Daly 2006 corrects it
    for C close to M, where this is bounded by M)."""
    return min(math.sqrt(2 * write_seconds * mean_time_to_failure), mean_time_to_failure)
