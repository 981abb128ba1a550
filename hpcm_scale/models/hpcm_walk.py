"""The walk over HPCM's coding steps, written once for every engine.

An engine brings its tensors T, how they move between grids (`StepGrids`) and the nets (`Nets`);
what is computed in which order stands here alone.
"""

from collections.abc import Callable
from typing import Protocol

from hpcm_scale.config import HpcmConfig
from hpcm_scale.models.step_grids import StepGrids, T


class Nets(Protocol[T]):
    """The context model's nets."""

    def step(self, k: int, s: int, context: T, y_hat: T) -> T:
        """ψ of step k > 0, which is of scale s, from the context and the latents so far."""
        ...

    def merge(self, s: int, context: T) -> T:
        """The context that enters scale s > 0."""
        ...

    def fuse(self, s: int, psi: T, context: T) -> T:
        """The context after a step of scale s, by attention."""
        ...


def walk_steps(
    config: HpcmConfig,
    grids: StepGrids[T],
    nets: Nets[T],
    params: T,
    code: Callable[[int, T, T], T],
) -> T:
    """Walk the coding steps.

    Args:
        params: h_s(ẑ), of 2M channels: (scale | mean) of the hyperprior for every latent.
        code: called once a step, in coding order, with dense scale and mean; returns ŷ.

    Returns:
        ŷ, of M channels.
    """
    steps, scales, moves = grids.schedule.steps, grids.schedule.scales, grids.moves
    pyramid = grids.pyramid(params, parts=2)
    context, y_hat = (pyramid[0] if config.hierarchical else params), None
    for k, (s, table) in enumerate(steps):
        if y_hat is None:
            psi = context
        else:
            if s != steps[k - 1][0]:
                context, y_hat = _enter(config, grids, nets, s, context, y_hat, pyramid[s])
            psi = nets.step(k, s, context, y_hat)
        on_scale = psi if config.hierarchical else grids.narrow(psi, s, parts=2)
        coded = code(k, *moves.halves(moves.take(on_scale, table, scales[s].groups, parts=2)))
        if config.hierarchical and y_hat is not None:
            y_hat = moves.put(coded, y_hat, table, scales[s].groups)
        else:
            placed = moves.place(coded, table, scales[s].groups)
            if not config.hierarchical:
                placed = grids.widen(placed, s)
            y_hat = placed if y_hat is None else y_hat + placed
        # The context after the last step is read by nothing.
        if 0 < k < len(steps) - 1:
            if config.fusion == "attention":
                context = nets.fuse(s, psi, context)
            elif config.fusion == "psi":
                context = psi
    assert y_hat is not None  # a schedule has steps
    return y_hat


def _enter(
    config: HpcmConfig,
    grids: StepGrids[T],
    nets: Nets[T],
    s: int,
    context: T,
    y_hat: T,
    params: T,
) -> tuple[T, T]:
    """Context and latents so far of scale s−1 on the grid of scale s, with s's `params`."""
    if not config.hierarchical:
        return nets.merge(s, context), y_hat
    kept, moves = grids.schedule.scales[s].kept, grids.moves
    if s == 1 and config.hyper_alignment == "official":
        params = moves.misplace(params)
    context = nets.merge(s, moves.insert(context, params, kept, parts=2))
    return context, moves.insert_into_zeros(y_hat, kept)
