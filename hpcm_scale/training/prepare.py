"""From a run's configuration to everything that its first step needs, on every rank."""

import logging
import threading
from dataclasses import dataclass

import torch

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.data.stream import TrainStream, read_images
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.complexity import count_flops, count_parameters
from hpcm_scale.models.principal_start import check_suits
from hpcm_scale.models.zoo import build
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.runs.network import network_of
from hpcm_scale.runs.run_record import write_run_record
from hpcm_scale.training.agreement import on_rank_0
from hpcm_scale.training.build_tools import check_tools
from hpcm_scale.training.engine import build_engine, deepspeed_config, uses_bf16
from hpcm_scale.training.loop import Trainer
from hpcm_scale.training.monitor import Monitor
from hpcm_scale.training.parameter_groups import check_parts
from hpcm_scale.training.parametrization import scalings
from hpcm_scale.training.resume import RunLock, resolve_resume, to_universal
from hpcm_scale.training.trackers import check_trackers
from hpcm_scale.training.zero_layout import ZeroLayout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A run that can take its next step."""

    trainer: Trainer
    monitor: Monitor | None
    """On rank 0 alone."""
    lock: RunLock
    """Held for as long as this object lives, on rank 0 alone."""

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.trainer.stream.step >= self.trainer.steps


def prepare(
    run: RunConfig, resume: str, rank: int, world: int, told_to_stop: threading.Event
) -> Prepared:
    """Build, load and claim what a session of `run` needs; every rank of the job calls this.

    Args:
        resume: "never" refuses a folder that holds a run; "auto" continues it, or starts it; the
            folder of another run's checkpoint starts this run from there.
        told_to_stop: set when the run is to save and stop.

    Raises:
        HpcmError: if configuration, data, checkpoint or run folder cannot be used.
    """
    model, note = network_of(run)
    check_network(run, model)
    if note and rank == 0:
        log.warning("%s", note)
    flops = count_flops(model, run.data.crop)
    stream = TrainStream(
        run.data, seed=run.seed, global_batch=run.batch, rank=rank, world_size=world
    )
    layout, bf16 = ZeroLayout.read(deepspeed_config(run, world)), uses_bf16(run)
    check_tools(run.deepspeed, layout)
    on_rank_0(rank, lambda: open_validation(run))
    on_rank_0(rank, lambda: check_trackers(run))
    lock = RunLock(run.folder)
    on_rank_0(rank, lock.acquire)
    start = on_rank_0(rank, lambda: resolve_resume(run, model, resume, world, layout, bf16))
    found = start.checkpoint
    if found is not None and start.universal:
        on_rank_0(rank, lambda: to_universal(found))
    engine = build_engine(run, model, world, start.universal, from_init=found is None)
    steps = run.total_steps(flops.train)
    trainer = Trainer(run, engine, stream, flops.train, steps, told_to_stop)
    if found is not None:
        trainer.load(found, start.universal)
    prepared = Prepared(trainer, None, lock)
    if prepared.finished:
        if rank == 0:
            log.warning("%s: already finished %s steps; increase `steps`", run.folder, steps)
        return prepared
    if rank:
        return prepared
    write_run_record(
        run,
        model.model_dump(mode="json"),
        count_parameters(engine.module),
        {"forward": flops.forward, "train": flops.train},
        world,
        "bf16" if bf16 else "fp32",
        found.folder if found else None,
    )
    seconds = MetricsLog(run.folder).rewind(stream.step)
    return Prepared(trainer, Monitor(run, steps, stream.step, seconds), lock)


def check_network(run: RunConfig, model: ModelConfig) -> None:
    """
    Raises:
        ConfigError: unless the run's crops suit the strides and windows of the network, and it has
            the parts that the optimizer treats apart and those of the base of its parametrization;
            if `initial_weights` do not suit the network.
    """
    with torch.device("meta"):
        network = build(model)
    if run.initial_weights == "principal_components":
        check_suits(network)
    check_parts(network, run.optimizer)
    scalings(run, model)
    multiple = network.image_multiple
    if run.data.crop % multiple:
        raise ConfigError(
            f"data.crop: {run.data.crop} is not a multiple of {multiple}, "
            f"which the grids and attention windows of {model.name} need"
        )


def open_validation(run: RunConfig) -> None:
    """
    Raises:
        DataError: unless every validation set has an image to read.
    """
    for source in (run.data, *run.data.val_also):
        next(iter(read_images(source, "val")))
