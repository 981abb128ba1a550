"""The steps of a training run: training, validation, checkpoints, rows of metrics."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcm_scale.config import RunConfig
from hpcm_scale.data.stream import TrainStream
from hpcm_scale.errors import RunError
from hpcm_scale.models.peak import peak_rate
from hpcm_scale.training import checkpoint, monitor
from hpcm_scale.training.agreement import agreed
from hpcm_scale.training.async_checkpoint_writer import CheckpointWriter
from hpcm_scale.training.ema import ShardedEMA
from hpcm_scale.training.engine import accelerator, peak_memory, uses_bf16
from hpcm_scale.training.guard import LossWatch, StepGuard
from hpcm_scale.training.loss import RateDistortion, training_loss
from hpcm_scale.training.lr_schedule import ema_decay, learning_rate
from hpcm_scale.training.noise import Noise
from hpcm_scale.training.nvme_state import NvmeState
from hpcm_scale.training.parameter_groups import FACTOR
from hpcm_scale.training.profile import Profile
from hpcm_scale.training.rate_draws import RateDraws
from hpcm_scale.training.transfer import Batch, DeviceBatches, MicroBatch, to_host
from hpcm_scale.training.validate import validate
from hpcm_scale.training.watchdog import NoWatchdog, Watchdog
from hpcm_scale.units import psnr


class Interrupted(Exception):
    """The run was told to stop, or `max_hours` were over; it is saved and can be resumed."""

    on_every_rank = True


class Step(NamedTuple):
    """Result of one optimizer step."""

    figures: Tensor
    """This rank's means over its part of the batch, float64 on the device."""
    loss: float
    """Mean over the ranks."""
    stepped: bool
    """False if the weights were left as they were."""
    stop: bool
    """Whether any rank was told to stop."""
    writing: bool
    """Whether any rank is still writing the last checkpoint."""


