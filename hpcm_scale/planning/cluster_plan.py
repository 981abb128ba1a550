"""Memory, traffic, time and cost of training on a cluster that is not at hand."""

import json
import math
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.table import Table

from hpcm_scale.config import ModelConfig, configs_folder
from hpcm_scale.errors import ConfigError, RunError
from hpcm_scale.models.complexity import count_flops
from hpcm_scale.planning.launches import LAUNCH_SECONDS, count_launches
from hpcm_scale.planning.measured import Measured
from hpcm_scale.planning.memory import (
    BF16,
    FP32,
    Memory,
    parameter_sizes,
    rank_memory,
)
from hpcm_scale.training.zero_layout import ZeroLayout
from hpcm_scale.units import GIB, gib

CHECKPOINTING: tuple[bool | int, ...] = (False, 2, True)
"""The choices of checkpoint_activations that are compared: none, every second part, all."""


@dataclass(frozen=True)
class Cluster:
    """Hosts full of equal accelerators. The defaults are an H100 SXM's and its usual host's."""

    hosts: int = 1
    accelerators: int = 8
    """Of each host."""
    memory: float = 80 * GIB
    """Bytes of an accelerator."""
    host_memory: float = 1024 * GIB
    """Bytes of a host."""
    memory_bandwidth: float = 3.35e12
    """Bytes/s of an accelerator's memory (data sheet of the H100 SXM)."""
    peak: float = 989e12
    """Dense bf16 FLOP/s of an accelerator (NVIDIA's data sheet of the H100 SXM)."""
    efficiency: float = 0.4
    """Share of the peak that training reaches: an assumption."""
    intra_node_bw: float = 450e9
    """Bytes/s that an accelerator sends to others of its host (NVLink 4, one way)."""
    inter_node_bw: float = 50e9
    """Bytes/s that an accelerator sends to other hosts (400 Gbit/s each)."""
    to_host: float = 50e9
    """Bytes/s between an accelerator and its host (PCIe 5 ×16 in practice)."""
    host_bandwidth: float = 300e9
    """Bytes/s of a host's memory, which bounds an optimizer that runs there."""
    disk: float = 10e9
    """Bytes/s of a host's local disks together."""
    price: float = 2.5
    """Of an accelerator for an hour."""
    launch: float = LAUNCH_SECONDS
    """Seconds of one launch."""
    data: float = math.inf
    """Crops a second that a host reads, decodes and cuts."""
    source: str = "assumed"
    """Where the figures of the accelerator come from."""

    def measured(self, record: Measured, model: str) -> "Cluster":
        """The cluster with what was measured of an accelerator like its own.

        Args:
            model: whose steps' share of the peak to take; where none was measured, the efficiency
                stays as it was.
        """
        share = record.efficiency(model)
        return replace(
            self,
            memory=record.memory,
            peak=record.peak,
            efficiency=self.efficiency if share is None else share,
            intra_node_bw=record.link or self.intra_node_bw,
            launch=record.launch_seconds,
            data=record.crops_per_second * record.workers,
            source=f"measured on {record.device}"
            + (", efficiency assumed" if share is None else "")
            + ("" if record.link else ", links assumed"),
        )

    @property
    def ranks(self) -> int:
        return self.hosts * self.accelerators

    @property
    def link(self) -> float:
        """Bytes/s of the slowest link that a ring over all ranks crosses."""
        if self.ranks == 1:
            return math.inf
        return self.inter_node_bw if self.hosts > 1 else self.intra_node_bw


