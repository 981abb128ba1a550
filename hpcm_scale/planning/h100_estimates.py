"""The 1B model on hardware that is not at hand, computed: tables in Markdown."""

import math
from dataclasses import dataclass

from hpcm_scale.config import ModelConfig
from hpcm_scale.planning.cluster_plan import Cluster, ClusterPlan, deepspeed_files, plan_cluster
from hpcm_scale.planning.launch_plan import checkpoint_size, optimal_interval
from hpcm_scale.planning.memory import BF16
from hpcm_scale.units import GIB

INTERRUPTIONS = 419 / (54 * 24 * 16384)
"""Unexpected interruptions an accelerator-hour: 419 in 54 days of 16 384 H100s (Llama 3,
arXiv 2407.21783, section 3.3.4)."""
STORAGE = 2e9
"""Bytes/s a host writes to shared storage: an assumption."""
IMAGE_BYTES = 1.0e6
"""Of a stored photo, about 2000×1500 as JPEG: an assumption."""
SHARD_BYTES = 1e9
HOSTS = (1, 8, 64)
CROPS_EACH = 8
"""Crops of a step on one accelerator, in the larger of two batches."""
WORKERS = 8
"""Decoding processes of a rank."""


@dataclass(frozen=True)
class Dataset:
    """A set of photos by its size."""

    name: str
    images: int
    epochs: int

    @property
    def crops(self) -> int:
        return self.images * self.epochs


# arXiv 2507.19125 trains 2 M steps of 32 crops, whatever the set's size.
DATASETS = (
    Dataset("Flickr2W", 20_718, math.ceil(6.4e7 / 20_718)),
    Dataset("100 M images", 100_000_000, 1),
)


def page(model: ModelConfig) -> str:
    """Markdown of a model on `HOSTS` of eight H100s: time, data and checkpoints.

    Two batches: a crop on each accelerator (32 at least, as published), and `CROPS_EACH`.
    """
    plans = []
    for hosts in HOSTS:
        cluster = Cluster(hosts=hosts)
        for batch in (max(32, cluster.ranks), CROPS_EACH * cluster.ranks):
            plans.append(plan_cluster(model, cluster, batch=batch))
    usual, data = Cluster(), DATASETS[0]
    return f"""# {model.name} on {", ".join(str(8 * h) for h in HOSTS)} H100s, on paper

Computed by `hpcm-scale plan --model {model.name} --h100-report`, none of it
measured on such hardware.
Assumed: an H100 does {usual.efficiency:.0%} of its {usual.peak / 1e12:.0f} TFLOP/s in bf16, sends
{usual.intra_node_bw / 1e9:.0f} GB/s inside a host of {usual.accelerators} and
{usual.inter_node_bw / 1e9:.0f} GB/s to others; `hpcm-scale plan` takes other figures as options.

## A step

The time of a step is the longest of arithmetic, launches and communication, where each hides the
others: a lower bound. One crop an accelerator (32 at least) is bound by launches or the network;
{CROPS_EACH} are less so, at a batch that needs a learning rate of its own.

{_steps(plans)}

## Data

Photos of {IMAGE_BYTES / 1e6:g} MB, each read once for a crop of it. `data.streams` is what
ranks × workers divides, and fixes the order of the samples for every divisor of it.
{data.name} has fewer shards than large jobs have readers: it is small enough to lie on every host.

{_data(plans[1::2])}

## Checkpoints and failures

Weights, master weights, Adam's averages and the moving average, written to shared storage at
{STORAGE / 1e9:g} GB/s a host. A failure is expected every {1 / INTERRUPTIONS / 24:,.0f}
accelerator-days (419 in 54 days of 16 384 H100s: arXiv 2407.21783). The interval that loses least
is √(2 × write time × time between failures) (Young 1974); what is lost is writing and half an
interval at each failure, restarting not counted. `checkpoint.background` hides the writing as well.

{_checkpoints(plans[1::2])}"""


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    return "\n".join([_row(*head), _row(*("---" for _ in head)), *(_row(*r) for r in rows)])


def _steps(plans: list[ClusterPlan]) -> str:
    rows = []
    for plan in plans:
        best = plan.best
        rows.append(
            (
                plan.cluster.ranks,
                plan.batch,
                f"{best.deepspeed}, checkpoint_activations {str(best.checkpointing).lower()}",
                f"{best.memory.device / GIB:.1f}",
                f"{1e3 * best.compute:.1f}",
                f"{1e3 * best.launch:.1f}",
                f"{1e3 * best.communication:.1f}",
                f"{best.traffic / 1e9:.2f}",
                *(
                    f"{best.seconds * d.crops / plan.batch / 3600:,.1f} h, "
                    f"{best.seconds * d.crops / plan.batch / 3600 * plan.cluster.ranks:,.0f}"
                    for d in DATASETS
                ),
            )
        )
    head = (
        "H100s",
        "batch",
        "fastest that fits",
        "GiB a rank",
        "compute ms",
        "launches ms",
        "communication ms",
        "GB sent a step",
        *(
            f"{d.name}, {d.epochs} epoch{'s' * (d.epochs > 1)}: time, accelerator-hours"
            for d in DATASETS
        ),
    )
    return _table(head, rows)


def _data(plans: list[ClusterPlan]) -> str:
    rows = []
    for plan in plans:
        rate = plan.batch / plan.best.seconds
        readers = plan.cluster.ranks * WORKERS
        for data in DATASETS:
            shards = math.ceil(data.images * IMAGE_BYTES / SHARD_BYTES)
            rows.append(
                (
                    plan.cluster.ranks,
                    data.name,
                    f"{shards:,}",
                    readers,
                    f"{data.images / readers:,.0f}",
                    f"{rate:,.0f}",
                    f"{rate / plan.cluster.hosts:,.0f}",
                    f"{rate / plan.cluster.hosts * IMAGE_BYTES / 1e9:.2f}",
                )
            )
    head = (
        "H100s",
        "set",
        f"shards of {SHARD_BYTES / 1e9:g} GB",
        f"streams ({WORKERS} workers a rank)",
        "images a stream",
        "images/s",
        "of a host",
        "GB/s read by a host",
    )
    return _table(head, rows)


def _checkpoints(plans: list[ClusterPlan]) -> str:
    rows = []
    for plan in plans:
        spread = deepspeed_files()[plan.best.deepspeed]
        size = checkpoint_size(plan.parameters, spread, bf16=True, ema=True)
        # Below stage 3 one rank writes the weights alone.
        alone = BF16 * plan.parameters if spread.stage < 3 else 0
        write = max(size / (STORAGE * plan.cluster.hosts), alone / STORAGE)
        between = 3600 / INTERRUPTIONS / plan.cluster.ranks
        interval = optimal_interval(write, between)
        lost = write / interval + interval / (2 * between)
        rows.append(
            (
                plan.cluster.ranks,
                f"{size / 1e9:.1f}",
                f"{write:.1f}",
                f"{between / 86400:,.1f}",
                f"{interval / 60:,.0f}",
                f"{interval / plan.best.seconds:,.0f}",
                f"{lost:.2%}",
            )
        )
    head = (
        "H100s",
        "checkpoint GB",
        f"written in s ({STORAGE / 1e9:g} GB/s a host)",
        "days between failures",
        "minutes between checkpoints",
        f"steps (batch of {CROPS_EACH} a rank)",
        "time lost",
    )
    return _table(head, rows)
