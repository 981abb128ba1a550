"""WKV: of every token, per channel, a mean over all tokens whose weights fall with distance.

Source: Bi-RWKV of Vision-RWKV (arXiv 2403.02308), as LALIC (arXiv 2502.05741) uses it. With
w = decay / T and b = boost / T for T tokens, y_t = Σ_i g(t, i)·e^{k_i}·u_i / Σ_i g(t, i)·e^{k_i}.

- textbook: g(t, t) = e^b, else g(t, i) = e^{−w(|t−i|−1)}.
- published: what the released kernel computes. It cuts the tokens into segments, and of those from
  the first token a of t's own segment on its running sums weigh some by one more or one less power
  of e^{−w}: i < a and i > t have e^{−w|t−i|}; a has e^{−w(t−a−1)}; a < i < t have e^{−w(t−i−1)} +
  e^{w(t−i)} − e^{w(t−i+1)}; t itself e^b + 1 − e^w where t > a. Imported weights were trained so.

Shape letters: B images, T tokens in n segments of L, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hpcm_scale.models.density import upcast_half

SEGMENTS = 32
"""Segments of ⌈T/32⌉ tokens, the last one shorter: those of the released kernel."""


def wkv(k: Tensor, u: Tensor, decay: Tensor, boost: Tensor, published: bool = False) -> Tensor:
    """The mean of values u under keys k, both (B, T, C); decay and boost are (C); in float32 or up.

    A segment's own sums are cumulative ones with e^{±wr} of the place r in it; those of the others
    come as two numbers each, for what lies before and behind. All keys are relative to the largest
    of their segment, and segments to the one that counts most: nothing overflows, and no
    denominator vanishes, while |decay| stays below some 2000.
    """
    dtype, tokens = u.dtype, k.shape[1]
    k, u, decay, boost = (upcast_half(x) for x in (k, u, decay, boost))
    w, length = decay / tokens, -(-tokens // SEGMENTS)
    k, u = _segments(k, length, float("-inf")), _segments(u, length, 0.0)
    largest = k.detach().amax(2)  # (B, n, C)
    p = (k - largest[:, :, None]).exp()
    sums = torch.stack([p * u, p])  # (2, B, n, L, C): of the numerator, of the denominator

    place = torch.arange(length, device=k.device, dtype=k.dtype)[:, None]
    growing, falling = (w * place).exp(), (-w * place).exp()  # (L, C)
    near = sums * falling
    # Of every place, what lies up to it and from it on, weighted by e^{−w·distance}.
    ahead = (sums * growing).cumsum(3) * falling
    behind = near.flip(3).cumsum(3).flip(3) * growing
    before = F.pad(ahead[..., :-1, :], (0, 0, 1, 0))
    after = F.pad(behind[..., 1:, :], (0, 0, 0, 1))

    own, left, right = _other_segments(largest, w * length, ahead[..., -1, :], behind[..., 0, :])
    right = right * (-w * (length - 1)).exp()
    others = left[:, :, :, None] * falling + right[:, :, :, None] * growing
    inside = (boost / tokens).exp() * sums + before
    if published:
        once = (-w).exp()
        since = F.pad(near[..., 1:, :], (0, 0, 1, 0)).cumsum(3) * growing
        inside = inside + once * after - torch.expm1(w) * since
        others = once * others
    else:
        inside = inside + after
    numerator, denominator = own[:, :, None] * inside + others
    return (numerator / denominator).flatten(1, 2)[:, :tokens].to(dtype)


def _segments(x: Tensor, length: int, filler: float) -> Tensor:
    """(B, T, C) -> (B, n, L, C), the last segment filled up."""
    b, t, c = x.shape
    return F.pad(x, (0, 0, 0, -t % length), value=filler).view(b, -1, length, c)


def _other_segments(
    largest: Tensor, fall: Tensor, at_end: Tensor, at_start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums that the other segments bring to each, and the weight of its own beside them.

    Args:
        largest: (B, n, C), the key that the sums of each segment are relative to.
        fall: (C), w·L.
        at_end: (2, B, n, C), sums of each segment as its last token's right neighbour weighs them.
        at_start: the same as its first token's left neighbour weighs them.

    Returns:
        The weight (B, n, C) of each segment's own sums; (2, B, n, C) of all segments before, as the
        first token weighs them; and of all behind, as the last token does.
    """
    place = torch.arange(largest.shape[1], device=largest.device)
    apart = place[:, None] - place  # (n, n)
    between = (apart.abs() - 1).clamp_min(0)[..., None]
    logits = largest[:, None] - fall * between  # (B, n, n, C)
    reference = logits.detach().amax(2)
    weights = (logits - reference[:, :, None]).exp()
    left = weights * (apart > 0)[..., None] * at_end[:, :, None]
    right = weights * (apart < 0)[..., None] * at_start[:, :, None]
    return (largest - reference).exp(), left.sum(3), right.sum(3)
