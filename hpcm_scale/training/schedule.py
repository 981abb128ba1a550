"""Learning rate as a function of the step."""

from hpcm_scale.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`.

    A linear warm-up, a constant part, and a linear decay to 0 over the last `decay_fraction`:
    constant-then-decay lets one long run serve several budgets (arXiv 2405.18392).
    """
    rate = config.lr
    if step < config.warmup_steps:
        rate *= (step + 1) / config.warmup_steps
    decay = config.decay_fraction * steps
    if decay and step > steps - decay:
        rate *= (steps - step) / decay
    return rate
