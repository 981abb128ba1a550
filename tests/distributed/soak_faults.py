"""The faults of a soak: each does real harm to a running job, and says how the job has to end."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil

from hpcm_scale.data.shards import read_manifest
from hpcm_scale.errors import INTERRUPTED, JOB_LOST
from hpcm_scale.training.checkpoint import RECORD, checkpoints, damage
from tests.distributed.soak_job import BATCH, RANKS, Job, order_of

DISK = 24
"""MiB of the file system that the run's folder is on: three checkpoints and room to spare."""
BLOCK = 4096
"""Bytes of a shard that a fault inverts."""
PAUSE = 8.0
"""Seconds that a slow rank stands still; the watchdog calls it dead after 30."""
STEP_LIMIT = 300.0
"""Seconds to wait for what a fault needs before it, such as a step."""


@dataclass
class Injected:
    """A fault and what became of the job."""

    kind: str
    step: int = 0
    """Steps done when it struck."""
    what: str = ""
    session: int = 0
    at: float = 0.0
    exit_code: int | None = None
    """Of the launcher; None where the job went on."""
    message: str = ""
    """The line in which the job says why it ended."""
    as_expected: bool = False
    left: int = 0
    """Processes that outlived the launcher."""
    damaged: str = ""
    """The checkpoint that the next session has to pass over."""
    seconds_lost: float = 0.0
    """Until the run was a step further."""
    steps_repeated: int = 0


class Gone(Exception):
    """No rank runs any more."""


@dataclass
class Harm:
    """What the faults can lay hands on."""

    job: Job
    disk: Path
    dice: random.Random
    injected: list[Injected] = field(default_factory=list)

    def inject(self, kind: str, trigger: int) -> bool:
        """Do one fault once `trigger` steps are done; returns whether the session has ended.

        It is not among those `injected` if the session ended by itself before.
        """
        fault = Injected(kind, session=self.job.session)
        if kind != "a rank killed while starting":
            self.job.wait(lambda: self.job.step() >= trigger and self.job.stepping(), 3600)
            time.sleep(self.dice.uniform(0, 0.5))
        if self.job.ended:
            return True
        try:
            FAULTS[kind](self, fault)
        except Gone:
            return True
        self.injected.append(fault)
        return fault.exit_code is not None

    def strikes(self, fault: Injected, what: str) -> None:
        """The moment of the fault."""
        fault.what, fault.at, fault.step = what, time.time(), self.job.step()

    def ends(self, fault: Injected, codes: tuple[int, ...], saying: tuple[str, ...]) -> None:
        """Wait for the end that the fault has to bring: one of the codes (none: any but 0), and
        one of the phrases in what the job has printed (none: it need not say anything)."""
        code, fault.left = self.job.end()
        fault.exit_code = -1 if code is None else code
        said = [*map(str.rstrip, self.job.log.read_text(errors="replace").splitlines())]
        told = [line for line in said if any(phrase in line for phrase in saying)]
        own = [line for line in said if line.startswith("train: ")]
        fault.message = (told or own or [""])[0]
        fault.as_expected = (
            code is not None
            and not fault.left
            and (code in codes if codes else code != 0)
            and (bool(told) or not saying)
        )

    def one(self) -> tuple[int, psutil.Process]:
        """A rank by lot."""
        ranks = self.job.ranks()
        if not ranks:
            raise Gone
        number = self.dice.randrange(len(ranks))
        return number, ranks[number]


def signalled(
    sent: signal.Signals, codes: tuple[int, ...], saying: tuple[str, ...]
) -> Callable[[Harm, Injected], None]:
    """The fault of a signal to one rank."""

    def strike(harm: Harm, fault: Injected) -> None:
        number, rank = harm.one()
        harm.strikes(fault, f"{sent.name} to rank {number}")
        rank.send_signal(sent)
        harm.ends(fault, codes, saying)

    return strike


def killed_while_starting(harm: Harm, fault: Injected) -> None:
    """SIGKILL of a rank that imports, joins the others, or loads its checkpoint."""
    harm.job.wait(lambda: len(harm.job.ranks()) == 2, STEP_LIMIT)
    began = time.monotonic()
    # A random moment before the first step, however long this machine takes to come there.
    delay = harm.dice.uniform(0, 12)
    harm.job.wait(harm.job.stepping, delay)
    number, rank = harm.one()
    harm.strikes(fault, f"SIGKILL to rank {number}, {time.monotonic() - began:.1f} s old")
    if harm.job.stepping():
        fault.what += " (it was at its first step)"
    rank.kill()
    harm.ends(fault, (), ())


def killed_while_saving(harm: Harm, fault: Injected) -> None:
    """SIGKILL of a rank while a checkpoint's folder is there and its record is not."""

    def unfinished() -> list[str]:
        newest = checkpoints(harm.job.run)[-1:]  # an older one may be on its way out
        return [c.folder.name for c in newest if not (c.folder / RECORD).exists()]

    for _ in range(20):  # the moment is short, and may be over by the time the signal arrives
        hit = harm.job.wait(lambda: bool(unfinished()), STEP_LIMIT)
        number, rank = harm.one()
        rank.suspend()
        if hit and unfinished():
            break
        rank.resume()
    harm.strikes(fault, f"SIGKILL to rank {number}, {' '.join(unfinished()) or 'nothing'} unsaved")
    rank.kill()
    harm.ends(fault, (), ("the job is lost",))
    fault.what += "; never finished" if unfinished() else "; finished all the same"
    fault.as_expected &= "nothing unsaved" not in fault.what


def all_killed(harm: Harm, fault: Injected) -> None:
    """SIGKILL of the launcher, the ranks and their workers."""
    tree = harm.job.tree()
    harm.strikes(fault, "SIGKILL to launcher, ranks and workers")
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    harm.ends(fault, (-signal.SIGKILL,), ())


