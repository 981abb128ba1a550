"""Ends a job whose ranks can no longer work together, and says which of them is missing.

A rank that dies, or a host that is cut off, leaves the others waiting inside a collective
operation. Here a thread of every rank gives signs of life through the job's store; rank 0's
judges them by its own clock.
"""

import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Self

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from hpcm_scale.errors import JOB_LOST, HpcmError, one_line
from hpcm_scale.training.deepspeed_internals import collective_calls

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between signs of life."""
HEARTBEAT_TIMEOUT = 30.0
"""Seconds without a sign of life after which a rank counts as dead."""
VERDICT = "verdict"
"""Key of the store under which the first rank that gives the job up says why: "code text"."""


class Watchdog:
    """Signs of life of one rank, and the verdict on the job if one cannot go on.

    As a context: an exception that leaves it ends the other ranks within seconds, with its text.

    Args:
        rank, world: of this process.
        stall_timeout: seconds a rank may stay at one point of its work while others wait for it.
        heartbeat_timeout: seconds without a sign of life after which a rank counts as dead.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        stall_timeout: float,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        self.rank, self.world = rank, world
        self.stall_timeout, self.heartbeat_timeout = stall_timeout, heartbeat_timeout
        self._where = "starting"
        self._moves = 0
        self._ended = threading.Event()
        # Its own connection: a thread must not wait for one that the main thread holds.
        self._store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=heartbeat_timeout),
        )
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
        with suppress(DistError, RuntimeError):
            self._store.set(VERDICT, f"{code} rank {self.rank} failed: {reason}")
            deadline = time.monotonic() + 3 * INTERVAL
            # The store goes with rank 0: the others read it first.
            others = [f"read/{rank}" for rank in range(self.world) if rank != self.rank]
            while time.monotonic() < deadline and not self._store.check(others):
                time.sleep(0.1)
        self.close()

    def _peer_failed(self, error: BaseException) -> bool:
        """Whether an error is only what another rank's failure did to this one's connections.

        Waits for the verdict, which then ends this process with the other's text and code.
        """
        if not from_peers(error):
            return False
        # Without one: `_watch` gives up on its own when the store is gone, or the rank silent.
        self._ended.wait(3 * INTERVAL)
        return True

    def close(self) -> None:
        """The work is done; whoever is still at it is not waited for."""
        self._ended.set()
        for thread in self._threads:
            thread.join(self.heartbeat_timeout)

    def _watch(self) -> None:
        changed: dict[int, tuple[str, float]] = {}
        moved: dict[int, tuple[str, float]] = {}
        beats = 0
        try:
            while not self._ended.wait(INTERVAL):
                beats += 1
                # beats tell that the process lives, calls that its main thread gets on
                calls = collective_calls() + self._moves
                self._store.set(
                    f"heartbeat/{self.rank}",
                    f"{beats} {calls} {socket.gethostname()} {self._where}",
                )
                if self.rank == 0:
                    verdict = self._judge(changed, moved)
                    if verdict:
                        self._store.set(VERDICT, f"{JOB_LOST} {verdict}")
                if self._store.check([VERDICT]):
                    code, _, verdict = self._store.get(VERDICT).decode().partition(" ")
                    self._store.set(f"read/{self.rank}", "")
                    self._give_up(verdict, int(code))
                self._answered = time.monotonic()
            self._store.set(f"heartbeat/{self.rank}", "ended")
        except (DistError, RuntimeError) as error:
            if not self._ended.is_set():
                reason = str(error).splitlines()[0][:120]
                self._give_up(f"rank 0, which keeps the job's store, cannot be reached ({reason})")

    def _listen(self) -> None:
        """Notice that the store is silent: over a cut cable its calls neither return nor fail."""
        while not self._ended.wait(INTERVAL):
            quiet = time.monotonic() - self._answered
            if quiet > self.heartbeat_timeout:
                self._give_up(f"rank 0, which keeps the job's store, is silent for {quiet:.0f} s")

    def _judge(
        self, changed: dict[int, tuple[str, float]], moved: dict[int, tuple[str, float]]
    ) -> str | None:
        """Verdict on the ranks, seen from rank 0; None if nothing is wrong."""
        now = time.monotonic()
        for rank in range(self.world):
            key = f"heartbeat/{rank}"
            beat = self._store.get(key).decode() if self._store.check([key]) else "0 0 ? starting"
            if beat == "ended":
                changed.pop(rank, None)
                moved.pop(rank, None)
                continue
            beats, calls, host, where = beat.split(" ", 3)
            for seen, value in ((changed, beats), (moved, calls)):
                if rank not in seen or seen[rank][0] != value:
                    seen[rank] = (value, now)
            quiet = now - changed[rank][1]
            if quiet > self.heartbeat_timeout:
                return (
                    f"rank {rank} on {host} has given no sign of life for {quiet:.0f} s; "
                    f"it was at {where}"
                )
        # Ranks wait for each other inside collectives: who has called fewest holds the rest up.
        if moved and all(now - since > self.stall_timeout for _, since in moved.values()):
            last = min(moved, key=lambda rank: int(moved[rank][0]))
            _, _, host, where = self._store.get(f"heartbeat/{last}").decode().split(" ", 3)
            return f"rank {last} on {host} has been at {where} for over {self.stall_timeout:.0f} s"
        return None

    def _give_up(self, verdict: str, code: int = JOB_LOST) -> None:
        if f"rank {self.rank} failed" in verdict:
            return  # this rank's own word, which its main thread prints
        text = (
            f"the job is lost: {verdict}; start it again with --resume auto"
            if code == JOB_LOST
            else f"ends: {verdict}"
        )
        with suppress(OSError):  # the connection that the message goes through may be the cut one
            sys.stderr.write(f"train: rank {self.rank}: {text}\n")
            sys.stderr.flush()
        if self.rank == 0:
            time.sleep(3 * INTERVAL)  # the store goes with this process; let the others read it
        os._exit(code)  # the main thread may be inside a collective that never ends


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
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "Broken pipe")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
