"""Memory that plans predict for a run's settings, beside what real steps take."""

import json

from rich.table import Table

from hpcm_scale.bench.train_workers import Case, case, working
from hpcm_scale.config import ModelChoice, configs_folder
from hpcm_scale.models.zoo import chosen_model
from hpcm_scale.planning.memory import rank_memory
from hpcm_scale.training.zero_layout import ZeroLayout
from hpcm_scale.units import MIB

MEASURED = tuple(
    (width, stage, ranks, checkpointing)
    for width in (0.1, 0.25, 0.5)
    for stage in ("zero0", "zero3")
    for ranks in (1, 2)
    for checkpointing in (False, True)
)
"""Runs whose memory is compared with its prediction: width, settings, ranks, recomputation."""
BATCH = 4
"""Crops of a step of theirs."""


def predicted(case: Case, device: str = "cpu") -> float:
    """Bytes at most of a case: in one process on a CPU, or that tensors take on a GPU."""
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
        bf16=run.precision == "bf16",
        device=device,
    )
    if device != "cpu":
        return memory.device - memory.framework  # which the allocator does not know of
    return memory.device + memory.host


def measure(case: Case, steps: int = 4) -> tuple[int, int]:
    """Bytes of a process of a case that has joined the job, and at most in so many steps."""
    with working(case, threads=1) as workers:
        for _ in range(steps):
            workers.step()
        return workers.memory()


def measure_memory() -> Table:
    """Predicted and measured peaks of real runs of Base, in fp32 on this machine's CPU.

    The base process has imported everything and joined the job, and built nothing.
    """
    table = Table(title=f"memory of a rank, base, steps of {BATCH} crops of 256²")
    for name in ("width", "deepspeed", "ranks", "recomputed"):
        table.add_column(name)
    for name in ("predicted MiB", "measured MiB", "difference", "over base process"):
        table.add_column(name, justify="right")
    for width, stage, ranks, checkpointing in MEASURED:
        one = case(
            f"{stage}, width {width:g}",
            ModelChoice(width=width),
            checkpointing=checkpointing,
            deepspeed=stage,
            batch=BATCH,
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