def slow_rank(harm: Harm, fault: Injected) -> None:
    """A rank that stands still for a while; the others wait, and nothing ends."""
    number, rank = harm.one()
    harm.strikes(fault, f"SIGSTOP to rank {number}, SIGCONT after {PAUSE:.0f} s")
    rank.suspend()
    time.sleep(PAUSE)
    rank.resume()
    after = harm.job.step()
    # The step it was in, and another.
    fault.as_expected = harm.job.wait(lambda: harm.job.step() > after + 1, STEP_LIMIT)
    fault.message = "went on"
    if not fault.as_expected:
        harm.ends(fault, (), ("the job is lost",))


def stopped_rank(harm: Harm, fault: Injected) -> None:
    """A rank that stands still for good."""
    number, rank = harm.one()
    harm.strikes(fault, f"SIGSTOP to rank {number} for good")
    rank.suspend()
    saying = ("no sign of life", "is silent for", "cannot be reached")
    harm.ends(fault, (), saying)


def full_disk(harm: Harm, fault: Injected) -> None:
    """The file system of the run's folder is full until the job has ended."""
    filler = harm.disk / "filler"
    harm.strikes(fault, "the run's file system filled")
    try:
        with filler.open("wb", buffering=0) as file:

            def fill() -> bool:
                with suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
                harm.job.tree()
                return False

            harm.job.wait(fill, STEP_LIMIT)
        harm.ends(fault, (2, JOB_LOST), ("cannot be written", "No space left"))
    finally:
        filler.unlink()


def corrupt_shard(harm: Harm, fault: Injected) -> None:
    """A block of a training shard is inverted, where a sample begins that is read soon, until the
    job has ended."""
    dataset = harm.job.dataset
    split = read_manifest(str(dataset)).split("train", str(dataset))
    # Beyond what the loader has read ahead.
    position = BATCH * (harm.job.step() + 6) + harm.dice.randrange(2 * BATCH)
    sample = int(order_of(dataset).at(np.array([position]))[1][0])
    number, row = split.locate(sample)
    shard = split.shards[number]
    path, offset = dataset / shard.path, int(shard.offsets[row])
    with path.open("rb") as file:
        file.seek(offset)
        good = file.read(BLOCK)
    harm.strikes(
        fault, f"{BLOCK} bytes of {path.name} inverted, for rank {position % RANKS} to read"
    )
    with overwritten(path, offset, bytes(byte ^ 0xFF for byte in good), good):
        harm.ends(fault, (2, JOB_LOST), ("could not be decoded",))


def damaged_checkpoint(harm: Harm, fault: Injected) -> None:
    """All is killed, and a bit of the newest whole checkpoint is flipped; the next session has to
    notice, which the soak checks afterwards."""

    def two() -> bool:
        return sum(c.record is not None for c in checkpoints(harm.job.run)) >= 2

    harm.job.wait(two, STEP_LIMIT)
    all_killed(harm, fault)
    whole = [c for c in checkpoints(harm.job.run) if c.record is not None]
    newest = whole[-1]
    path = newest.folder / harm.dice.choice(sorted(newest.record["files"]))
    data = bytearray(path.read_bytes())
    bit = harm.dice.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    fault.damaged = newest.folder.name
    fault.what += f"; bit {bit} of {newest.folder.name}/{path.name} flipped"
    fault.as_expected &= len(whole) >= 2 and "checksum" in str(damage(newest))


@contextmanager
def overwritten(path: Path, offset: int, bad: bytes, good: bytes) -> Iterator[None]:
    """A file with other bytes in place: whoever has it open reads them."""

    def put(data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    put(bad)
    try:
        yield
    finally:
        put(good)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A small file system of its own at `folder`, in memory."""
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "soak", os.fspath(folder)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", os.fspath(folder)], check=True)


FAULTS: dict[str, Callable[[Harm, Injected], None]] = {
    "a rank killed": signalled(signal.SIGKILL, (), ("the job is lost",)),
    "a rank killed while starting": killed_while_starting,
    "a rank killed while saving": killed_while_saving,
    "launcher and all killed": all_killed,
    "told to stop by SIGTERM": signalled(signal.SIGTERM, (INTERRUPTED,), ("it is saved",)),
    "told to stop by SIGUSR1": signalled(signal.SIGUSR1, (INTERRUPTED,), ("it is saved",)),
    "a slow rank": slow_rank,
    "a rank stopped for good": stopped_rank,
    "the disk full": full_disk,
    "a shard corrupted": corrupt_shard,
    "the newest checkpoint damaged": damaged_checkpoint,
}

SOAK: dict[str, int] = dict.fromkeys(FAULTS, 1) | {
    "a rank killed while saving": 2,
    "a slow rank": 2,
}
"""How often each strikes in a soak."""


def schedule(counts: dict[str, int], steps: int, dice: random.Random) -> list[tuple[str, int]]:
    """Faults in a random order, with the step after which each may strike."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    dice.shuffle(kinds)
    triggers = sorted(dice.uniform(0.03, 0.85) for _ in kinds)
    # A damaged shard is noticed when it is read some steps later.
    late = "a shard corrupted"
    if late in kinds:
        kinds.remove(late)
        kinds.insert(dice.randrange(len(kinds) // 2 + 1), late)
    return [(kind, int(steps * part)) for kind, part in zip(kinds, triggers, strict=True)]


def as_row(fault: Injected) -> dict:
    """For the report."""
    row = asdict(fault)
    row.pop("at")
    return row | {"seconds_lost": round(fault.seconds_lost, 1)}
