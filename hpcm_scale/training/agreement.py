"""Results and errors that all ranks of a job share."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hpcm_scale.errors import HpcmError, RunError, one_line

T = TypeVar("T")


class PeerFailed(RuntimeError):
    """Another rank failed at what this one waits for; that rank says why."""


def agreed(error: HpcmError) -> HpcmError:
    """Mark an error that every rank raises at the same place: rank 0 speaks for all."""
    error.on_every_rank = True
    return error


def on_rank_0(rank: int, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and give its result, or its error, to all ranks.

    Raises:
        HpcmError: the one that `work` raised on rank 0; a RunError for an OSError.
        PeerFailed: on the other ranks, if `work` raised anything else.
    """
    outcome: list[Any] = [None, None]
    raised: Exception | None = None
    if rank == 0:
        try:
            outcome[0] = work()
        except HpcmError as error:
            outcome[1] = error
        except OSError as error:  # a full disk, a folder that cannot be written
            outcome[1] = RunError(one_line(error))
        except Exception as error:  # noqa: BLE001 - raised below, once the others know
            raised = error
            outcome[1] = PeerFailed(f"rank 0 failed: {one_line(error)}")
    torch.distributed.broadcast_object_list(outcome)
    if raised is not None:
        raise raised
    if isinstance(outcome[1], HpcmError):
        raise agreed(outcome[1])
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