@dataclass(frozen=True)
class Option:
    """One way to spread a run: a file of configs/deepspeed and what to recompute."""

    deepspeed: str
    checkpointing: bool | int
    micro_batch: int
    memory: Memory
    traffic: float
    """Bytes each rank sends to others in a step."""
    compute: float
    """Seconds of arithmetic in a step, what is recomputed included."""
    communication: float
    """Seconds of traffic between ranks in a step."""
    offload: float
    """Seconds of a step that wait for host memory, PCIe and disks."""
    launch: float
    """Seconds that launching a step's operations takes, one after the other."""
    data: float
    """Seconds in which the hosts read a step's crops."""
    pass_through: float
    """Seconds in which parameters, their states and activations cross the device's memory once."""
    problem: str | None
    """Why it does not fit; None if it does."""

    @property
    def seconds(self) -> float:
        """Seconds of a step: the longest of what hides each other; offloading hides nothing."""
        return max(self._hidden().values()) + self.offload

    def _hidden(self) -> dict[str, float]:
        """What hides each other, by name."""
        return {
            "arithmetic": self.compute,
            "launches": self.launch,
            "memory": self.pass_through,
            "data": self.data,
            "network": self.communication,
        }

    @property
    def bound(self) -> str:
        """Name of what takes most of a step's time."""
        times = self._hidden() | {"offload": self.offload}
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class ClusterPlan:
    """Every option for one model, cluster and run; rich prints it."""

    model: ModelConfig
    cluster: Cluster
    batch: int
    crop: int
    images: float
    parameters: int
    flops_per_image: float
    options: list[Option]

    @property
    def best(self) -> Option:
        """The fastest that fits.

        Raises:
            RunError: if none does, naming the one that comes nearest.
        """
        fitting = [option for option in self.options if option.problem is None]
        if fitting:
            return min(fitting, key=lambda o: (o.seconds, o.memory.device))
        nearest = min(self.options, key=lambda o: o.memory.device)
        raise RunError(
            f"plan: {self.model.name} does not fit in {gib(self.cluster.memory)} an accelerator: "
            f"the least, {nearest.deepspeed} with all activations recomputed and "
            f"{nearest.micro_batch} crop, {nearest.problem}; take more accelerators or hosts, "
            "smaller crops, or more memory"
        )

    @property
    def steps(self) -> int:
        return math.ceil(self.images / self.batch)

    def hours(self, option: Option) -> float:
        """Hours of the whole run."""
        return option.seconds * self.steps / 3600

    def cost(self, option: Option) -> float:
        """Cost of the whole run, in the currency of the price."""
        return self.hours(option) * self.cluster.ranks * self.cluster.price

    def __rich__(self) -> RenderableType:
        cluster = self.cluster
        table = Table(
            title=f"{self.model.name}, {self.parameters / 1e6:.1f} M parameters, on "
            f"{cluster.hosts} × {cluster.accelerators} × {gib(cluster.memory)}",
            box=None,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            header_style="bold",
        )
        table.add_column("deepspeed", no_wrap=True)
        table.add_column("re-\ncompute", no_wrap=True)
        for name in ("micro", "state", "rank", "host", "comm\nGB", "s/step"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("bound\nby", no_wrap=True)
        table.add_column("hours", justify="right", no_wrap=True)
        best = None
        if any(option.problem is None for option in self.options):
            best = self.best
        for o in sorted(self.options, key=lambda o: (o.problem is not None, o.seconds)):
            memory = o.memory
            state = memory.parameters + memory.gradients + memory.optimizer + memory.ema
            cells = [
                o.deepspeed,
                _recomputed(o.checkpointing),
                str(o.micro_batch),
                *(f"{size / GIB:.1f}" for size in (state, memory.device, memory.host)),
                f"{o.traffic / 1e9:.2f}",
            ]
            if o.problem is None:
                cells += [f"{o.seconds:.3f}", o.bound]
                cells += [f"{self.hours(o):.0f}"]
            else:
                cells += ["–", "no room"]
            table.add_row(*cells, style="bold" if o is best else None)
        step = self.batch * self.flops_per_image
        table.caption = (
            "memory in GiB, of a rank on its device (state, and at most) and on its host; "
            f"GB sent a step; {self.batch} crops of {self.crop}² a step, {step:.3g} FLOPs; "
            f"{self.steps} steps, {self.images:.3g} crops; "
            f"{cluster.efficiency:.0%} of {cluster.peak:.3g} FLOP/s, "
            f"{1e6 * cluster.launch:.1f} µs a launch ({cluster.source})"
        )
        if best is None:
            return table
        return Group(table, f"\nfastest that fits: {_said(best)}\n{self._advice(best)}")

    def _advice(self, best: Option) -> str:
        """Advice on the best option: its bound, and the batch that would leave it."""
        cost = (
            f"{self.hours(best):.0f} hours, {self.cost(best):.0f} at {self.cluster.price:g} an hour"
        )
        if best.bound != "launches":
            return f"{cost}; bound by {best.bound}\n"
        crops = math.ceil(best.micro_batch * best.launch / best.compute)
        return (
            f"{cost}; bound by launches: {best.launch / self.cluster.launch:.0f} a step take "
            f"{1e3 * best.launch:.0f} ms, the arithmetic {1e3 * best.compute:.1f} ms; from "
            f"micro_batch {crops} on the arithmetic takes longer{self._graphs(best)}\n"
        )

    def _graphs(self, best: Option) -> str:
        """What CUDA graphs would leave of an option's launches, where it can have them."""
        once = self.batch == best.micro_batch * self.cluster.ranks
        if not once or best.checkpointing or deepspeed_files()[best.deepspeed].stage == 3:
            return ""
        left = count_launches(self.model, self.crop, False, graphs=True)
        return (
            f"; compile: blocks leaves {left} launches, {1e3 * left * self.cluster.launch:.0f} ms"
        )


def _said(option: Option) -> str:
    """The settings of an option, as a run's configuration has them."""
    asked = str(option.checkpointing).lower()
    return (
        f"deepspeed: {option.deepspeed}, checkpoint_activations: {asked}, "
        f"micro_batch: {option.micro_batch}"
    )


def deepspeed_files() -> dict[str, ZeroLayout]:
    """The files of configs/deepspeed by name."""
    return {
        path.stem: ZeroLayout.read(json.loads(path.read_text()))
        for path in sorted(configs_folder("deepspeed").glob("*.json"))
    }


def plan_cluster(
    model: ModelConfig,
    cluster: Cluster,
    *,
    batch: int = 32,
    crop: int = 256,
    images: float = 6.4e7,
) -> ClusterPlan:
    """Every file of configs/deepspeed with and without recomputation, in bf16.

    A rank's share of the batch is halved until it fits; the rest is accumulated.

    Args:
        batch: crops of a step over all ranks.
        images: crops of the run.

    Raises:
        ConfigError: if the ranks cannot share the batch.
    """
    if batch % cluster.ranks:
        raise ConfigError(
            f"--batch: {batch} cannot be shared by {cluster.ranks} ranks; give a multiple"
        )
    flops = count_flops(model, crop).train
    count = parameter_sizes(model)[0]
    on_rank = batch // cluster.ranks
    options = []
    for name, spread in deepspeed_files().items():
        for checkpointing in CHECKPOINTING:
            micro = on_rank
            while True:
                option = _option(
                    name, spread, checkpointing, micro, on_rank, model, cluster, crop, count
                )
                if option.problem is None or micro == 1 or micro % 2:
                    break
                micro //= 2
            recomputed = 1 + (1 / checkpointing if checkpointing else 0) / 3
            compute = on_rank * flops * recomputed / cluster.peak / cluster.efficiency
            passes = on_rank // option.micro_batch
            launch = passes * count_launches(model, crop, checkpointing) * cluster.launch
            data = batch / cluster.data / cluster.hosts
            options.append(replace(option, compute=compute, launch=launch, data=data))
    return ClusterPlan(model, cluster, batch, crop, images, count, flops, options)


def _option(
    name: str,
    spread: ZeroLayout,
    checkpointing: bool | int,
    micro: int,
    on_rank: int,
    model: ModelConfig,
    cluster: Cluster,
    crop: int,
    count: int,
) -> Option:
    memory = rank_memory(
        model,
        spread,
        ranks=cluster.ranks,
        micro_batch=micro,
        crop=crop,
        checkpointing=checkpointing,
        bf16=True,
        ema=True,
        device="accelerator",
    )
    problem = None
    if memory.device > cluster.memory:
        problem = f"needs {gib(memory.device)} a rank"
    elif memory.host * cluster.accelerators > cluster.host_memory:
        problem = f"needs {gib(memory.host * cluster.accelerators)} of a host's memory"
    traffic = step_traffic(spread, count, cluster.ranks, on_rank // micro)
    return Option(
        deepspeed=name,
        checkpointing=checkpointing,
        micro_batch=micro,
        memory=memory,
        traffic=traffic,
        compute=0.0,
        launch=0.0,
        data=0.0,
        pass_through=_pass_through(memory, on_rank // micro) / cluster.memory_bandwidth,
        communication=traffic / cluster.link,
        offload=_offload_seconds(spread, count, cluster, on_rank // micro),
        problem=problem,
    )


def _pass_through(memory: Memory, accumulation: int) -> float:
    """Bytes that a step moves at least in a device's memory.

    Weights are read forward and backward, activations written once and read once in every pass;
    the update reads and writes gradients and optimizer state.
    """
    passes = accumulation * (2 * memory.parameters + 2 * memory.activations)
    return passes + 2 * (memory.gradients + memory.optimizer + memory.ema)


def step_traffic(spread: ZeroLayout, count: int, ranks: int, accumulation: int) -> float:
    """Bytes of bf16 values each rank sends in a step, by rings (arXiv 1910.02054, section 7).

    A reduce-scatter or an all-gather of n bytes sends n·(ranks−1)/ranks. Stages 0 and 1 reduce
    and gather once a step; stage 2 reduces, and stage 3 also gathers twice, every micro-batch. A
    shared net that stage 3 releases between its uses is gathered at each: not counted.
    """
    once = BF16 * count * (ranks - 1) / ranks
    passes = {0: 2, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}[spread.stage]
    return passes * once


def _offload_seconds(spread: ZeroLayout, count: int, cluster: Cluster, accumulation: int) -> float:
    """Seconds a step spends with what is kept off the accelerator."""
    share = count / cluster.ranks
    seconds = 0.0
    if spread.optimizer_on != "none":
        # Gradients down, updated weights up; Adam reads and writes four fp32 values there.
        seconds += BF16 * share * (accumulation + 1) / cluster.to_host
        seconds += 7 * FP32 * share * cluster.accelerators / cluster.host_bandwidth
    if spread.optimizer_on == "nvme":
        seconds += 2 * 3 * FP32 * share * cluster.accelerators / cluster.disk
    if spread.parameters_on != "none":
        seconds += 2 * BF16 * share * accumulation / cluster.to_host
    if spread.parameters_on == "nvme":
        seconds += (2 * accumulation + 1) * BF16 * share * cluster.accelerators / cluster.disk
    return seconds


def _recomputed(checkpointing: bool | int) -> str:
    """Name of a setting of checkpoint_activations in tables."""
    if checkpointing is True or checkpointing is False:
        return "all" if checkpointing else "none"
    return f"1 in {checkpointing}"
