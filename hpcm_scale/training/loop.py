"""One training run, from configuration to last checkpoint."""

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from hpcm_scale.config import ModelConfig, RunConfig
from hpcm_scale.data.stream import TrainStream
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.complexity import count_flops, count_parameters
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.training import checkpoint, monitor
from hpcm_scale.training.engine import build_engine, init_distributed, uses_bf16
from hpcm_scale.training.loss import RateDistortion, figure_names, psnr
from hpcm_scale.training.schedule import learning_rate
from hpcm_scale.training.validate import validate


def train(run: RunConfig) -> None:
    """Train `run` to its last step; every rank of the job calls this.

    Raises:
        HpcmError: if configuration, data or run folder cannot be used.
    """
    choice = run.model
    model = model_config(choice.variant, choice.width, choice.depth, choice.overrides)
    with torch.device("meta"):
        multiple = build(model).image_multiple
    if run.data.crop % multiple:
        raise ConfigError(
            f"data.crop: {run.data.crop} is not a multiple of {multiple}, "
            f"which the grids and attention windows of {model.name} need"
        )
    rank, world = init_distributed()
    stream = TrainStream(
        run.data, seed=run.seed, global_batch=run.batch, rank=rank, world_size=world
    )
    if rank == 0:
        monitor.open_folder(run.folder)
    engine = build_engine(run, model, world)
    flops = count_flops(model, run.data.crop)
    if rank == 0:
        monitor.write_record(run.folder, run, model, count_parameters(engine.module), flops)
    trainer = Trainer(run, model, engine, stream, flops.train)
    with monitor.Monitor(run) if rank == 0 else nullcontext() as shown:
        trainer.run_to_end(shown)


class Trainer:
    """The state of a run between steps."""

    def __init__(
        self,
        run: RunConfig,
        model: ModelConfig,
        engine: DeepSpeedEngine,
        stream: TrainStream,
        flops_per_image: float,
    ) -> None:
        self.run, self.model, self.engine, self.stream = run, model, engine, stream
        self.flops_per_image = flops_per_image
        self.objective = RateDistortion(run.loss)
        self.dtype = torch.bfloat16 if uses_bf16(run) else torch.float32

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the objective's figures for the network being trained."""
        return figure_names(self.engine.module.scales)

    def run_to_end(self, shown: monitor.Monitor | None) -> None:
        """Step until the run's last step, reporting to `shown` on the rank that has it."""
        run = self.run
        sums = torch.zeros(len(self.figures), dtype=torch.float64)
        since, mark = 0, time.monotonic()
        for batch in self.stream:
            sums += self.step(batch)
            since += 1
            step = batch["step"] + 1
            last = step == run.steps
            if step % run.log_every == 0 or last:
                row = self._figures(sums / since)
                elapsed = time.monotonic() - mark
                row |= self._position(step, batch["epoch"]) | {
                    "lr": self.engine.optimizer.param_groups[0]["lr"],
                    "images_per_second": since * run.batch / elapsed,
                }
                norm = self.engine.get_global_grad_norm()
                if norm is not None:  # stage 0 in fp32 keeps none
                    row["grad_norm"] = float(norm)
                if shown:
                    shown.row("train", step, row)
                sums.zero_()
                since, mark = 0, time.monotonic()
            if step % run.validate_every == 0 or last:
                figures = validate(
                    self.engine, run.data, self.objective, self.stream.rank, self.stream.world_size
                )
                if shown:
                    shown.row(
                        "val", step, _with_parts(figures) | self._position(step, batch["epoch"])
                    )
                mark = time.monotonic()
            if step % run.checkpoint.every == 0 or last:
                checkpoint.save(self.engine, run.folder, step, self.state(step))
                mark = time.monotonic()
            if last:
                return

    def step(self, batch: dict[str, Any]) -> Tensor:
        """One optimizer step; returns the sums of this rank's figures over the batch."""
        run, engine = self.run, self.engine
        rate = learning_rate(run.optimizer, batch["step"], run.steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        figures = []
        micro = engine.train_micro_batch_size_per_gpu()
        for start in range(0, len(batch["image"]), micro):
            rows = range(start, min(start + micro, len(batch["image"])))
            x = batch["image"][rows.start : rows.stop].to(engine.device, non_blocking=True)
            x = (x.float() / 255).contiguous(memory_format=torch.channels_last)
            noise = self.noise(batch["step"], rows)
            output = engine(x.to(self.dtype), noise)
            per_image = self.objective.per_image(output, x)
            engine.backward(per_image[:, 0].mean())
            engine.step()
            figures.append(per_image.detach())
        return torch.cat(figures).double().mean(0).cpu()

    def noise(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Quantisation noise for y and z of a rank's `rows` of the batch of `step`.

        Keyed by seed, step and the row in the global batch: the same on any number of ranks.
        """
        m, n, side = self.model.latent_channels, self.model.hyper_channels, self.run.data.crop
        h, small = side // 16, side // 64
        drawn = np.empty((len(rows), m * h * h + n * small * small), np.float32)
        for i, row in enumerate(rows):
            place = row * self.stream.world_size + self.stream.rank
            generator = np.random.default_rng((self.run.seed, step, place))
            generator.random(dtype=np.float32, out=drawn[i])
        drawn -= 0.5
        both = torch.from_numpy(drawn).to(self.engine.device)
        y, z = both.split([m * h * h, n * small * small], dim=1)
        return y.reshape(-1, m, h, h), z.reshape(-1, n, small, small)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds beside DeepSpeed's state."""
        return {"step": step, "data": self.stream.state_dict()}

    def _figures(self, mean: Tensor) -> dict[str, float]:
        """Averages over all ranks of the averages `mean` of each."""
        mean = mean.to(self.engine.device)
        torch.distributed.all_reduce(mean)
        figures = dict(zip(self.figures, (mean / self.stream.world_size).tolist(), strict=True))
        return _with_parts(figures | {"psnr": psnr(figures["mse"])})

    def _position(self, step: int, epoch: int) -> dict[str, float]:
        images = step * self.run.batch
        return {"images": images, "flops": images * self.flops_per_image, "epoch": epoch}


def _with_parts(figures: dict[str, float]) -> dict[str, float]:
    """`figures` and the rate of y over all scales."""
    return figures | {"bpp_y": figures["bpp"] - figures["bpp_z"]}
