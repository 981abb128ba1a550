"""One training run, from configuration to last checkpoint."""

import logging
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.data.stream import TrainStream, read_images
from hpcm_scale.errors import ConfigError, HpcmError, RunError
from hpcm_scale.models.complexity import count_flops, count_parameters
from hpcm_scale.models.peak import peak_rate
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.training import checkpoint, monitor
from hpcm_scale.training import resume as session
from hpcm_scale.training.async_checkpoint_writer import CheckpointWriter
from hpcm_scale.training.ema import ShardedEMA
from hpcm_scale.training.engine import build_engine, deepspeed_config, init_distributed, uses_bf16
from hpcm_scale.training.guard import LossWatch, StepGuard
from hpcm_scale.training.loss import RateDistortion, psnr
from hpcm_scale.training.lr_schedule import ema_decay, learning_rate
from hpcm_scale.training.noise import Noise
from hpcm_scale.training.nvme_state import NvmeState
from hpcm_scale.training.profile import Profile
from hpcm_scale.training.validate import validate
from hpcm_scale.training.watchdog import NoWatchdog, Watchdog
from hpcm_scale.training.zero_layout import ZeroLayout

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The run was told to stop, or its hours were over; it is saved and can be resumed."""


def train(run: RunConfig, resume: str = "never") -> None:
    """Train `run` to its last step; every rank of the job calls this.

    Args:
        resume: "never" refuses a folder that holds a run; "auto" continues it, or begins it; the
            folder of another run's checkpoint begins this run from there.

    Raises:
        HpcmError: if configuration, data, checkpoint or run folder cannot be used.
        Interrupted: after SIGTERM, SIGUSR1 or `max_hours`, once the checkpoint is whole.
    """
    told = threading.Event()  # to stop; from here on, or a rank would just die
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: told.set())
    choice = run.model
    model = model_config(choice.variant, choice.width, choice.depth, choice.overrides)
    check_crop(run, model)
    flops = count_flops(model, run.data.crop)
    rank, world = init_distributed(run.guard.timeout)
    stream = TrainStream(
        run.data, seed=run.seed, global_batch=run.batch, rank=rank, world_size=world
    )
    spread = ZeroLayout.read(deepspeed_config(run, world))
    session.on_rank_0(rank, lambda: open_validation(run))
    held = []  # the lock, until this function ends
    session.on_rank_0(rank, lambda: held.append(session.lock(run.folder)))
    start = session.on_rank_0(rank, lambda: session.resolve_resume(run, resume, world, spread))
    if start.universal:
        session.on_rank_0(rank, lambda: session.to_universal(start.checkpoint))
    engine = build_engine(run, model, world, start.universal)
    steps = run.total_steps(flops.train)
    trainer = Trainer(run, engine, stream, flops.train, steps, told)
    if start.checkpoint is not None:
        trainer.load(start.checkpoint, start.universal)
    if stream.step >= steps:
        log.warning("%s: has done its %s steps; give it more to go on", run.folder, steps)
        return
    shown = None
    if rank == 0:
        continued = start.checkpoint.folder if start.checkpoint else None
        parameters = count_parameters(engine.module)
        monitor.write_record(run, model, parameters, flops, world, continued)
        seconds = monitor.rewind(run.folder, stream.step)
        shown = monitor.Monitor(run, steps, stream.step, seconds)
    watchdog = Watchdog(rank, world, run.guard.timeout) if world > 1 else NoWatchdog()
    try:
        with shown or nullcontext():
            trainer.run_to_end(shown, watchdog)
    except (Interrupted, RunError):  # all ranks have agreed to end
        watchdog.close()
        raise
    except Exception as error:
        if rank and isinstance(error, HpcmError | OSError):
            # This rank's alone. launch/train.py speaks for rank 0, which may see no more of it than
            # a closed connection.
            sys.stderr.write(f"train: rank {rank}: {' '.join(str(error).split())}\n")
        watchdog.fail(f"{type(error).__name__}: {error}")
        raise
    watchdog.close()


def check_crop(run: RunConfig, model: ModelConfig) -> None:
    """Raises ConfigError unless the run's crops suit the strides and windows of the network."""
    with torch.device("meta"):
        multiple = build(model).image_multiple
    if run.data.crop % multiple:
        raise ConfigError(
            f"data.crop: {run.data.crop} is not a multiple of {multiple}, "
            f"which the grids and attention windows of {model.name} need"
        )