class Interval:
    """Sums since the last row of metrics."""

    def __init__(self, figures: int, device: torch.device) -> None:
        self._sums = torch.zeros(figures, dtype=torch.float64, device=device)
        self.steps = 0
        """Steps that were taken, skipped ones aside."""
        self.waited = 0.0
        """Seconds spent waiting for batches."""
        self._since = time.monotonic()

    def add(self, done: Step, wait: float) -> None:
        """Count one step."""
        self.waited += wait
        if done.stepped:
            self._sums += done.figures
            self.steps += 1

    @property
    def mean(self) -> Tensor:
        """Averages of the figures over the steps."""
        return self._sums / self.steps

    @property
    def seconds(self) -> float:
        """Seconds since the last row, saving and validation aside."""
        return time.monotonic() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block does not count."""
        pause = time.monotonic()
        yield
        self._since += time.monotonic() - pause

    def reset(self) -> None:
        """Start a new interval."""
        self._sums.zero_()
        self.steps, self.waited, self._since = 0, 0.0, time.monotonic()


class Trainer:
    """The state of a run between steps."""

    def __init__(
        self,
        run: RunConfig,
        engine: Any,
        stream: TrainStream,
        flops_per_crop: float,
        steps: int,
        told_to_stop: threading.Event,
    ) -> None:
        self.told_to_stop = told_to_stop
        self.started = time.monotonic()
        self.run, self.engine, self.stream, self.steps = run, engine, stream, steps
        self.flops_per_crop = flops_per_crop
        rates = engine.module.config.rates
        self.objective = RateDistortion(run.loss, rates)
        self.figures = self.objective.figure_names(engine.module.scales)
        self.noise = Noise(
            engine.module.config, run.data.crop, run.seed, stream.rank, stream.world_size
        )
        draws = RateDraws(rates, run.seed, run.batch, stream.rank, stream.world_size)
        self.dtype = torch.bfloat16 if uses_bf16(run) else torch.float32
        self.batches = DeviceBatches(
            stream, self.noise, draws, engine.device, engine.train_micro_batch_size_per_gpu(), steps
        )
        self.guard = StepGuard(engine, run.optimizer.grad_clip_norm)
        self.watch = LossWatch(run.guard)
        self.average = ShardedEMA(engine) if run.optimizer.ema else None
        self.on_disk = NvmeState.of(engine)
        offloads = engine.zero_offload_optimizer() is not None
        self.writer = CheckpointWriter(run.checkpoint.background and not offloads)
        engine.checkpoint_engine = self.writer
        self.position: dict[str, int] = {}
        """Where the stream goes on after the last step's batch."""
        self.lr = 0.0
        """Learning rate of the last step."""
        self.saving: int | None = None
        """The step whose checkpoint is being written."""
        # A fraction of what this machine does, with all ranks busy as they are in a step.
        rate = peak_rate(engine.device, self.dtype)
        (self.peak,) = to_host(self._sum(torch.tensor([rate], dtype=torch.float64)))

    @property
    def rank(self) -> int:
        """This process among all."""
        return self.stream.rank

    def run_to_end(self, shown: monitor.Monitor | None, watchdog: Watchdog | NoWatchdog) -> None:
        """Step until the run's last step, reporting to `shown` on the rank that has it.

        Raises:
            Interrupted: if told to stop, once all is saved.
            RunError: if too many steps in a row are skipped, or a checkpoint cannot be written.
        """
        self.started = time.monotonic()
        begun = self.run.init is not None or self.run.initial_weights != "random"
        if begun and self.stream.step == 0:
            watchdog.at("validation before step 1")
            self.validate(shown, 0, 0, watchdog.tick)
        interval = Interval(len(self.figures), self.engine.device)
        with Profile(self.run, self.rank) as profile:
            for batch, wait in self._batches():
                number = batch.step + 1
                watchdog.at(f"step {number}")
                profile.at(batch.step)
                done = self.step(batch)
                interval.add(done, wait)
                self._look_at_loss(done, number, shown)
                last = number == self.steps
                leaving = last or done.stop
                if (number % self.run.log_every == 0 or leaving) and interval.steps:
                    row = self._train_row(interval.mean, number, batch.epoch)
                    if shown:
                        shown.row("train", number, row | self._speed(interval))
                    interval.reset()
                with interval.paused():
                    self._save_and_validate(done, number, batch.epoch, shown, watchdog)
                if leaving:
                    break
            else:  # `_batches` never ends
                return
        self._finish_saving()
        torch.distributed.barrier()
        if done.stop and not last:
            raise Interrupted(f"{self.run.folder}: stopped after step {number}; it is saved")

    def _look_at_loss(self, done: "Step", number: int, shown: monitor.Monitor | None) -> None:
        """Count and show skipped steps and spikes.

        Raises:
            RunError: after too many skipped steps in a row.
        """
        event = self.watch.take(done.loss, done.stepped)
        if event and shown:
            shown.event(event, number, **({"loss": done.loss} if done.stepped else {}))
        if self.watch.in_a_row >= self.run.guard.max_skipped:
            self._finish_saving()
            raise agreed(
                RunError(
                    f"{self.run.folder}: {self.watch.in_a_row} steps in a row gave losses or "
                    f"gradients that are not finite, the last of them step {number}; the "
                    "checkpoints are as they were; try a lower optimizer.lr"
                )
            )

    def _save_and_validate(
        self,
        done: "Step",
        number: int,
        epoch: int,
        shown: monitor.Monitor | None,
        watchdog: Watchdog | NoWatchdog,
    ) -> None:
        """Save and validate where that is due after step `number`."""
        last = number == self.steps
        if self.saving is not None and not done.writing:
            self._finish_saving()
        if number % self.run.checkpoint.every == 0 or last or done.stop:
            watchdog.at(f"saving after step {number}")
            self.save(number)
        if number % self.run.validate_every == 0 or last:
            watchdog.at(f"validation after step {number}")
            self.validate(shown, number, epoch, watchdog.tick)

    def step(self, batch: Batch) -> Step:
        """One optimizer step, left out on all ranks if any finds its loss or gradient unusable."""
        run, engine = self.run, self.engine
        self.lr = learning_rate(run.optimizer, batch.step, self.steps)
        for group in engine.optimizer.param_groups:
            if group[FACTOR] is not None:
                group["lr"] = group[FACTOR] * self.lr
        figures = []
        *others, last = batch.micro_batches
        for part in others:
            figures.append(self._pass(part))
            engine.step()  # counts the micro-batch; the optimizer waits for the last
        figures.append(self._pass(last))
        mean = torch.cat(figures).double().mean(0)
        self.position = batch.position
        self.batches.prefetch()
        failed = self.writer.error is not None
        if run.max_hours is not None and time.monotonic() - self.started > 3600 * run.max_hours:
            self.told_to_stop.set()
        agreed = self.guard.step(
            mean[0], (self.told_to_stop.is_set(), self.writer.busy and not failed)
        )
        if agreed.stepped and self.average:
            self.average.update(ema_decay(run.optimizer, batch.step))
        return Step(mean, agreed.loss / self.stream.world_size, agreed.stepped, *agreed.flags)

    def _pass(self, part: MicroBatch) -> Tensor:
        """Forward and backward of a micro-batch; the figures of each crop, (b, figures)."""
        torch.compiler.cudagraph_mark_step_begin()  # results of the last pass may be overwritten
        x = (part.crops.float() / 255).contiguous(memory_format=torch.channels_last)
        output = self.engine(x.to(self.dtype), part.noise, False, part.places)
        per_image = self.objective.per_image(output, x, part.places)
        self.engine.backward(training_loss(per_image, output))
        return per_image.detach()

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
        state = {"rng": accelerator().get_rng_state()}
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
            "bf16": self.dtype == torch.bfloat16,
            "on_disk": self.on_disk is not None,
            "data": self.stream.state_dict() | self.position,
            "watch": self.watch.state_dict(),
            "config": self.run.model_dump(mode="json"),
            "network": self.engine.module.config.model_dump(mode="json"),
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
            accelerator().set_rng_state(state["rng"])
        if self.average and (files := sorted(folder.glob("ema-*.safetensors"))):
            self.average.load(files)
        elif self.average:  # of a run that kept none: the average begins with its weights
            self.average = ShardedEMA(self.engine)
        self.stream.load_state_dict(found.whole["data"])
        self.watch.load_state_dict(found.whole["watch"])
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
            raise agreed(
                RunError(
                    f"{folder}: cannot be written ({errors[0]}); the checkpoint before it is as it "
                    "was: make room and start again with --resume auto"
                )
            )
        if self.rank == 0:
            files = {name: entry for part, _ in every for name, entry in part.items()}
            checkpoint.complete(folder, self.record | {"files": files})
            config = self.run.checkpoint
            checkpoint.prune(self.run.folder, config.keep, config.keep_every)

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Batches without end, each with the seconds spent waiting for it."""
        while True:
            batch = self.batches.next()
            waited, self.batches.waited = self.batches.waited, 0.0
            yield batch, waited

    def _train_row(self, mean: Tensor, step: int, epoch: int) -> dict[str, float]:
        """Averages over all ranks of the averages `mean` of each, and the optimizer's state."""
        means = to_host(self._sum(mean.clone()) / self.stream.world_size)
        figures = dict(zip(self.figures, means, strict=True))
        row = _with_parts(figures | {"psnr": psnr(figures["mse"])}) | self._position(step, epoch)
        row |= {"lr": self.lr}
        row |= {"skipped": self.watch.skipped, "spikes": self.watch.spikes}
        return row if self.guard.norm is None else row | {"grad_norm": self.guard.norm}

    def _speed(self, interval: Interval) -> dict[str, float]:
        """Speed of an interval's steps, and the memory they took."""
        elapsed = interval.seconds
        crops = interval.steps * self.run.batch / elapsed
        flops = crops * self.flops_per_crop
        return {
            "crops_per_second": crops,
            "flops_per_second": flops,
            "peak_fraction": flops / self.peak,
            "data_wait": interval.waited / elapsed,
            "memory": peak_memory(),
        }

    def _sum(self, values: Tensor) -> Tensor:
        """Sums over all ranks of a float64 vector, on the device."""
        values = values.to(self.engine.device)
        torch.distributed.all_reduce(values)
        return values

    def _position(self, step: int, epoch: int) -> dict[str, float]:
        crops = step * self.run.batch
        return {"crops": crops, "flops": crops * self.flops_per_crop, "epoch": epoch}


def _with_parts(figures: dict[str, float]) -> dict[str, float]:
    """`figures` and the rate of y over all scales."""
    return figures | {"bpp_y": figures["bpp"] - figures["bpp_z"]}
