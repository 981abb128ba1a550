"""Ends a job whose ranks can no longer work together, and says which of them is missing.

A rank that dies, or a host that is cut off, leaves the others waiting inside a collective
operation. Here a thread of every rank gives signs of life through the job's store; rank 0's
judges them by its own clock.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch
from torch.distributed import DistError, TCPStore

from hpcm_scale.errors import JOB_LOST

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between signs of life."""
HEARTBEAT_TIMEOUT = 30.0
"""Seconds without a sign of life after which a rank counts as dead."""


class Watchdog:
    """Signs of life of one rank.

    Args:
        rank, world: of this process.
        patience: seconds a rank may stay at one point of its work while others wait for it.
        silence: seconds without a sign of life after which a rank counts as dead.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        stall_timeout: float,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        self.rank, self.world, self.stall_timeout, self.heartbeat_timeout = (
            rank,
            world,
            stall_timeout,
            heartbeat_timeout,
        )
        self._where = "starting"
        self._moves = 0
        # Counts the collectives this rank has called.
        self._group = torch.distributed.distributed_c10d._get_default_group()
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
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        threading.Thread(target=self._listen, name="watchdog-store", daemon=True).start()

    def at(self, where: str) -> None:
        """The main thread has come to `where`, such as "step 41"."""
        self._where = where
        self._moves += 1

    def tick(self) -> None:
        """The main thread gets on where it is."""
        self._moves += 1

    def fail(self, reason: str) -> None:
        """This rank cannot go on, and the others need not wait for it."""
        with contextlib.suppress(DistError, RuntimeError):
            self._store.set("pulse/verdict", f"rank {self.rank} failed: {reason}")
        self.close()

    def close(self) -> None:
        """The work is done; whoever is still at it is not waited for."""
        self._ended.set()
        self._thread.join(self.heartbeat_timeout)

    def _watch(self) -> None:
        changed: dict[int, tuple[str, float]] = {}
        moved: dict[int, tuple[str, float]] = {}
        beats = 0
        try:
            while not self._ended.wait(INTERVAL):
                beats += 1
                # beats tell that the process lives, calls that its main thread gets on
                calls = self._group._get_sequence_number_for_group() + self._moves
                self._store.set(
                    f"pulse/{self.rank}", f"{beats} {calls} {socket.gethostname()} {self._where}"
                )
                if self.rank == 0:
                    verdict = self._judge(changed, moved)
                    if verdict:
                        self._store.set("pulse/verdict", verdict)
                if self._store.check(["pulse/verdict"]):
                    self._give_up(self._store.get("pulse/verdict").decode())
                self._answered = time.monotonic()
            self._store.set(f"pulse/{self.rank}", "ended")
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
        """What is wrong with some rank, seen from rank 0; None if nothing is."""
        now = time.monotonic()
        for rank in range(self.world):
            key = f"pulse/{rank}"
            pulse = self._store.get(key).decode() if self._store.check([key]) else "0 0 ? starting"
            if pulse == "ended":
                changed.pop(rank, None)
                moved.pop(rank, None)
                continue
            beats, calls, host, where = pulse.split(" ", 3)
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
            _, _, host, where = self._store.get(f"pulse/{last}").decode().split(" ", 3)
            return f"rank {last} on {host} has been at {where} for over {self.stall_timeout:.0f} s"
        return None

    def _give_up(self, verdict: str) -> None:
        with suppress(OSError):  # the connection that the message goes through may be the cut one
            sys.stderr.write(
                f"train: rank {self.rank}: the job is lost: {verdict}; "
                "start it again with --resume auto\n"
            )
            sys.stderr.flush()
        if self.rank == 0:
            time.sleep(3 * INTERVAL)  # the store goes with this process; let the others read it
        os._exit(JOB_LOST)  # the main thread may be inside a collective that never ends


class NoWatchdog:
    """What a job of one rank has in its place."""

    def at(self, where: str) -> None:
        """As of `Watchdog`."""

    def tick(self) -> None:
        """As of `Watchdog`."""

    def fail(self, reason: str) -> None:
        """As of `Watchdog`."""

    def close(self) -> None:
        """As of `Watchdog`."""
