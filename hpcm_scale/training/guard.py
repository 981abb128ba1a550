"""Steps that must not be taken: a loss or a gradient that is not finite on some rank.

The ranks agree before the optimizer steps, and all of them leave the step out. What they must know
of each other, the norm of the gradient included, reaches the host in one copy: the only time in a
step that it waits for the device.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcm_scale.config import GuardConfig
from hpcm_scale.training.deepspeed_internals import (
    decide_steps_by,
    discards_steps,
)
from hpcm_scale.training.transfer import to_device, to_host

EMA_DECAY = 0.98
"""Weight of the past in the running average that a loss is compared with."""
SPIKE_WARMUP = 50
"""Steps before the running average can tell a spike."""


class Agreed(NamedTuple):
    """What all ranks know of a step."""

    stepped: bool
    """False if the weights were left as they were."""
    loss: float
    """Sum of the ranks' losses."""
    flags: tuple[bool, ...]
    """Each true where any rank's was."""


class StepGuard:
    """Discards the optimizer steps of `engine` whose loss or gradient is bad on some rank.

    DeepSpeed has a way to discard a step, for 16-bit floats that overflow; this opens it to every
    stage and precision. Stage 0 in fp32 has no optimizer of DeepSpeed's: there it clips the
    gradient too, so that a discarded step is one that no parameter has a gradient for.

    Args:
        clip: largest norm of the gradient; of that stage alone, the others have it from DeepSpeed.
    """

    def __init__(self, engine: Any, clip: float) -> None:
        self.engine, self.clip = engine, clip
        self.norm: float | None = None
        """Norm of the last step's gradient over all parameters, before clipping."""
        self._is_zero = discards_steps(engine)
        self._ask: Callable[[Tensor], Tensor | None] | None = None
        if self._is_zero:
            decide_steps_by(engine, lambda norm: self._ask(norm) if self._ask else norm)

    def step(self, loss: Tensor, flags: Sequence[bool] = ()) -> Agreed:
        """Agree on a step, and take it unless it is bad. Every rank calls it, at the boundary.

        Args:
            loss: this rank's, a scalar on any device.
            flags: of this rank, as many on every rank.
        """
        mine = to_device(torch.tensor(flags, dtype=torch.float64), self.engine.device)
        outcome: list[Agreed] = []

        def ask(norm: Tensor) -> Tensor | None:
            """The norm as the host knows it; None if the step is bad."""
            agreed, known = self._agree(loss, mine, norm)
            outcome.append(agreed)
            return known if agreed.stepped else None

        if not self._is_zero:
            self._plain_step(ask)
        else:
            self._ask = ask
            self.engine.step()
            self._ask = None
        return outcome[0]

    def _agree(self, loss: Tensor, flags: Tensor, norm: Tensor) -> tuple[Agreed, Tensor]:
        """Hear all ranks, and read the answer and the norm, the same on all, at once."""
        loss, norm = loss.detach().double(), norm.to(self.engine.device)
        bad = ~(loss.isfinite() & norm.isfinite()) | (norm < 0)  # DeepSpeed's sign of a bad one
        heard = torch.cat([torch.stack([loss, bad.double()]), flags])
        torch.distributed.all_reduce(heard)
        total, wrong, *raised, length = to_host(torch.cat([heard, norm.double()[None]]))
        agreed = Agreed(wrong == 0, total, tuple(map(bool, raised)))
        self.norm = length if agreed.stepped else None
        return agreed, torch.tensor(length, dtype=norm.dtype)

    def _plain_step(self, ask: Callable[[Tensor], Tensor | None]) -> None:
        """Stage 0 in fp32: torch's own optimizer, whole gradients, equal on all ranks."""
        parameters = [p for p in self.engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if ask(norm) is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        else:
            for parameter in parameters:
                parameter.grad = None  # Adam leaves alone what has none
        self.engine.step()


class LossWatch:
    """Counts skipped steps and loss spikes."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = 0
        """Steps skipped so far."""
        self.spikes = 0
        """Spikes so far."""
        self.in_a_row = 0
        """Steps skipped since the last good one."""
        self._average, self._seen = 0.0, 0

    def state_dict(self) -> dict[str, float]:
        """Counters and running average."""
        return {
            "skipped": self.skipped,
            "spikes": self.spikes,
            "average": self._average,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on counting from `state`."""
        self.skipped, self.spikes = int(state["skipped"]), int(state["spikes"])
        self._average, self._seen = state["average"], int(state["seen"])

    def take(self, loss: float, stepped: bool) -> str | None:
        """Take a step's loss over all ranks in; returns "skip" or "spike" if it was one."""
        if not stepped:
            self.skipped += 1
            self.in_a_row += 1
            return "skip"
        self.in_a_row = 0
        mean = self._average / (1 - EMA_DECAY**self._seen) if self._seen else loss
        spike = self._seen >= SPIKE_WARMUP and loss > self.config.spike_factor * mean
        self.spikes += spike
        # A spike counts as the largest loss that is none, or it would hide the ones after it.
        self._average = EMA_DECAY * self._average + (1 - EMA_DECAY) * (
            self.config.spike_factor * mean if spike else loss
        )
        self._seen += 1
        return "spike" if spike else None
