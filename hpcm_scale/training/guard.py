"""Steps that must not be taken: a loss or a gradient that is not finite on some rank.

The ranks agree before the optimizer steps, and all of them leave the step out.
"""

from typing import Any

import torch

from hpcm_scale.config import GuardConfig
from hpcm_scale.training.deepspeed_internals import (
    discard_steps_when,
    discards_steps,
    flat_gradients,
)

EMA_DECAY = 0.98
"""Weight of the past in the running average that a loss is compared with."""
CHECK_CHUNK = 2**24
"""Gradients looked at together."""
SPIKE_WARMUP = 50
"""Steps before the running average can tell a spike."""


class StepGuard:
    """Discards the optimizer steps of `engine` that it has been told of, or whose gradient is bad.

    DeepSpeed has a way to discard a step, for 16-bit floats that overflow; this opens it to every
    stage and precision. Stage 0 in fp32 has no optimizer of DeepSpeed's: there it clips the
    gradient too, so that a discarded step is one that no parameter has a gradient for.

    Args:
        clip: largest norm of the gradient; of that stage alone, the others have it from DeepSpeed.
    """

    def __init__(self, engine: Any, clip: float) -> None:
        self.engine, self.clip = engine, clip
        self.bad_loss = False
        """Whether any rank's loss of the current step is not finite; set it before the step."""
        self.norm: float | None = None
        """Norm of the last step's gradient over all parameters, before clipping."""
        self.stage = engine.zero_optimization_stage()
        self._is_zero = discards_steps(engine)
        if self._is_zero:
            discard_steps_when(engine, self._stage_3_is_bad, lambda: self.bad_loss)

    def step(self) -> bool:
        """Let the optimizer step; False if it was discarded. To be called at the boundary."""
        engine = self.engine
        if not self._is_zero:
            return self._plain_step()
        engine.step()
        skipped = bool(engine.optimizer.overflow)
        norm = engine.get_global_grad_norm()
        self.norm = None if norm is None or skipped else float(norm)
        return not skipped

    def _stage_3_is_bad(self) -> bool:
        """Whether loss or gradient of any rank is bad.

        DeepSpeed's own would make three copies of all gradients at once.
        """
        flat = flat_gradients(self.engine)
        finite = all(bool(part.isfinite().all()) for part in flat.split(CHECK_CHUNK))
        # On the accelerator, though gradients may be in the host's memory.
        bad = torch.tensor([self.bad_loss or not finite], device=self.engine.device).byte()
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        return bool(bad)

    def _plain_step(self) -> bool:
        """Stage 0 in fp32: torch's own optimizer, whole gradients, equal on all ranks."""
        parameters = [p for p in self.engine.module.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        good = bool(total.isfinite()) and not self.bad_loss
        self.norm = total.item() if good else None
        if good:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, total)
        else:
            for parameter in parameters:
                parameter.grad = None  # Adam leaves alone what has none
        self.engine.step()
        return good


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
