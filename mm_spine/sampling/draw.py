"""Draw each row's next token from its logits, with its log-prob and the entropy of the distribution.

Shape suffixes: R rows, V tokens of the vocabulary, B blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_spine.policy.distribution import IMPOSSIBLE, Distribution, entropy_of

BLOCK = 128
"""Tokens that are summed in fp32; the sums of blocks are added in float64."""

NEAR = 2**-21
"""A draw this close to the boundary of two tokens is decided in float64. Sums of blocks put no boundary further off
than 1.6e-7: the largest difference over normal, Zipf, bf16, sorted and two-valued logits of up to 151,936 tokens."""

WHOLE = 1024
"""Up to this many tokens the cumulative distribution is computed whole, in float64."""

PIECE_BYTES = 2 * 2**20
"""Bytes of fp32 logits per pass on a CPU, so that they and their probabilities stay in its caches."""


class Drawn(NamedTuple):
    """Token ids, log-probs and entropies (nats) of the rows, each (R,)."""

    token_R: Tensor
    logp_R: Tensor
    entropy_R: Tensor


def draw(
    logits_RV: Tensor,
    uniform_R: Tensor | None,
    distribution: Distribution,
    *,
    barred: Sequence[tuple[int, int]] = (),
    top_p: float = 1.0,
) -> Drawn:
    """Draw a token per row: the inverse of the cumulative distribution at `uniform_R`, without it the likeliest.

    What a row draws depends on its own logits and uniform number in [0, 1) only. The (row, token) pairs in `barred` are
    not drawn, but log-prob and entropy are those of the distribution with them. With `top_p` below 1 the draw is from
    the nucleus.
    """
    vocabulary = logits_RV.shape[-1]
    if vocabulary <= WHOLE:
        return draw_whole(logits_RV, uniform_R, distribution, barred, top_p)
    size = max(1, len(logits_RV))
    if logits_RV.device.type == "cpu":
        size = min(size, max(1, PIECE_BYTES // (4 * vocabulary)))
    # Made once: allocating such tensors for every piece costs more than what is done with them.
    room = logits_RV.new_empty(2, size, vocabulary, dtype=torch.float32)
    parts = []
    for first in range(0, len(logits_RV), size):
        part = slice(first, first + size)
        logits, uniform = logits_RV[part], None if uniform_R is None else uniform_R[part]
        pairs = [(row - first, token) for row, token in barred if first <= row < first + size]
        if top_p < 1.0:
            parts.append(draw_whole(logits, uniform, distribution, pairs, top_p))
        else:
            parts.append(draw_in_blocks(logits, uniform, distribution, pairs, room[:, : len(logits)]))
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


def draw_whole(
    logits_RV: Tensor,
    uniform_R: Tensor | None,
    distribution: Distribution,
    barred: Sequence[tuple[int, int]],
    top_p: float,
) -> Drawn:
    """Draw from the whole cumulative distribution, or that of its nucleus."""
    log_probs = distribution.log_probs(logits_RV)
    open_RV = _with(log_probs, barred, -torch.inf)
    token = open_RV.argmax(-1) if uniform_R is None else _choose(open_RV, uniform_R, top_p)
    return Drawn(token, log_probs.gather(-1, token[:, None])[:, 0], entropy_of(log_probs))


def _choose(log_probs_RV: Tensor, uniform_R: Tensor, top_p: float = 1.0) -> Tensor:
    """Return the tokens (R,) at which the cumulative distribution, computed in float64, passes `uniform_R`."""
    probs = log_probs_RV.double().exp()
    cumulative = (_nucleus(probs, top_p) if top_p < 1.0 else probs).cumsum(-1)
    return _first_beyond(cumulative, uniform_R[:, None] * cumulative[:, -1:])[:, 0]


def draw_in_blocks(
    logits_RV: Tensor,
    uniform_R: Tensor | None,
    distribution: Distribution,
    barred: Sequence[tuple[int, int]],
    room_2RV: Tensor,
) -> Drawn:
    """Draw the same tokens without a cumulative sum over the vocabulary: find the draw's block, then search that.

    Overwrites `room_2RV`, in fp32.
    """
    below_RV, probs_RV = probs_below(distribution.scaled(logits_RV, out=room_2RV[0]), room_2RV[1])
    sums_RB = block_sums(probs_RV)
    # Softmax adds its exponentials up in fp32; that their blocks do not add up to 1 says by how much it was wrong.
    total_R = sums_RB.sum(-1)
    log_z_R = total_R.log() - probs_RV.amax(-1).double().log()
    if uniform_R is None:
        # Not of the probabilities: those of two logits may be equal by rounding.
        token = _with(below_RV, barred, -torch.inf).argmax(-1)
    else:
        open_RV = _with(probs_RV, barred, 0.0)
        token, margin_R = invert(open_RV, block_sums(open_RV) if barred else sums_RB, uniform_R)
        near = (~(margin_R > NEAR)).nonzero()[:, 0]
        if len(near):
            places = {row: place for place, row in enumerate(near.tolist())}
            pairs = [(places[row], token) for row, token in barred if row in places]
            log_probs = distribution.log_probs(logits_RV[near])
            token[near] = _choose(_with(log_probs, pairs, -torch.inf), uniform_R[near])
    logp_R = below_RV.gather(-1, token[:, None])[:, 0].double() - log_z_R
    entropy_R = log_z_R - block_sums(below_RV.mul_(probs_RV)).sum(-1) / total_R
    return Drawn(token, logp_R.float(), entropy_R.float())


def probs_below(scaled_RV: Tensor, room_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far scaled logits are below their row's largest (at most 0), and their softmax; both (R, V).

    Overwrites both arguments.
    """
    # Below the largest, all terms of the entropy have one sign, so that no digits of it cancel.
    below_RV = scaled_RV.sub_(scaled_RV.amax(-1, keepdim=True)).clamp_(min=IMPOSSIBLE)
    return below_RV, torch.softmax(below_RV, -1, out=room_RV)


