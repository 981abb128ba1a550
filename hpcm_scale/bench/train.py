"""Step times of a run's settings beside those of a bare PyTorch loop."""

from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from rich.table import Table

from hpcm_scale.bench.train_workers import WARM_UP, case, working
from hpcm_scale.config import ModelChoice
from hpcm_scale.models.complexity import count_flops
from hpcm_scale.models.peak import ProductRates
from hpcm_scale.models.torch_internals import has_native_bf16
from hpcm_scale.models.zoo import chosen_model
from hpcm_scale.planning.launches import count_launches
from hpcm_scale.units import GIB, processor


def bench_train(choice: ModelChoice, batch: int, crop: int, repeats: int, threads: int) -> Table:
    """A run's steps, with and without recomputed activations, beside a bare PyTorch loop's.

    In bf16 too where the processor has it. The cases step in turn, each in a process of its own,
    and the rates of large products are measured before every step: on a shared machine only times
    taken together can be compared.

    Raises:
        RunError: if a case fails.
    """
    cases = [
        case("bare PyTorch loop", choice, deepspeed="zero0", batch=batch, crop=crop, bare=True),
        case("zero0", choice, deepspeed="zero0", batch=batch, crop=crop),
        case("zero3", choice, deepspeed="zero3", batch=batch, crop=crop),
        case("zero3, recomputing", choice, checkpointing=True, batch=batch, crop=crop),
    ]
    if has_native_bf16():
        half: dict[str, Any] = {"batch": batch, "crop": crop, "precision": "bf16"}
        cases += [
            case("zero1, bf16", choice, deepspeed="zero1", **half),
            case("zero3, bf16", choice, **half),
            case("zero3, bf16, recomputing", choice, checkpointing=True, **half),
        ]
    model = chosen_model(choice)
    flops = batch * count_flops(model, crop).train
    torch.set_num_threads(threads)
    times: list[list[float]] = [[] for _ in cases]
    shares: list[list[float]] = [[] for _ in cases]
    products = ProductRates()
    with ExitStack() as stack:
        workers = [stack.enter_context(working(case, threads)) for case in cases]
        for _ in range(WARM_UP):
            for worker in workers:
                worker.step()
        for _ in range(repeats):
            for i, worker in enumerate(workers):
                rates = products.measure()
                times[i].append(worker.step())
                shares[i].append(flops / times[i][-1] / rates[worker.case.run.precision])
        memory = [worker.memory()[1] for worker in workers]

    table = Table(title=f"{model.name}, steps of {batch} crops of {crop}², medians of {repeats}")
    table.add_column("")
    for column in ("seconds", "of the bare loop", "of a large product", "peak memory GiB"):
        table.add_column(column, justify="right")
    for i, row in enumerate(cases):
        ratio = median(mine / bare for mine, bare in zip(times[i], times[0], strict=True))
        cells = (f"{median(times[i]):.3f}", f"{ratio:.2f}", f"{median(shares[i]):.0%}")
        table.add_row(row.name, *cells, f"{memory[i] / GIB:.2f}")
    table.caption = (
        f"{processor()}, {threads} threads; {products}; {flops / 1e9:.0f} GFLOP a step "
        f"(recomputation not counted), {count_launches(model, crop, False)} operations "
        f"dispatched on an accelerator, {count_launches(model, crop, True)} when recomputing"
    )
    return table
