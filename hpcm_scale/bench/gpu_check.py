"""Everything that a machine with a GPU has to prove, in one run: `bash launch/gpu_check.sh`.

Each check stands for itself: one that fails is recorded with its cause and the others go on. On a
CPU the same checks run smaller.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.bench.gpu_report import page
from hpcm_scale.bench.small_runs import CROP, SmallRuns, smooth_picture
from hpcm_scale.bench.train_memory import predicted
from hpcm_scale.bench.train_workers import WARM_UP, case, working
from hpcm_scale.cluster.doctor import examine_this, has_blocking_failures
from hpcm_scale.config import DataConfig, ModelChoice, configs_folder
from hpcm_scale.data.stream import TrainStream
from hpcm_scale.errors import HpcmError, RunError, one_line
from hpcm_scale.files import atomic_write
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.complexity import count_flops
from hpcm_scale.models.peak import peak_rate
from hpcm_scale.models.zoo import build, chosen_model, model_config
from hpcm_scale.planning.measured import Check, Measured, StepTime
from hpcm_scale.training.build_tools import missing_tools
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.training.single_precision import set_tf32
from hpcm_scale.units import processor

BIT_TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2}
"""Largest share by which a picture's bits may differ from the CPU's in single precision: a symbol
may fall on the other side of a half, and what is coded after it depends on it."""
LOSS_TOLERANCE = 1e-3
"""Largest relative difference between losses of one run spread in different ways."""
MEMORY_TOLERANCE = 0.15
STEPS_SECONDS = 30 * 60.0
"""What the timed steps may take of the hour. To compile a network for one micro-batch takes
minutes: graphs are measured from the smallest up, which they are for, as far as the time goes."""
SMALL_OPERATIONS = 2000
"""Operations one after another that tell what a launch takes."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the checks."""

    cuda: bool
    model: str
    width: float
    """Width multiplier of the network whose steps are timed."""
    micro_batches: tuple[int, ...]
    parity: tuple[str, ...]
    """Variants whose passes are compared, at a tenth of their width."""
    stages: tuple[str, ...]
    """Files of configs/deepspeed whose losses must be equal."""
    repeats: int
    pictures: tuple[tuple[int, int], ...]
    """Sizes of the pictures that are coded here and there."""
    ranks: int
    """Of the runs whose losses must be equal."""
    kit: int | None
    """Files of the conformance kit that are decoded; None for all."""

    @property
    def precision(self) -> str:
        """Precision of the timed steps."""
        return "bf16" if self.cuda else "fp32"


def plan_here() -> Plan:
    """All of it on a GPU, a little of everything on a CPU."""
    if not torch.cuda.is_available():
        return Plan(
            *(False, "base", 0.05, (1, 2), ("base",), ("zero0", "zero1", "zero2", "zero3"), 2),
            pictures=((96, 64),),
            ranks=1,
            kit=8,
        )
    variants = sorted(path.stem for path in configs_folder("models").glob("*.yaml"))
    return Plan(
        *(True, "base", 1.0, (1, 2, 4, 8, 16, 32), tuple(v for v in variants if v != "1b")),
        stages=("zero0", "zero1", "zero2", "zero3", "zero3-offload-cpu"),
        repeats=10,
        pictures=((768, 512), (500, 333), (64, 64)),
        ranks=torch.cuda.device_count(),
        kit=None,
    )


