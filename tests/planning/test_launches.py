"""Launches of a training step: counted from the network, and what they bind."""

import re

import pytest
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.planning.cluster_plan import Cluster, plan_cluster
from hpcm_scale.planning.launches import LAUNCH_SECONDS, LaunchCounter, count_launches
from hpcm_scale.planning.memory import kernels_of

SMALL = model_config("base", width=0.025)


def test_views_and_allocations_are_no_launches():
    a, b = torch.rand(4, 6, requires_grad=True), torch.rand(5, 6)
    with LaunchCounter() as counter:
        product = a.view(2, 2, 6).flatten(0, 1) @ b.t()  # mm
        out = torch.empty(4, 5)
        loss = (product * out.fill_(2)).sum()  # fill_, mul, sum
    assert counter.launches == 4
    with LaunchCounter() as counter:
        loss.backward()  # ones_like, mul, and mm for a; expanding the sum's gradient is a view
    assert counter.launches == 3


def test_the_count_is_what_a_real_step_runs():
    """Against torch's profiler on a real forward and backward pass on this CPU.

    Kernels differ (oneDNN's linear is one here, addmm or mm and add elsewhere), so by a fifth.
    """
    torch.manual_seed(0)
    with kernels_of("accelerator"):
        network = build(SMALL)
        x = torch.rand(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
        noise = tuple(torch.zeros(shape) for shape in noise_shapes(SMALL, 1, 256, 256))
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            output = network(x, noise)
            (output.bits.sum() + (output.x_hat - x).square().mean()).backward()
    # Operations that call no other are what an accelerator would launch, but for views.
    views = re.compile(
        r"aten::(as_strided|detach_?|empty|new_empty|resize|set_|view|_unsafe_view|t$|lift_fresh|"
        r"alias|_reshape_alias|permute|select|slice|split|unbind|expand|transpose|squeeze|unsq)"
    )
    events = [e for e in recorded.events() if re.match(r"(aten|mkldnn)::", e.name)]
    leaves = [e for e in events if not any(c.name.startswith("aten") for c in e.cpu_children)]
    ran = sum(1 for e in leaves if not views.match(e.name))
    assert count_launches(SMALL, 256, False) == pytest.approx(ran, rel=0.2)


def test_a_step_of_base_stays_below_what_it_was_brought_to():
    """3827 before blocks, moves between grids and rates were joined (issue 23)."""
    assert count_launches(model_config("base"), 256, False) < 1500


def test_graphs_leave_the_moves_between_stages():
    stages = 12 + 10 + 9  # of the transforms, coding steps, fusions after nine of them
    left = count_launches(model_config("base"), 256, False, graphs=True)
    assert 2 * stages < left < count_launches(model_config("base"), 256, False) / 2.5
    # What is outside does not depend on what the stages hold.
    deeper = model_config("base", depth=2)
    assert count_launches(deeper, 256, False) > 1.5 * count_launches(SMALL, 256, False)
    accumulated = count_launches(deeper, 256, False, graphs=True)
    # But for adding up the gradients of what shared nets hold.
    assert left < accumulated < 2 * left


def test_launches_grow_with_recomputing_not_with_the_picture():
    kept = count_launches(SMALL, 256, False)
    # attention windows that fill a crop need no cutting: 2 % fewer
    assert count_launches(SMALL, 512, False) == pytest.approx(kept, rel=0.03)
    some, every = (count_launches(SMALL, 256, k) for k in (2, True))
    assert kept < some < every < 1.5 * kept


def test_a_small_batch_is_bound_by_launches_and_says_when_not():
    plan = plan_cluster(SMALL, Cluster(), batch=8)
    best = plan.best
    launches = count_launches(SMALL, 256, best.checkpointing)
    assert best.seconds >= launches * LAUNCH_SECONDS > best.compute
    assert best.bound == "launches"
    console = Console(record=True, width=80)
    console.print(plan)
    text = " ".join(console.export_text().split())
    assert f"bound by launches: {launches} a step take" in text
    left = count_launches(SMALL, 256, False, graphs=True)
    assert (f"compile: blocks leaves {left} launches" in text) == (not best.checkpointing)
    crops = int(re.search(r"from micro_batch (\d+) on", text)[1])

    def arithmetic_over_launches(crops: int) -> float:
        return crops * best.compute / (launches * LAUNCH_SECONDS)

    assert arithmetic_over_launches(crops - 1) < 1 <= arithmetic_over_launches(crops)


def test_accumulated_micro_batches_launch_as_often():
    one = plan_cluster(SMALL, Cluster(accelerators=1, memory=1.7 * 2**30), batch=8)
    tight = [option for option in one.options if option.micro_batch < 8]
    assert tight
    for option in tight:
        passes = 8 // option.micro_batch
        each = count_launches(SMALL, 256, option.checkpointing) * LAUNCH_SECONDS
        assert option.launch == pytest.approx(passes * each)