def block_sums(values_RV: Tensor) -> Tensor:
    """Return the sums of consecutive blocks (R, B) in float64; the last block is what the others leave."""
    whole = values_RV.shape[-1] // BLOCK * BLOCK
    blocks = values_RV[:, :whole].unflatten(-1, (whole // BLOCK, BLOCK)).sum(-1)
    return torch.cat([blocks, values_RV[:, whole:].sum(-1, keepdim=True)], -1).double()


def invert(probs_RV: Tensor, sums_RB: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """Find the tokens (R,) at which the cumulative probabilities pass the share `uniform_R` of their total.

    Also return how far the share is from the token's nearer boundary (R,), negative or NaN where no token holds it.
    """
    ends_RB = sums_RB.cumsum(-1)
    target_R1 = uniform_R[:, None] * ends_RB[:, -1:]
    block_R1 = _first_beyond(ends_RB, target_R1)
    rest_R1 = target_R1 - F.pad(ends_RB, (1, 0)).gather(-1, block_R1)
    at = block_R1 * BLOCK + torch.arange(BLOCK, device=block_R1.device)
    beyond = at >= probs_RV.shape[-1]
    inside = probs_RV.gather(-1, at.masked_fill(beyond, 0)).double().masked_fill(beyond, 0.0).cumsum(-1)
    place_R1 = _first_beyond(inside, rest_R1)
    margin_R1 = (rest_R1 - F.pad(inside, (1, 0)).gather(-1, place_R1)).minimum(inside.gather(-1, place_R1) - rest_R1)
    token_R1 = (block_R1 * BLOCK + place_R1).clamp(max=probs_RV.shape[-1] - 1)
    return token_R1[:, 0], (margin_R1 / ends_RB[:, -1:])[:, 0]


def _first_beyond(cumulative: Tensor, target: Tensor) -> Tensor:
    """Return where each row's cumulative sums pass `target` (R, 1), a place whose own share is positive."""
    total = cumulative[:, -1:].contiguous()
    found = torch.searchsorted(cumulative, target, right=True)
    # Rounding may carry a draw to the total. Then take the last place of positive probability, not a banned one after
    # it.
    # Without a finite distribution both are beyond the vocabulary; the caller refuses such rows.
    last = torch.searchsorted(cumulative, total).clamp(max=cumulative.shape[-1] - 1)
    return found.minimum(last)


def _with(values_RV: Tensor, pairs: Sequence[tuple[int, int]], value: float) -> Tensor:
    """Return `values_RV` with `value` at the (row, token) pairs."""
    if not pairs:
        return values_RV
    rows, tokens = torch.tensor(pairs, device=values_RV.device).T
    return values_RV.index_put((rows, tokens), values_RV.new_tensor(value))


def _nucleus(probs_RV: Tensor, top_p: float) -> Tensor:
    """Return the probabilities with zeros outside the smallest set of tokens whose share reaches `top_p`."""
    ranked, order = probs_RV.sort(-1, descending=True)
    outside = ranked.cumsum(-1) - ranked >= top_p * ranked.sum(-1, keepdim=True)
    return torch.zeros_like(probs_RV).scatter(-1, order, ranked.masked_fill(outside, 0.0))