@dataclass
class GpuCheck:
    """The checks of one machine, and what they measured so far."""

    plan: Plan
    folder: Path
    """Where runs, files, report and record go."""
    say: Callable[[str], None]
    steps: list[StepTime] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    crops_per_second: float = 0.0
    link: float | None = None
    peak: float = 0.0
    launch: float = 0.0

    @property
    def runs(self) -> SmallRuns:
        """The runs whose losses are compared."""
        return SmallRuns(self.folder)

    @property
    def device(self) -> torch.device:
        """The device that is checked."""
        return torch.device("cuda" if self.plan.cuda else "cpu")

    def run(self) -> Measured:
        """Run every check, and write `record.json` and `report.html`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        dtype = torch.bfloat16 if self.plan.cuda else torch.float32
        self.peak = max(peak_rate(self.device, dtype) for _ in range(3))
        self.launch = launch_seconds(self.device)
        checks: dict[str, Callable[[], str]] = {
            "doctor": self.doctor,
            "parity": self.parity,
            "exact files": self.exact_files,
            "ZeRO stages": self.stages_agree,
            "kill and resume": self.kill_and_resume,
            "steps": self.step_times,
            "memory": self.memory,
            "data": self.data_rate,
        }
        for name, check in checks.items():
            start = perf_counter()
            try:
                passed, said = True, check()
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                kind = "" if isinstance(error, HpcmError) else f"{type(error).__name__}: "
                passed, said = False, f"{kind}{one_line(error)}"
            self.checks.append(Check(name, passed, said))
            mark = "ok" if passed else "FAILED"
            self.say(f"{name}: {mark} ({perf_counter() - start:.0f} s)  {said}")
            self._record().save(self.folder / "record.json")  # of what there is, if it is stopped
        record = self._record()
        atomic_write(self.folder / "report.html", page(record))
        return record

    def _record(self) -> Measured:
        cuda = self.plan.cuda
        properties = torch.cuda.get_device_properties(0) if cuda else None
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Measured(
            device=properties.name if properties else processor(),
            accelerator="cuda" if cuda else "cpu",
            devices=torch.cuda.device_count() if cuda else 1,
            memory=properties.total_memory if properties else host,
            peak=self.peak,
            launch_seconds=self.launch,
            crops_per_second=self.crops_per_second,
            workers=len(os.sched_getaffinity(0)),
            link=self.link,
            versions={"torch": torch.__version__, "cuda": torch.version.cuda or "none"},
            steps=self.steps,
            checks=self.checks,
        )

    # -------------------------------------------------------------- checks: each says what it found

    def doctor(self) -> str:
        """The doctor finds nothing that a job here would stumble over."""
        rows = examine_this(None, None, free_port())
        remedies = [f"{row.check}: {row.found}" for row in rows if row.remedy]
        if has_blocking_failures(rows):
            raise RunError("; ".join(remedies))
        (summed,) = (row.found for row in rows if row.check == "all-reduce")
        if (found := re.search(r"(\d+) ranks, ([\d.]+) GB/s", summed)) and self.plan.cuda:
            self.link = float(found[2]) * 1e9 if int(found[1]) > 1 else None
        return "; ".join([summed, *remedies])

    def parity(self) -> str:
        """Training passes on the device give the CPU's rates and pictures, forward and backward."""
        set_tf32(False)
        worst = 0.0
        for variant in self.plan.parity:
            expected = training_pass(variant, torch.device("cpu"), torch.float32)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                found = training_pass(variant, self.device, dtype)
                for figure, one, other in zip(("bits", "error"), found, expected, strict=True):
                    away = abs(one - other) / max(abs(other), 1e-9)
                    if not away <= BIT_TOLERANCE[name]:  # a NaN is no agreement
                        raise RunError(f"{variant} in {name}: {figure} {one:.6g}, not {other:.6g}")
                    worst = max(worst, away) if name == "fp32" else worst
        return f"{len(self.plan.parity)} variants, fp32 within {worst:.1e}"

    def exact_files(self) -> str:
        """Exact files coded on either device decode on both, to the same pixels."""
        from hpcm_scale.codec.codec import Codec
        from hpcm_scale.codec.find_model import find_model
        from hpcm_scale.conformance.check import check_kit

        path = find_model("w0.125-0.013")
        here, there = (Codec.load(path, device) for device in ("cpu", self.device))
        for size in self.plan.pictures:
            picture = smooth_picture(*size, seed=sum(size))
            # Two files: the latents come from floating point, and near a half fall either way.
            for data in (here.encode(picture), there.encode(picture)):
                ours, theirs = (np.asarray(codec.decode(data)) for codec in (here, there))
                if not np.array_equal(ours, theirs):  # their pixels are exact too
                    raise RunError(f"{size[0]}x{size[1]}: the devices decoded different pictures")
        kit = list(islice(check_kit("torch", str(self.device)), self.plan.kit))
        for name, fault in kit:
            if fault is not None:
                raise RunError(f"{name}, of the conformance kit: {fault}")
        return f"{len(self.plan.pictures)} pictures both ways, {len(kit)} files of the kit"

    def stages_agree(self) -> str:
        """Every way to spread a run gives the same losses."""
        stages = list(self.plan.stages)
        if {*missing_tools()} - {"libaio"}:  # which disks alone need
            stages = [stage for stage in stages if "offload" not in stage]
        ranks = self.plan.ranks
        losses = {
            stage: self.runs.train(stage, f"deepspeed={stage}", ranks=ranks) for stage in stages
        }
        first = losses[stages[0]]
        worst = max(relative(other, first) for other in losses.values())
        if not worst <= LOSS_TOLERANCE:
            raise RunError(f"losses differ by {worst:.1e}: {losses}")
        steps = f"{len(first)} steps of {ranks} rank{'s' * (ranks > 1)}"
        return f"{', '.join(stages)} within {worst:.1e} over {steps}"

    def kill_and_resume(self) -> str:
        """A run whose process is killed resumes to the losses of one that was not."""
        changes = ("deepspeed=zero1", "steps=6", "checkpoint.every=2", "optimizer.ema=0.9")
        whole = self.runs.train("whole", *changes)
        self.runs.kill("killed", 3, *changes)
        resumed = self.runs.train("killed", *changes)
        worst = relative(resumed, whole)
        if len(resumed) != 6 or not worst <= (LOSS_TOLERANCE if self.plan.cuda else 0.0):
            raise RunError(f"losses {resumed} after a kill, {whole} without")
        return f"killed after step 3 of 6, within {worst:.1e}"

    def step_times(self) -> str:
        """Times, launches and memory of steps by micro-batch, with and without graphs."""
        faults, left_out = [], []
        begun, longest = perf_counter(), 0.0
        for graphs in (False, True) if self.plan.cuda else (False,):
            for micro in self.plan.micro_batches:
                name = f"{micro} crops{', graphs' * graphs}"
                start = perf_counter()
                if start - begun + longest > STEPS_SECONDS:
                    left_out.append(name)
                    continue
                try:
                    self.steps.append(self._step_time(micro, graphs))
                except RunError as error:  # no room, or a graph that cannot be recorded
                    faults.append(f"{name}: {one_line(error)}")
                longest = max(longest, perf_counter() - start)
        if not self.steps:
            raise RunError("; ".join(faults))
        best = max(self.steps, key=lambda step: step.peak_share)
        fastest = min(self.steps, key=lambda step: step.seconds)
        said = (
            f"{len(self.steps)} measured; {best.peak_share:.0%} of {self.peak / 1e12:.3g} TFLOP/s "
            f"with {best.micro_batch} crops; {1e3 * fastest.seconds:.1f} ms and {fastest.launches} "
            f"launches with {fastest.micro_batch}"
        )
        if left_out:
            said += f"; no time for {', '.join(left_out)}"
        if faults:
            raise RunError(f"{said}; but {'; '.join(faults)}")
        return said

    def memory(self) -> str:
        """The memory that plans predict is what steps took."""
        if not self.steps:
            raise RunError("no step was measured")
        away = [
            (step.memory_predicted / step.memory_measured - 1, step)
            for step in self.steps
            if not step.graphs  # whose pools plans do not predict
        ]
        worst, step = max(away, key=lambda pair: abs(pair[0]))
        said = f"{worst:+.0%} at most, with {step.micro_batch} crops"
        if abs(worst) > MEMORY_TOLERANCE:
            raise RunError(said)
        return said

    def data_rate(self) -> str:
        """Crops that one data worker prepares, against what steps take."""
        data = DataConfig(train=str(self.runs.dataset()), crop=CROP, streams=4, workers=1)
        batch, batches = 16, 8 if self.plan.cuda else 2
        stream = iter(TrainStream(data, seed=0, global_batch=batch))
        next(stream)
        start = perf_counter()
        for _ in range(batches):
            next(stream)
        self.crops_per_second = batch * batches / (perf_counter() - start)
        taken = max((step.micro_batch / step.seconds for step in self.steps), default=0.0)
        return (
            f"{self.crops_per_second:.0f} crops/s a worker; a device takes {taken:.1f} crops/s, "
            f"{taken / self.crops_per_second:.1f} workers"
        )

    # -------------------------------------------------------------- how they do it

    def _step_time(self, micro: int, graphs: bool) -> StepTime:
        plan = self.plan
        choice = ModelChoice(variant=plan.model, width=plan.width)
        one = case(
            *(f"{micro} crops{', graphs' * graphs}", choice),
            deepspeed="zero1",
            batch=micro,
            crop=CROP,
            precision=plan.precision,
            compiled=graphs,
        )
        with working(one, torch.get_num_threads()) as workers:
            for _ in range(WARM_UP + 2 * graphs):
                workers.step()
            seconds = median(workers.step() for _ in range(plan.repeats))
            _, measured = workers.memory()
            launches = workers.launches()
        flops = micro * count_flops(chosen_model(choice), CROP).train
        # A device's allocator is asked, a process on a CPU as it is.
        said = predicted(one, "cuda") if plan.cuda else predicted(one)
        return StepTime(
            model=chosen_model(choice).name,
            crop=CROP,
            micro_batch=micro,
            precision=plan.precision,
            graphs=graphs,
            seconds=seconds,
            flops=flops,
            launches=launches,
            peak_share=flops / seconds / self.peak,
            memory_predicted=said,
            memory_measured=measured,
        )