def open_validation(run: RunConfig) -> None:
    """Raises DataError unless every validation set has an image to read."""
    for source in (run.data, *run.data.val_also):
        next(read_images(source, "val"))


class Step(NamedTuple):
    """What one optimizer step gave."""

    figures: Tensor
    """This rank's means over its part of the batch, float64."""
    loss: float
    """Mean over the ranks."""
    stepped: bool
    """False if the weights were left as they were."""
    stop: bool
    """Whether any rank was told to stop."""
    writing: bool
    """Whether any rank is still writing the last checkpoint."""


class Trainer:
    """The state of a run between steps."""

    def __init__(
        self,
        run: RunConfig,
        engine: DeepSpeedEngine,
        stream: TrainStream,
        flops_per_image: float,
        steps: int,
        told_to_stop: threading.Event,
    ) -> None:
        self.told_to_stop = told_to_stop
        self.run, self.engine, self.stream, self.steps = run, engine, stream, steps
        self.flops_per_image = flops_per_image
        self.objective = RateDistortion(run.loss)
        self.figures = self.objective.figure_names(engine.module.scales)
        self.noise = Noise(
            engine.module.config, run.data.crop, run.seed, stream.rank, stream.world_size
        )
        self.dtype = torch.bfloat16 if uses_bf16(run) else torch.float32
        self.guard = StepGuard(engine, run.optimizer.grad_clip_norm)
        self.watch = LossWatch(run.guard)
        self.average = ShardedEMA(engine) if run.optimizer.ema else None
        self.on_disk = NvmeState.of(engine)
        offloads = engine.zero_offload_optimizer() is not None
        self.writer = CheckpointWriter(run.checkpoint.background and not offloads)
        engine.checkpoint_engine = self.writer
        self.saving: int | None = None
        """The step whose checkpoint is being written."""
        # A fraction of what this machine does, with all ranks busy as they are in a step.
        rate = peak_rate(engine.device, self.dtype)
        self.peak = float(self._sum(torch.tensor([rate], dtype=torch.float64))[0])

    @property
    def rank(self) -> int:
        """This process among all."""
        return self.stream.rank

    def run_to_end(self, shown: monitor.Monitor | None, watchdog: Watchdog | NoWatchdog) -> None:
        """Step until the run's last step, reporting to `shown` on the rank that has it.

        Raises:
            Interrupted: if told to stop.
            RunError: if too many steps in a row are skipped, or a checkpoint cannot be written.
        """
        run = self.run
        began = mark = time.monotonic()
        sums, since, waited = torch.zeros(len(self.figures), dtype=torch.float64), 0, 0.0
        with Profile(run, self.rank) as profile:
            for batch, wait in self._batches():
                number = batch["step"] + 1
                watchdog.at(f"step {number}")
                if run.max_hours is not None and time.monotonic() - began > 3600 * run.max_hours:
                    self.told_to_stop.set()
                profile.at(batch["step"])
                done = self.step(batch)
                waited += wait
                event = self.watch.take(done.loss, done.stepped)
                if event and shown:
                    shown.event(event, number, **({"loss": done.loss} if done.stepped else {}))
                if self.watch.in_a_row >= run.guard.max_skipped:
                    self._finish_saving()
                    raise RunError(
                        f"{run.folder}: {self.watch.in_a_row} steps in a row gave losses or "
                        f"gradients that are not finite, the last of them step {number}; the "
                        "checkpoints are as they were; try a lower optimizer.lr"
                    )
                if done.stepped:
                    sums += done.figures
                    since += 1
                last = number == self.steps
                leaving = last or done.stop
                if (number % run.log_every == 0 or leaving) and since:
                    row = self._train_row(sums / since, number, batch["epoch"])
                    elapsed = time.monotonic() - mark
                    if shown:
                        shown.row("train", number, row | self._speed(since, elapsed, waited))
                    sums.zero_()
                    since, mark, waited = 0, time.monotonic(), 0.0
                pause = time.monotonic()
                if self.saving is not None and not done.writing:
                    self._finish_saving()
                if number % run.checkpoint.every == 0 or leaving:
                    watchdog.at(f"saving after step {number}")
                    self.save(number)
                if number % run.validate_every == 0 or last:
                    watchdog.at(f"validation after step {number}")
                    self.validate(shown, number, batch["epoch"], watchdog.tick)
                mark += time.monotonic() - pause
                if leaving:
                    break
        self._finish_saving()
        torch.distributed.barrier()
        if done.stop and not last:
            raise Interrupted(f"{run.folder}: stopped after step {number}; it is saved")

    def step(self, batch: dict[str, Any]) -> Step:
        """One optimizer step, left out on all ranks if any finds its loss or gradient unusable."""
        run, engine = self.run, self.engine
        rate = learning_rate(run.optimizer, batch["step"], self.steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        figures = []
        micro = engine.train_micro_batch_size_per_gpu()
        starts = range(0, len(batch["image"]), micro)
        for start in starts:
            rows = range(start, min(start + micro, len(batch["image"])))
            x = batch["image"][rows.start : rows.stop].to(engine.device, non_blocking=True)
            x = (x.float() / 255).contiguous(memory_format=torch.channels_last)
            noise = [part.to(engine.device) for part in self.noise(batch["step"], rows)]
            output = engine(x.to(self.dtype), noise)
            per_image = self.objective.per_image(output, x)
            engine.backward(per_image[:, 0].mean())
            figures.append(per_image.detach())
            if start != starts[-1]:
                engine.step()  # counts the micro-batch; the optimizer waits for the last
        mean = torch.cat(figures).double().mean(0).cpu()
        good = bool(mean[0].isfinite())
        failed = self.writer.error is not None
        agreed = self._sum(
            torch.tensor(
                [mean[0], not good, self.told_to_stop.is_set(), self.writer.busy and not failed],
                dtype=torch.float64,
            )
        )
        self.guard.bad_loss = bool(agreed[1])
        stepped = self.guard.step()
        if stepped and self.average:
            self.average.update(ema_decay(run.optimizer, batch["step"]))
        loss = float(agreed[0]) / self.stream.world_size
        return Step(mean, loss, stepped, bool(agreed[2]), bool(agreed[3]))

    def validate(
        self, shown: monitor.Monitor | None, step: int, epoch: int, tick: Callable[[], None]
    ) -> None:
        """Rows of figures over the validation sets, by the averaged weights where they are kept."""
        data = self.run.data
        sets = [("val", data), *((f"val-{Path(path).name}", path) for path in data.val_also)]
        with self.average.applied() if self.average else nullcontext():
            for kind, source in sets:
                show = None
                if shown and kind == "val":
                    show = lambda *pictures: shown.pictures(step, *pictures)  # noqa: E731
                figures = validate(
                    self.engine,
                    source,
                    self.objective,
                    self.rank,
                    self.stream.world_size,
                    show,
                    tick,
                )
                if shown:
                    shown.row(kind, step, _with_parts(figures) | self._position(step, epoch))

    def save(self, step: int) -> None:
        """Begin a checkpoint after `step` steps; `_finish_saving` makes it whole."""
        self._finish_saving()
        folder = checkpoint.folder_of(self.run.folder, step)
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a session that died while saving
            folder.mkdir(parents=True, exist_ok=True)
        torch.distributed.barrier()
        self.writer.start(folder)
        self.saving = step
        state = {"rng": get_accelerator().get_rng_state()}
        self.engine.save_checkpoint(str(folder.parent), folder.name, state, save_latest=False)
        spread = self.engine.zero_optimization_stage() > 0
        if self.average and (spread or self.rank == 0):
            name = f"ema-{self.rank:05d}.safetensors"
            self.writer.save_tensors(folder / name, *self.average.tensors())
        if self.on_disk:
            self.on_disk.save(self.writer, folder)
        self.writer.finish()
        # Only from here on do the states of this step change.
        self.record = {
            "step": step,
            "world_size": self.stream.world_size,
            "stage": self.engine.zero_optimization_stage(),
            "on_disk": self.on_disk is not None,
            "data": self.stream.state_dict(),
            "watch": self.watch.state_dict(),
            "config": self.run.model_dump(mode="json"),
        }

    def load(self, found: checkpoint.Checkpoint, universal: bool) -> None:
        """Continue from a checkpoint.

        Raises:
            DataError: if it is of another dataset or order.
            CheckpointError: if it lacks what this run needs.
        """
        folder = found.folder
        tag = f"{folder.name}_universal" if universal else folder.name
        _, state = self.engine.load_checkpoint(str(folder.parent), tag)
        if not universal:
            get_accelerator().set_rng_state(state["rng"])
        if self.average:
            self.average.load(sorted(folder.glob("ema-*.safetensors")))
        self.stream.load_state_dict(found.record["data"])
        self.watch.load_state_dict(found.record["watch"])
        torch.distributed.barrier()
        if universal and self.rank == 0:
            shutil.rmtree(folder.with_name(tag))
            (folder.parent / "latest_universal").unlink(missing_ok=True)

    def _finish_saving(self) -> None:
        """Wait for the checkpoint being written, and declare it whole once all ranks are done.

        Raises:
            RunError: if a rank could not write its part; the part-written folder is removed.
        """
        if self.saving is None:
            return
        self.writer.wait()
        mine = (self.writer.files, self.writer.error and str(self.writer.error))
        every: list[Any] = [None] * self.stream.world_size
        torch.distributed.all_gather_object(every, mine)
        folder = checkpoint.folder_of(self.run.folder, self.saving)
        self.saving = None
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(every) if error]
        if errors:
            if self.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise RunError(
                f"{folder}: cannot be written ({errors[0]}); the checkpoint before it is as it "
                "was: make room and start again with --resume auto"
            )
        if self.rank == 0:
            files = {name: entry for part, _ in every for name, entry in part.items()}
            checkpoint.complete(folder, self.record | {"files": files})
            config = self.run.checkpoint
            checkpoint.prune(self.run.folder, config.keep, config.keep_every)

    def _batches(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Batches without end, each with the seconds spent waiting for it."""
        stream = iter(self.stream)
        while True:
            start = time.monotonic()
            batch = next(stream)
            yield batch, time.monotonic() - start

    def _train_row(self, mean: Tensor, step: int, epoch: int) -> dict[str, float]:
        """Averages over all ranks of the averages `mean` of each, and the optimizer's state."""
        mean = self._sum(mean) / self.stream.world_size
        figures = dict(zip(self.figures, mean.tolist(), strict=True))
        row = _with_parts(figures | {"psnr": psnr(figures["mse"])}) | self._position(step, epoch)
        row |= {"lr": self.engine.optimizer.param_groups[0]["lr"]}
        row |= {"skipped": self.watch.skipped, "spikes": self.watch.spikes}
        return row if self.guard.norm is None else row | {"grad_norm": self.guard.norm}

    def _speed(self, steps: int, elapsed: float, waited: float) -> dict[str, float]:
        """How fast `steps` steps in `elapsed` seconds were, and on what."""
        images = steps * self.run.batch / elapsed
        flops = images * self.flops_per_image
        accelerator = get_accelerator()
        memory = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if accelerator.device_name() == "cpu"
            else accelerator.max_memory_allocated()
        )
        return {
            "images_per_second": images,
            "flops_per_second": flops,
            "peak_fraction": flops / self.peak,
            "data_wait": waited / elapsed,
            "memory": memory,
        }

    def _sum(self, values: Tensor) -> Tensor:
        """Sums over all ranks of a float64 vector."""
        values = values.to(self.engine.device)
        torch.distributed.all_reduce(values)
        return values.cpu()

    def _position(self, step: int, epoch: int) -> dict[str, float]:
        images = step * self.run.batch
        return {"images": images, "flops": images * self.flops_per_image, "epoch": epoch}


def _with_parts(figures: dict[str, float]) -> dict[str, float]:
    """`figures` and the rate of y over all scales."""
    return figures | {"bpp_y": figures["bpp"] - figures["bpp_z"]}
