"""Predicted cost of a ladder, from counts and a few measured steps of each network."""

import heapq
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hpcm_scale.config import CheckpointConfig
from hpcm_scale.errors import RunError
from hpcm_scale.files import atomic_write
from hpcm_scale.ladder.process import environment, last_words, start
from hpcm_scale.ladder.runs import LadderRun, flops_of, parameters_of
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.runs.watch import duration

STEPS, MEASURED = 6, 4
"""Steps of a probe, and how many of its last ones are measured: the first allocate."""


@dataclass(frozen=True)
class Cost:
    """Measured cost of a network's steps."""

    step: float
    """Seconds of an optimizer step."""
    validation: float
    """Seconds of a validation."""
    start: float
    """Seconds of a run beside those: loading, the first steps, the last checkpoint."""
    memory: float
    """Bytes of rank 0 at most."""

    def seconds(self, run: LadderRun) -> float:
        """Seconds of a whole run."""
        every = run.config.validate_every
        validations = run.steps // every - run.branch_step // every + bool(run.steps % every)
        return self.start + run.new_steps * self.step + validations * self.validation


def probe_key(run: LadderRun, ranks: int, threads: str) -> str:
    """Key of everything the cost of a step depends on; runs of one key are measured once."""
    config = run.config
    fields = {
        name: getattr(config, name)
        for name in ("batch", "micro_batch", "deepspeed", "precision", "checkpoint_activations")
    }
    fields |= {"val": [config.data.val, *config.data.val_also], "workers": config.data.workers}
    fields |= {"crop": config.data.crop, "loss": config.loss.distortion}
    fields |= {"ema": config.optimizer.ema is not None, "ranks": ranks, "threads": threads}
    model = run.model.model_dump(mode="json", exclude={"name", "published"})
    return json.dumps(fields | {"model": model}, sort_keys=True)


def costs(
    runs: Sequence[LadderRun],
    ranks: int,
    jobs: int,
    measure: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Cost]:
    """The cost of each run, by name, from `out`/ladder/probe.json or measured now.

    Args:
        jobs: runs that will go on at once: each is probed with its share of the cores.
        measure: False leaves out what has not been measured.
        say: is told what is being measured.

    Raises:
        RunError: if a probe fails, with the trainer's reason.
    """
    threads = environment(ranks, jobs, 0).get("OMP_NUM_THREADS", "")
    path = runs[0].notes / "probe.json"
    known = _read(path)
    found = {}
    for run in runs:
        key = probe_key(run, ranks, threads)
        if key not in known and measure:
            say(f"{run.model.name}: {STEPS} steps ...")
            known[key] = probe(run, ranks, jobs)
            atomic_write(path, json.dumps({k: asdict(c) for k, c in known.items()}, indent=1))
        if key in known:
            found[run.name] = known[key]
    return found


def _read(path: Path) -> dict[str, Cost]:
    try:
        return {key: Cost(**cost) for key, cost in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete it to measure again") from None


def probe(run: LadderRun, ranks: int, jobs: int) -> Cost:
    """Train a few steps and validate once, in processes of their own as the run itself would.

    Raises:
        RunError: if that fails, with the trainer's reason.
    """
    with tempfile.TemporaryDirectory(prefix="probe-") as name:
        folder = Path(name)
        changes = {"name": "probe", "out": folder, "steps": STEPS, "crops": None, "flops": None}
        changes |= {"log_every": 1, "validate_every": STEPS, "profile": None, "max_hours": None}
        changes |= {"checkpoint": CheckpointConfig(every=STEPS)}
        config = run.config.model_copy(update=changes)
        begun = time.monotonic()
        process = start(config, folder, resume="never", ranks=ranks, jobs=jobs)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        wall = time.monotonic() - begun
        if code:
            reason = last_words(folder / "probe.log").removeprefix("train: ")
            raise RunError(f"{run.name}: cannot be measured: {reason}")
        metrics = MetricsLog(config.folder)
        metrics.update()
    train = [row for row in metrics.rows if row["kind"] == "train"]
    val = [row for row in metrics.rows if row["kind"].startswith("val")]
    step = median(config.batch / row["crops_per_second"] for row in train[-MEASURED:])
    validation = val[-1]["seconds"] - train[-1]["seconds"]
    rest = max(0.0, wall - STEPS * step - validation)
    return Cost(step, validation, rest, max(row["memory"] for row in train))


def in_order(runs: Sequence[LadderRun], longest_first: bool = False) -> list[LadderRun]:
    """Runs by counted arithmetic, the smallest first unless told; equals as they were."""
    return sorted(runs, key=total_flops, reverse=longest_first)


def total_flops(run: LadderRun) -> float:
    """Counted training FLOPs of what is the run's own."""
    return run.new_steps * run.config.batch * flops_of(run.model, run.config.data.crop)


def makespan(seconds: Sequence[float], jobs: int) -> float:
    """Wall time of runs begun in that order, `jobs` at once."""
    ends = [0.0] * jobs
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def table(runs: Sequence[LadderRun], known: Mapping[str, Cost], ranks: int, jobs: int) -> Table:
    """Every run: counts, length, learning rate, and the predicted time and memory of each."""
    shown = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("run", overflow="fold", min_width=8)
    columns = ("parameters", "transform", "hyper", "context", "GFLOPs/crop", "crops", "steps")
    for column in (*columns, "lr", "PFLOPs", "time", "memory/rank"):
        shown.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        parameters = parameters_of(run.model)
        cost = known.get(run.name)
        own = f"{run.branch_step}+{run.new_steps}" if run.trunk else str(run.steps)
        shown.add_row(
            run.name,
            *(f"{parameters[k]:,}".replace(",", " ") for k in ("total", *columns[1:4])),
            f"{flops_of(run.model, run.config.data.crop) / 1e9:.2f}",
            str(run.steps * run.config.batch),
            own,
            f"{run.config.optimizer.lr:g}",
            f"{total_flops(run) / 1e15:.3g}",
            "–" if cost is None else duration(cost.seconds(run)),
            "–" if cost is None else f"{cost.memory / 2**30:.2f} GiB",
        )
    shown.caption_justify = "left"
    shown.caption = _sum(runs, known, ranks, jobs)
    return shown


def _sum(runs: Sequence[LadderRun], known: Mapping[str, Cost], ranks: int, jobs: int) -> str:
    flops = sum(map(total_flops, runs))
    text = f"{len(runs)} runs, {flops / 1e15:.3g} PFLOPs"
    seconds = [known[run.name].seconds(run) for run in runs if run.name in known]
    if len(seconds) < len(runs):
        return f"{text}; time and memory: {len(runs) - len(seconds)} not measured"
    text += f", {sum(seconds) / 3600:.2f} h one after another"
    if jobs > 1:
        text += f", {makespan(seconds, jobs) / 3600:.2f} h as {jobs} at once"
    return f"{text}, on this machine with {ranks} rank{'s' * (ranks > 1)} a run"
