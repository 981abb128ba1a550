"""Ends a job whose ranks can no longer work together, and says which of them is missing.

A rank that dies, or a host that is cut off, leaves the others waiting inside a collective
operation. Here a thread of every rank gives signs of life through the job's store; rank 0's
judges them by its own clock.
"""

import json
import math
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple, Self

from torch.distributed import DistError  # pyright: ignore[reportPrivateImportUsage]

from hpcm_scale.errors import JOB_LOST, HpcmError, one_line
from hpcm_scale.training.agreement import PeerFailed
from hpcm_scale.training.deepspeed_internals import collective_calls
from hpcm_scale.training.rendezvous import collective_timeout, open_store

INTERVAL = 2.0
"""Seconds between signs of life."""
HEARTBEAT_TIMEOUT = 30.0
"""Seconds without a sign of life after which a rank counts as dead."""
VERDICT = "verdict"
"""Key of the store under which a rank that gives the job up says why."""


class Watchdog:
    """Signs of life of one rank, and the verdict on the job if one cannot go on.

    As a context: an exception that leaves it ends the other ranks within seconds, with its text.
    Open it before anything else that a rank can fail at.

    Args:
        rank, world: of this process.
        stall_timeout: seconds a rank may stay at one point of its work while others wait for it.

    Raises:
        ConfigError: if the ranks cannot meet.
    """

    def __init__(self, rank: int, world: int, stall_timeout: float) -> None:
        self.rank, self.world, self.stall_timeout = rank, world, stall_timeout
        self._where = "starting"
        self._moves = 0
        self._ended = threading.Event()
        self._decided = threading.Event()
        """Set once a verdict is there."""
        leave_faults_to_watchdog(stall_timeout)
        # Its own connection: a thread must not wait for one that the main thread holds.
        self._store = open_store(stall_timeout)
        self._store.set_timeout(timedelta(seconds=HEARTBEAT_TIMEOUT))
        self._answered = time.monotonic()
        """When the store last did."""
        self._threads = [
            threading.Thread(target=self._watch, name="watchdog", daemon=True),
            threading.Thread(target=self._listen, name="watchdog-store", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is None or getattr(error, "on_every_rank", False):
            self.close()
        elif not self._peer_failed(error):
            self.fail(exit_code(error), one_line(error) or type(error).__name__)

    def at(self, where: str) -> None:
        """The main thread has come to `where`, such as "step 41"."""
        self._where = where
        self._moves += 1

    def tick(self) -> None:
        """The main thread gets on where it is."""
        self._moves += 1

    def fail(self, code: int, reason: str) -> None:
        """Tell the others that this rank cannot go on; returns once they know, or soon after."""
        verdict = Verdict(code, f"rank {self.rank} failed: {reason}", self.rank)
        with suppress(DistError, RuntimeError):
            first = self._store.compare_set(VERDICT, "", json.dumps(verdict))
            if Verdict(*json.loads(first)).rank != self.rank:  # all fail alike: one says so
                self._ended.wait(3 * INTERVAL)
            self._store.set(f"read/{self.rank}", "")
            self._wait_for("read", 3 * INTERVAL)  # the store goes with rank 0
        self._end()

    def close(self) -> None:
        """The work is done; rank 0 keeps the store until the others have said so too."""
        self._end()
        if self.rank == 0:
            with suppress(DistError, RuntimeError):
                self._wait_for("ended", HEARTBEAT_TIMEOUT)

    def _end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(HEARTBEAT_TIMEOUT)

    def _wait_for(self, key: str, seconds: float) -> None:
        """Until every other rank has set its `key`, or that time is over."""
        deadline = time.monotonic() + seconds
        keys = [f"{key}/{rank}" for rank in range(self.world) if rank != self.rank]
        while not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _peer_failed(self, error: BaseException) -> bool:
        """Whether an error is only what another rank's failure did to this one's connections.

        Waits for the verdict, which then ends this process with the other's text and code.
        """
        if not from_peers(error):
            return False
        # Without one: `_watch` gives up on its own when the store is gone, or the rank silent.
        self._ended.wait(3 * INTERVAL)
        if self._decided.is_set():  # it waits for the others to read it
            self._ended.wait(4 * INTERVAL)
        return True

    def _watch(self) -> None:
        beats = 0
        seen = Heartbeats(self.stall_timeout)
        try:
            while not self._ended.is_set():  # the first sign at once
                beats += 1
                # beats tell that the process lives, calls that its main thread gets on
                calls = collective_calls() + self._moves
                beat = Beat(beats, calls, socket.gethostname(), self._where)
                self._store.set(f"heartbeat/{self.rank}", json.dumps(beat))
                if self.rank == 0 and (lost := seen.judge(self._beats())):
                    verdict = Verdict(JOB_LOST, lost, None)
                    self._store.compare_set(VERDICT, "", json.dumps(verdict))
                if self._store.check([VERDICT]):
                    verdict = Verdict(*json.loads(self._store.get(VERDICT)))
                    self._store.set(f"read/{self.rank}", "")
                    if verdict.rank != self.rank:  # else the main thread says it
                        self._give_up(verdict)
                self._answered = time.monotonic()
                self._ended.wait(INTERVAL)
            self._store.set(f"ended/{self.rank}", "")
        except (DistError, RuntimeError) as error:
            if not self._ended.is_set():
                reason = str(error).splitlines()[0][:120]
                text = f"rank 0, which keeps the job's store, cannot be reached ({reason})"
                self._give_up(Verdict(JOB_LOST, text, None))

    def _listen(self) -> None:
        """Notice that the store is silent: over a cut cable its calls neither return nor fail."""
        while not self._ended.wait(INTERVAL):
            quiet = time.monotonic() - self._answered
            if quiet > HEARTBEAT_TIMEOUT:
                text = f"rank 0, which keeps the job's store, is silent for {quiet:.0f} s"
                self._give_up(Verdict(JOB_LOST, text, None))

    def _beats(self) -> "dict[int, Beat | None]":
        """The last heartbeat of every rank that is still at work; None of one yet to come."""
        beats: dict[int, Beat | None] = {}
        for rank in range(self.world):
            if self._store.check([f"ended/{rank}"]):
                continue
            key = f"heartbeat/{rank}"
            there = self._store.check([key])
            beats[rank] = Beat(*json.loads(self._store.get(key))) if there else None
        return beats

    def _give_up(self, verdict: "Verdict") -> None:
        self._decided.set()
        text = (
            f"the job is lost: {verdict.text}; start it again with --resume auto"
            if verdict.code == JOB_LOST
            else f"ends: {verdict.text}"
        )
        if verdict.rank is None or self.rank == 0:  # who failed has said why
            with suppress(OSError):  # the message's own connection may be the cut one
                sys.stderr.write(f"train: rank {self.rank}: {text}\n")
                sys.stderr.flush()
        if self.rank == 0:  # the store goes with this process
            with suppress(DistError, RuntimeError):
                self._wait_for("read", 3 * INTERVAL)
                time.sleep(0.3)  # they are about to drop their connections
        os._exit(verdict.code)  # the main thread may be inside a collective that never ends


def leave_faults_to_watchdog(stall_timeout: float) -> None:
    """Keep torch's own threads from ending a rank whose peers are gone or late.

    Where NCCL finds a peer gone, they abort the process at once, with a C++ trace and no word to
    the others, and after eight minutes in which NCCL itself hangs. The watchdog says which rank it
    was, in one line, with an exit code that is worth another start. Call it before the ranks
    connect; what the environment sets already stays.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # neither aborts nor tears down
    latest = math.ceil(collective_timeout(stall_timeout))
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(latest))


class Verdict(NamedTuple):
    """Why a job ends."""

    code: int
    """Every rank's exit code."""
    text: str
    rank: int | None
    """Who says so of itself; None if others noticed."""


class Beat(NamedTuple):
    """A sign of life."""

    beats: int
    """Signs so far: they tell that the process lives."""
    calls: int
    """Collective operations and steps of work so far: they tell that its main thread gets on."""
    host: str
    where: str
    """What the main thread is at."""


class Heartbeats:
    """When each rank's signs of life last changed, by the clock of the rank that judges."""

    def __init__(self, stall_timeout: float) -> None:
        self.stall_timeout = stall_timeout
        self._lived: dict[int, tuple[int, float]] = {}
        self._moved: dict[int, tuple[int, float]] = {}

    def judge(self, beats: "dict[int, Beat | None]") -> str | None:
        """What is wrong with some rank; None if nothing is.

        Args:
            beats: the last of every rank that is at work. One that has yet to start has none and
                is waited for as long as one that stays where it is.
        """
        now = time.monotonic()
        for seen in (self._lived, self._moved):
            for rank in seen.keys() - beats.keys():
                del seen[rank]
        for rank, beat in beats.items():
            moved = beat.calls if beat else -1
            if self._moved.get(rank, (None, 0.0))[0] != moved:
                self._moved[rank] = (moved, now)
            if beat is None:
                continue
            if self._lived.get(rank, (None, 0.0))[0] != beat.beats:
                self._lived[rank] = (beat.beats, now)
            quiet = now - self._lived[rank][1]
            if quiet > HEARTBEAT_TIMEOUT:
                return (
                    f"rank {rank} on {beat.host} has given no sign of life for {quiet:.0f} s; "
                    f"it was at {beat.where}"
                )
        # Ranks wait for each other inside collectives: who has called fewest holds the rest up.
        since = [when for _, when in self._moved.values()]
        if since and now - max(since) > self.stall_timeout:
            last = min(self._moved, key=lambda rank: self._moved[rank][0])
            beat = beats[last]
            if beat is None:
                return f"rank {last} has not started within {self.stall_timeout:.0f} s"
            return (
                f"rank {last} on {beat.host} has been at {beat.where} for over "
                f"{self.stall_timeout:.0f} s"
            )
        return None


class NoWatchdog:
    """Stand-in for a job of one rank."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """As of `Watchdog`."""

    def at(self, where: str) -> None:
        """As of `Watchdog`."""

    def tick(self) -> None:
        """As of `Watchdog`."""


def exit_code(error: BaseException) -> int:
    """The exit code of a process that ends by `error`: 2 for what its user can put right."""
    return 2 if isinstance(error, HpcmError | OSError) else 1


def from_peers(error: BaseException) -> bool:
    """Whether a collective operation failed because of another rank."""
    if isinstance(error, PeerFailed):
        return True
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "Broken pipe")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
