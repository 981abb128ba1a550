"""Learning rate as a function of the step."""

import math

from hpcm_scale.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`.

    A linear warm-up, then one of: constant with a linear decay at the end, so that one long run
    serves several budgets (arXiv 2405.18392); the papers' steps (arXiv 2507.19125); half a cosine
    (arXiv 1608.03983).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    match config.schedule:
        case "constant":
            decay = config.decay_fraction * steps
            factor = min(1.0, (steps - step) / decay) if decay else 1.0
        case "step":
            passed = sum(step >= share * steps for share in config.milestones)
            factor = config.factors[passed - 1] if passed else 1.0
        case "cosine":
            progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
            factor = (
                config.final_lr_fraction
                + (1 - config.final_lr_fraction) * (1 + math.cos(math.pi * progress)) / 2
            )
    return config.lr * factor


def ema_decay(config: OptimizerConfig, step: int) -> float:
    """Decay of the weights' average after step `step` (from 0): less while it is young."""
    return min(config.ema or 0.0, (1 + step) / (10 + step))
