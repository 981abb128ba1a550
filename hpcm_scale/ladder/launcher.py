"""Launching the runs of a ladder, on this machine or as a SLURM array."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hpcm_scale.config import LadderConfig
from hpcm_scale.errors import INTERRUPTED
from hpcm_scale.ladder.process import last_words, start, stop
from hpcm_scale.ladder.runs import LadderRun, claimed, status, write_outcome
from hpcm_scale.runs.run_record import RunRecord
from hpcm_scale.runs.watch import duration
from hpcm_scale.training import checkpoint

LOOK_SECONDS = 0.2
"""Between looks at the processes."""
ONE_WISH_SECONDS = 1.0
"""Signals that follow each other faster are one."""


@dataclass
class Job:
    """A run whose process is alive."""

    run: LadderRun
    process: subprocess.Popen
    claim: ExitStack
    """Holds the run's lock until it is closed."""
    slot: int
    begun: float = field(default_factory=time.monotonic)


class Launcher:
    """Trains the runs of a ladder in processes of their own, `jobs` at once.

    Args:
        runs: in the order they are begun.
        say: is told a line when a run begins or ends.
    """

    def __init__(
        self, runs: Sequence[LadderRun], ranks: int, jobs: int, say: Callable[[str], None]
    ) -> None:
        self.ranks, self.jobs, self.say = ranks, jobs, say
        self.waiting = list(runs)
        self.of = len(self.waiting)
        self.active: list[Job] = []
        self.failed: dict[str, str] = {}
        """Runs that failed, with the reason."""
        self.stopped: list[str] = []
        """Runs that were stopped and are saved."""
        self.signals, self.told = 0, -math.inf

    def run(self) -> int:
        """Train all that is not done.

        Returns:
            0; 1 if a run failed; 75 if runs were stopped, by a signal to this process (the
            second kills them) or by their own `hours`.
        """
        before = {n: signal.signal(n, self._signal) for n in (signal.SIGTERM, signal.SIGINT)}
        heeded = 0
        try:
            while self.active or (self.waiting and not self.signals):
                while not self.signals and len(self.active) < self.jobs and (run := self._next()):
                    self._begin(run)
                if self.signals > heeded:
                    heeded = self.signals
                    self._stop_all()
                for job in [job for job in self.active if job.process.poll() is not None]:
                    self._end(job)
                time.sleep(LOOK_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for job in self.active:  # only after an error of our own
                job.process.kill()
        if self.failed:
            return 1
        return INTERRUPTED if self.stopped or self.signals else 0

    def _signal(self, *_: object) -> None:
        now = time.monotonic()
        # `timeout` and queues tell a process and then its group: that is one wish, not two.
        if now - self.told > ONE_WISH_SECONDS:
            self.signals += 1
        self.told = now

    def _stop_all(self) -> None:
        if self.active:
            names = ", ".join(job.run.name for job in self.active)
            self.say(f"stopping {names}: saving" if self.signals == 1 else f"killing {names}")
        for job in self.active:
            if self.signals == 1:
                stop(job.process)
            else:
                os.killpg(job.process.pid, signal.SIGKILL)

    def _next(self) -> LadderRun | None:
        """The first run that need not wait for its trunk, taken off the list."""
        pending = {run.name for run in self.waiting} | {job.run.name for job in self.active}
        for i, run in enumerate(self.waiting):
            if run.trunk not in pending or begun(run) or trunk_checkpoint(run):
                return self.waiting.pop(i)
        return None

    def _begin(self, run: LadderRun) -> None:
        now = status(run)
        if now.state in ("done", "running"):
            self.say(f"{run.name}  {now.state}" + " elsewhere" * (now.state == "running"))
            return
        if now.differs:
            self._fail(run, now.reason)
            return
        claim = ExitStack()
        handle = claim.enter_context(claimed(run))
        if handle is None:
            claim.close()
            self.say(f"{run.name}  running elsewhere")
            return
        write_outcome(run, None)
        # A run resumes by itself: from its checkpoint, or from scratch if it has none.
        found = None if begun(run) else trunk_checkpoint(run)
        slot = min(set(range(self.jobs)) - {job.slot for job in self.active})
        process = start(
            run.config,
            run.notes,
            resume=str(found or "auto"),
            ranks=self.ranks,
            jobs=self.jobs,
            slot=slot,
            inherit=(handle,),
        )
        self.active.append(Job(run, process, claim, slot))
        number = self.of - len(self.waiting)
        verb = "resumed" if begun(run) else "begun"
        self.say(f"{run.name}  {verb}, {number} of {self.of}  {run.notes / run.name}.log")

    def _end(self, job: Job) -> None:
        self.active.remove(job)
        job.claim.close()
        run, code = job.run, job.process.returncode
        now = status(run)
        took = duration(time.monotonic() - job.begun)
        # The records are asked, not the exit code: DeepSpeed's launcher gives 0 for a killed rank.
        if now.state == "done":
            self.say(f"{run.name}  done  val loss {now.val_loss:.4g}  {took}")
        elif self.signals or code == INTERRUPTED:
            self.stopped.append(run.name)
            self.say(f"{run.name}  stopped after {took}; the next launch resumes it")
        else:
            self._fail(run, f"exit code {code}: {last_words(run.notes / f'{run.name}.log')}")

    def _fail(self, run: LadderRun, reason: str) -> None:
        self.failed[run.name] = reason
        write_outcome(run, reason)
        self.say(f"{run.name}  failed  {reason}")


def begun(run: LadderRun) -> bool:
    """Whether the run has records."""
    return RunRecord.exists(run.config.folder)


def trunk_checkpoint(run: LadderRun) -> Path | None:
    """The whole checkpoint that the run branches off, if it is there."""
    if run.trunk is None:
        return None
    folder = checkpoint.folder_of(run.config.out / run.trunk, run.branch_step)
    return folder if (folder / checkpoint.RECORD).exists() else None


def slurm(
    ladder: LadderConfig,
    path: Path,
    changes: Sequence[str],
    runs: Sequence[LadderRun],
    ranks: int,
    jobs: int,
) -> str:
    """A SLURM array script: a task for each run that is not done, with those that branch off it.

    Args:
        path, changes: of the ladder, as on the command line.
        jobs: tasks at once.
    """
    names = {run.name for run in runs}
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(run.trunk if run.trunk in names else run.name, []).append(run.name)
    program = [sys.executable, "-m", "hpcm_scale.cli", "ladder", "run", str(path.absolute())]
    program += ["--ranks", str(ranks), *(f"--set={change}" for change in changes)]
    tasks = "\n".join(
        "  " + shlex.quote(" ".join(f"--only={name}" for name in group))
        for group in groups.values()
    )
    notes = (ladder.out / "ladder").absolute()
    return f"""#!/usr/bin/env bash
# {len(runs)} runs of the ladder {ladder.name}; add partition, account and --gres for your cluster.
#SBATCH --job-name={ladder.name}
#SBATCH --array=0-{len(groups) - 1}%{jobs}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output={notes}/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
cd {shlex.quote(str(Path.cwd()))}
tasks=(
{tasks}
)
{shlex.join(program)} ${{tasks[$SLURM_ARRAY_TASK_ID]}} &
child=$!
# Told five minutes before its time is over, or when preempted, the run saves and is queued again.
trap 'kill -TERM $child' TERM
wait $child
code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
[ $code -eq {INTERRUPTED} ] && scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
exit $code
"""
