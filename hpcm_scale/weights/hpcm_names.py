"""The key names of published HPCM checkpoints.

The published program names the same layers differently in its two generations (Base, Large and Phi
keep transforms as one list; 1B names every chunk), and lists a scale's adaptors in an order of its
own: the first step of S2 (and of S3) uses the last adaptor of its list, the second the first, ...
"""

from collections.abc import Iterator

from hpcm_scale.config import HpcmConfig, SharedNetConfig
from hpcm_scale.models.schedule import schedule_named

_CONV = ("weight", "bias")


def official_names(config: HpcmConfig) -> dict[str, str]:
    """Our parameter name -> the published one, for every parameter of an HPCM of `config`."""
    names = {"z_prior.mean": "means_hyper", "z_prior.scale": "scales_hyper"}
    for ours, theirs in _modules(config):
        join = "_" if ours.endswith((".pair.expand", ".pair.project")) else "."
        names |= {f"{ours}{join}{kind}": f"{theirs}.{kind}" for kind in _CONV}
    scales = schedule_named(config.schedule).scales
    for k in range(sum(len(scale.steps) for scale in scales) - 1):
        names[f"steps.{k}.scale"] = f"adaptive_params_list.{k}"
    return names


def _modules(config: HpcmConfig) -> Iterator[tuple[str, str]]:
    """(our name, published name) of every convolution."""
    chunked = config.outer_kernel == 2  # the 1B generation of the published program
    for transform, stages in _transforms(config):
        position = 0
        for s, kinds in enumerate(stages):
            block = 0
            for i, kind in enumerate(kinds):
                ours = f"{transform}.{s}.{i}"
                if chunked and transform in ("g_a", "g_s"):
                    level = s + 1 if transform == "g_a" else len(stages) - s
                    way = "down" if transform == "g_a" else "up"
                    theirs = f"{transform}.{transform}_" + (
                        f"{way}{level}" if kind == "resample" else f"chunk{level}.{block}"
                    )
                else:
                    theirs = (
                        f"{transform}.{position}" if chunked else f"{transform}.branch.{position}"
                    )
                position += 1
                block += kind == "block"
                yield from [(ours, theirs)] if kind == "resample" else _partial(ours, theirs)
    for ours, theirs, net in (
        ("shared_s12", "y_spatial_prior_s1_s2", config.shared_s12),
        ("shared_s3", "y_spatial_prior_s3", config.shared_s3),
    ):
        yield from _shared(ours, theirs, net)
    yield from _adaptors(config)
    for s, _ in enumerate(schedule_named(config.schedule).scales[1:]):
        yield f"merges.{s}", f"context_net.{s}"
    if config.fusion == "attention":
        for s in range(3):
            for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
                yield f"fusions.{s}.{ours}", f"attn_s{s + 1}.conv_{theirs}"


def _transforms(config: HpcmConfig) -> Iterator[tuple[str, list[list[str]]]]:
    """Each transform's stages as lists of "resample" and "block"."""
    resample, block = ["resample"], ["block"]
    outer, inner = config.hyper_depths
    yield "g_a", [resample + block * depth for depth in config.analysis_depths]
    yield "g_s", [block * depth + resample for depth in reversed(config.synthesis_depths)]
    yield "h_a", [block * outer + resample, block * inner + resample]
    yield "h_s", [resample + block * inner, resample + block * outer]


def _partial(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.partial", f"{theirs}.branch.0.pconv"
    yield f"{ours}.pair.expand", f"{theirs}.branch.1"
    yield f"{ours}.pair.project", f"{theirs}.branch.3"


def _depthwise(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.depthwise", f"{theirs}.branch.0"
    yield f"{ours}.pair.expand", f"{theirs}.branch.1"
    yield f"{ours}.pair.project", f"{theirs}.branch.3"


def _shared(ours: str, theirs: str, net: SharedNetConfig) -> Iterator[tuple[str, str]]:
    for i in range(net.before):
        yield from _depthwise(f"{ours}.before.{i}", f"{theirs}.branch_1.{i}")
    for i in range(net.after + 1 + net.out):
        if i == net.after:
            yield f"{ours}.after.{i}", f"{theirs}.branch_2.{i}"
        else:
            yield from _depthwise(f"{ours}.after.{i}", f"{theirs}.branch_2.{i}")


def _adaptors(config: HpcmConfig) -> Iterator[tuple[str, str]]:
    step = 0
    for s, scale in enumerate(schedule_named(config.schedule).scales):
        count = len(scale.steps) - (s == 0)
        for i in range(count):
            # S1 has no adaptor for its first step, so its list is in order.
            theirs = f"y_spatial_prior_adaptor_list_s{s + 1}.{(i - 1) % count if s else i}"
            depth = config.adaptor_depths[s]
            if depth == 0:
                yield f"steps.{step}.adaptor", theirs
            for j in range(depth):
                yield from _depthwise(f"steps.{step}.adaptor.{j}", f"{theirs}.{j}")
            step += 1