def relative(one: list[float], other: list[float]) -> float:
    """Largest relative difference of two series; infinite if they are not of one length."""
    if len(one) != len(other) or not one:
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def training_pass(variant: str, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bits and squared error of one crop by a network of random weights, after a backward pass.

    Raises:
        RunError: if a gradient is not finite, or not on the device.
    """
    config = model_config(variant, 0.1)
    generator = torch.manual_seed(0)
    network = build(config)
    shapes = ((1, 3, CROP, CROP), *noise_shapes(config, 1, CROP, CROP))
    x, y, z = (torch.rand(shape, generator=generator) for shape in shapes)
    network.to(device, dtype)
    x = x.to(device, memory_format=torch.channels_last)
    noise: tuple[Tensor, Tensor] = ((y - 0.5).to(device), (z - 0.5).to(device))
    output = network(x.to(dtype), noise)
    error = (output.x_hat.float() - x).square().mean()
    (output.bits.sum() / x[0, 0].numel() + error).backward()
    for name, parameter in network.named_parameters():
        grad = parameter.grad
        if grad is not None and not (grad.device.type == device.type and grad.isfinite().all()):
            raise RunError(f"{variant}: the gradient of {name} is not finite on {device}")
    return output.bits.sum().item(), error.item()


def launch_seconds(device: torch.device) -> float:
    """Seconds of one small operation among many that are ordered one after another."""
    x, taken = torch.zeros(16, device=device), 0.0
    for _ in range(2):  # the first loads what the others run
        start = perf_counter()
        for _ in range(SMALL_OPERATIONS):
            x.add_(1)
        x.sum().item()  # waits for all of them
        taken = perf_counter() - start
    return taken / SMALL_OPERATIONS
