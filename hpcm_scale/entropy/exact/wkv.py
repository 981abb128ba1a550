"""WKV in exact arithmetic: sums over tokens in integers, then double-precision operations on each.

A weight e^{k + w·i} is a power of two by the table, relative to the largest of its channel: all lie
within a few octaves of it, for w·T is the channel's decay. Sums up to a token are differences of
cumulative ones, exact in int64.
"""

from decimal import Decimal, localcontext

import torch
from torch import Tensor

from hpcm_scale.entropy.exact.functions import lookup
from hpcm_scale.entropy.exact.grid import GRID, divide, requantize
from hpcm_scale.entropy.exact.softmax import FACTOR_BITS, LARGEST_DROP, LOG2_E
from hpcm_scale.errors import DataError
from hpcm_scale.models.blocks.wkv import SEGMENTS

LARGEST_TOKENS = 1 << 17
"""So many products of a power below 2^25 and a value below 2^21 stay below 2^63 in sum."""
FALL_BITS = 20
"""Bits of the decay from one token to the next: an integer over 2^20 of a grid point."""
DIGITS = 40
"""Decimal digits of 1 − e^w, before it is rounded to double precision."""


def exact_wkv(
    k: Tensor, u: Tensor, decay: Tensor, boost: Tensor, published: bool, powers: Tensor
) -> Tensor:
    """The mean of values u under keys k, grid tensors (B, T, C) all.

    Args:
        decay, boost: (C,) float64, the parameters.
        published: as of `wkv`.
        powers: `powers_of_two`.

    Raises:
        DataError: if there are too many tokens.
    """
    tokens = k.shape[1]
    if tokens > LARGEST_TOKENS:
        raise DataError(
            f"image: {tokens} positions of a map; exact arithmetic allows {LARGEST_TOKENS} in a "
            "mean over all of them; encode it with --fast, or in parts"
        )
    place = torch.arange(tokens, device=k.device, dtype=torch.float64)[:, None]
    fall = divide(decay * (GRID * LOG2_E * (1 << FALL_BITS)), tokens).round_()

    def fallen(places: Tensor) -> Tensor:
        """Octaves over 1024 that weights fall by over so many places: (T, C)."""
        return (places * fall).mul_(2.0**-FALL_BITS).round_()

    key = (k.double() * round(LOG2_E * (1 << FACTOR_BITS))).mul_(2.0**-FACTOR_BITS).round_()
    values = u.long()
    at = fallen(place)
    before, largest_before = _sums(key + at, values, powers)
    after, largest_after = _sums(key - at, values, powers)
    last = after[:, :, -1:]
    own = key + divide(boost * (GRID * LOG2_E), tokens).round_()
    start = torch.zeros_like(before[:, :, :1])
    up_to = torch.cat([start, before], dim=2)
    if published:
        length = -(-tokens // SEGMENTS)
        first = torch.arange(tokens, device=k.device) // length * length
        earlier = up_to[:, :, first]  # of the segments before a token's own
        terms = [
            (earlier, largest_before - at),
            (up_to[:, :, :-1] - earlier, largest_before - fallen(place - 1)),
            (last - after, largest_after + at),
            (after - after[:, :, first], largest_after + at),
        ]
        factors = [None, None, None, _one_less_growth(decay, tokens)]
    else:
        terms = [
            (up_to[:, :, :-1], largest_before - fallen(place - 1)),
            (last - after, largest_after + fallen(place + 1)),
        ]
        factors = [None, None]
    # A sum that holds no token has no say in what the others are relative to.
    exponents = [
        exponent.expand(own.shape).masked_fill(sums[1] == 0, -torch.inf) for sums, exponent in terms
    ]
    reference = torch.stack([own, *exponents]).amax(0)

    def weight(exponent: Tensor) -> Tensor:
        return lookup(powers, (reference - exponent).clamp_(max=LARGEST_DROP))

    mine = weight(own)
    # Both relative to the same: a sum's powers are over 2^24, as the token's own are.
    top = mine * u.double() * powers[0]
    bottom = mine * powers[0]
    for (sums, _), exponent, factor in zip(terms, exponents, factors, strict=True):
        share = weight(exponent)
        if factor is not None:
            share = share * factor
        top = top + share * sums[0].double()
        bottom = bottom + share * sums[1].double()
    return requantize(top / bottom.masked_fill(bottom == 0, 1)).float()


def _sums(exponents: Tensor, values: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
    """Cumulative sums, up to and with each token, of powers and of powers times values.

    Returns:
        (2, B, T, C) int64: of values, of powers; relative to the largest exponent (B, 1, C), over
        2^24.
    """
    largest = exponents.amax(1, keepdim=True)
    weights = lookup(powers, (largest - exponents).clamp_(max=LARGEST_DROP)).long()
    return torch.stack([weights * values, weights]).cumsum(2), largest


def _one_less_growth(decay: Tensor, tokens: int) -> Tensor:
    """1 − e^w of each channel, (C,), right to the last bit of double precision; 0 where segments
    have one token, and it weighs none."""
    if tokens <= SEGMENTS:
        return torch.zeros_like(decay)
    with localcontext(prec=DIGITS):
        found = [float(1 - (Decimal(d) / tokens).exp()) for d in decay.tolist()]
    return torch.tensor(found, dtype=torch.float64, device=decay.device)
