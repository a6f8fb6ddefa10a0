"""From voted groups to one optimiser step: credit, token masks, micro-batches of whole groups, losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mm_spine.config import MethodConfig
from mm_spine.methods import credit, terms
from mm_spine.methods.table import Method
from mm_spine.methods.weights import Bounds, band_bounds, select
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.head import Divergence
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, PackedBatch, pack, row_length
from mm_spine.policy.scoring import score_responses
from mm_spine.policy.text import Trained
from mm_spine.types import Group, Question, Rollout, TokenStats

ON_THE_BOUND = 1e-4
"""Nats within which an entropy equals a bound: far above the rounding of fp32, far below what a step moves."""


class Tokens(NamedTuple):
    """One response of T tokens: where the policy term and the band act (T,), and the band's bounds in nats."""

    policy_T: Tensor
    band_T: Tensor
    bounds: Bounds | None


class Leaf(NamedTuple):
    """A distinct response of a question, `rollout.weight` times, with its advantage and tokens."""

    rollout: Rollout
    advantage: float
    tokens: Tokens


@dataclass(frozen=True, eq=False)
class Row:
    """The leaves of one question: the unit that is never split."""

    question: Question
    leaves: tuple[Leaf, ...]


class Denominators(NamedTuple):
    """Tokens each term is averaged over, of the whole step and all ranks, each rollout counted."""

    policy: float
    band: float
    kl: float


class Losses(NamedTuple):
    """The weighted terms whose sum is minimised."""

    policy: Tensor
    band: Tensor
    kl: Tensor


class Gap(NamedTuple):
    """Sampler minus trainer log-probs over some tokens: how many, sums of |gap| and of the KL estimate, the largest."""

    tokens: float = 0.0
    total: float = 0.0
    kl: float = 0.0
    most: float = 0.0


class MicroBatch(NamedTuple):
    """A packed batch and, for its N leaves, what the loss needs beside the forward."""

    packed: PackedBatch
    advantage_N1: Tensor
    weight_N: Tensor
    sampled_logp_NT: Tensor
    policy_NT: Tensor
    band_NT: Tensor
    low_N1: Tensor
    high_N1: Tensor


def share_identical(group: Group) -> Group:
    """Give identical responses the first one's log-probs and entropies, so that rounding cannot tell them apart."""
    first: dict[tuple[int, ...], Rollout] = {}
    for rollout in group.rollouts:
        first.setdefault(rollout.token_ids, rollout)
    same = [first[r.token_ids] for r in group.rollouts]
    pairs = zip(group.rollouts, same, strict=True)
    return replace(group, rollouts=tuple(replace(r, logp=f.logp, entropy=f.entropy) for r, f in pairs))


def score(
    policy: Policy, groups: Sequence[Group], distribution: Distribution, token_budget: int
) -> tuple[list[Group], Gap]:
    """Exact entropies (nats) of every token, for samplers that give none: packed forwards without gradient.

    Also the gap between the sampler's log-probs and those of this forward, over the tokens of distinct responses.
    """
    rows = [_whole_row(group) for group in groups]
    entropies: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
    gaps = []
    for batch in whole_groups(policy, rows, token_budget):
        asked = [(row.question, [leaf.rollout.token_ids for leaf in row.leaves]) for row in batch]
        found = chain(*score_responses(policy, asked, distribution))
        for leaf, scores in zip(chain(*(row.leaves for row in batch)), found, strict=True):
            entropies[leaf.rollout.question_id, leaf.rollout.token_ids] = scores.entropy
            gaps.append(_gap(torch.from_numpy(leaf.rollout.logp - scores.logp)))
    scored = [
        replace(g, rollouts=tuple(replace(r, entropy=entropies[g.question.id, r.token_ids]) for r in g.rollouts))
        for g in groups
    ]
    return scored, joined(gaps)


def gap_of(micro: MicroBatch, stats: TokenStats) -> Gap:
    """Over the tokens that `stats` is of. The KL estimate is k3 of sampler and trainer on the sampler's draws."""
    return _gap((micro.sampled_logp_NT - stats.logp_NT.detach())[stats.selected_NT])


def _gap(gap_S: Tensor) -> Gap:
    if not len(gap_S):
        return Gap()
    size_S = gap_S.abs()
    return Gap(float(len(gap_S)), float(size_S.sum()), float((torch.expm1(-gap_S) + gap_S).sum()), float(size_S.max()))


def joined(gaps: Sequence[Gap]) -> Gap:
    """Of several batches or ranks."""
    if not gaps:
        return Gap()
    tokens, total, kl, most = zip(*gaps, strict=True)
    return Gap(sum(tokens), sum(total), sum(kl), max(most))


def _whole_row(group: Group) -> Row:
    """All tokens of each distinct response, without credit."""
    masks = [torch.ones(len(rollout.token_ids), dtype=torch.bool) for rollout in group.rollouts]
    tokens = [Tokens(mask_T, ~mask_T, None) for mask_T in masks]
    return make_row(replace(group, advantages=torch.zeros(len(group.rollouts))), tokens)


def assign_credit(groups: Sequence[Group], method: Method, options: MethodConfig) -> list[Group]:
    """Rewards and advantages (N,) for every group; the batch scope is all of `groups`."""
    reward, shape = method.reward(options), method.shape(options)
    rewards = [reward(group) for group in groups]
    advantages = credit.advantages(rewards, options.advantage, options.std, options.eps)
    return [
        replace(group, rewards=r, advantages=shape(a, credit.mean_entropies(group.rollouts)))
        for group, r, a in zip(groups, rewards, advantages, strict=True)
    ]


def choose_tokens(
    groups: Sequence[Group],
    method: Method,
    options: MethodConfig,
    seed: int,
    step: int,
    anchored: Bounds | None = None,
) -> list[list[Tokens]]:
    """Masks and bounds per group and rollout, from detached entropies; `anchored` bounds replace the running ones."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    signals = [method.signal(leaf, seed, step) for leaf in _representatives(groups)]
    policy = select(signals, method.policy_mask(options), options.mask_scope)
    if method.bounds is None:
        flat = [Tokens(p, torch.zeros_like(p), None) for p in policy]
    else:
        entropies = [torch.from_numpy(rollout.entropy) for rollout in rollouts]
        band = select(entropies, method.band_mask(options), options.mask_scope)
        running = band_bounds(entropies, band, method.bounds(options), options.band_scope)
        bounds = running if anchored is None else [anchored] * len(running)
        flat = [Tokens(*each) for each in zip(policy, band, bounds, strict=True)]
    sizes = iter(flat)
    return [[next(sizes) for _ in group.rollouts] for group in groups]


def _representatives(groups: Sequence[Group]) -> Iterator[Rollout]:
    """Each rollout's first identical one, so that a random mask falls alike on equal responses."""
    for group in groups:
        first: dict[tuple[int, ...], Rollout] = {}
        for rollout in group.rollouts:
            yield first.setdefault(rollout.token_ids, rollout)


def make_row(group: Group, tokens: Sequence[Tokens]) -> Row:
    """Merge identical responses into leaves with a weight, where credit and masks are the same too.

    An exact top-k over the batch may end between two equal tokens; such leaves still share all of their tree.
    """
    if group.advantages is None:
        raise ValueError(f"{group.question.id}: no advantages yet; call assign_credit first")
    leaves: dict[tuple[Any, ...], Leaf] = {}
    for rollout, advantage, chosen in zip(group.rollouts, group.advantages.tolist(), tokens, strict=True):
        same = (rollout.token_ids, advantage, *(mask_T.numpy().tobytes() for mask_T in chosen[:2]))
        weight = rollout.weight + (leaves[same].rollout.weight if same in leaves else 0)
        leaves[same] = Leaf(replace(rollout, weight=weight), advantage, chosen)
    return Row(group.question, tuple(leaves.values()))


def trained_rows(groups: Sequence[Group], tokens: Sequence[Sequence[Tokens]], options: MethodConfig) -> list[Row]:
    """Rows that have something to learn from: a token is selected, and there is a preference, or band or KL."""
    return [
        make_row(group, chosen)
        for group, chosen in zip(groups, tokens, strict=True)
        if any(bool(t.policy_T.any() | t.band_T.any()) for t in chosen)
        and ((group.advantages is not None and bool(group.advantages.any())) or _regularised(chosen, options))
    ]


def _regularised(tokens: Sequence[Tokens], options: MethodConfig) -> bool:
    """Whether a group without a preference gets any gradient: it may have one, and some term has a weight."""
    anchored = options.kl != "none" and options.kl_weight > 0
    banded = options.band_low_weight + options.band_high_weight > 0 and any(t.bounds is not None for t in tokens)
    return options.unanimous == "regularise" and (anchored or banded)


def denominators(tokens: Sequence[Sequence[Tokens]], options: MethodConfig) -> Denominators:
    """Token counts over every kept rollout of the step, those of skipped groups included: their terms are 0."""
    flat = [chosen for group in tokens for chosen in group]
    lengths = torch.tensor([len(t.policy_T) for t in flat])
    policy = torch.tensor([int(t.policy_T.sum()) for t in flat])
    band = torch.tensor([int(t.band_T.sum()) for t in flat])
    ones = torch.ones(len(flat))
    return Denominators(
        float(terms.denominator(lengths, policy, ones, options.policy_denominator)),
        float(terms.denominator(lengths, band, ones, options.band_denominator)),
        float(terms.denominator(lengths, policy, ones, options.kl_denominator)),
    )


def whole_groups(policy: Policy, rows: Sequence[Row], token_budget: int) -> list[list[Row]]:
    """Micro-batches of whole groups, longest first, within a budget of packed tokens (a larger group goes alone)."""
    lengths = {id(row): packed_length(policy, row) for row in rows}
    batches: list[list[Row]] = []
    room = 0
    for row in sorted(rows, key=lambda r: -lengths[id(r)]):
        if not batches or lengths[id(row)] > room:
            batches.append([])
            room = token_budget
        batches[-1].append(row)
        room -= lengths[id(row)]
    return batches


def packed_length(policy: Policy, row: Row) -> int:
    """Tokens of one row, as the budget counts them."""
    return row_length(_branches(policy, row))


def _branches(policy: Policy, row: Row) -> Branches:
    """What the forward needs to know of `row`: no credit."""
    return Branches(
        policy.prompt(row.question),
        [torch.tensor(leaf.rollout.token_ids, dtype=torch.long) for leaf in row.leaves],
        [leaf.tokens.policy_T | leaf.tokens.band_T for leaf in row.leaves],
    )


def collate(policy: Policy, rows: Sequence[Row]) -> MicroBatch:
    """Tensors of a micro-batch on the policy's device."""
    device = policy.device
    leaves = [leaf for row in rows for leaf in row.leaves]
    zero = Bounds(torch.zeros(()), torch.zeros(()))
    bounds = [leaf.tokens.bounds or zero for leaf in leaves]
    return MicroBatch(
        pack([_branches(policy, row) for row in rows]),
        torch.tensor([[leaf.advantage] for leaf in leaves], device=device),
        torch.tensor([float(leaf.rollout.weight) for leaf in leaves], device=device),
        _pad((torch.from_numpy(leaf.rollout.logp) for leaf in leaves), device),
        _pad((leaf.tokens.policy_T for leaf in leaves), device),
        _pad((leaf.tokens.band_T for leaf in leaves), device),
        torch.stack([b.low for b in bounds])[:, None].to(device),
        torch.stack([b.high for b in bounds])[:, None].to(device),
    )


def _pad(rows: Iterable[Tensor], device: torch.device) -> Tensor:
    return pad_sequence(list(rows), batch_first=True).to(device)


def losses(
    trained: Trained, micro: MicroBatch, old_logp_NT: Tensor, options: MethodConfig, over: Denominators
) -> Losses:
    """This micro-batch's part of the step's loss: policy term + band + KL, each already weighted."""
    stats, weight_N = trained.stats, micro.weight_N

    def mean(values_NT: Tensor, mask_NT: Tensor, tokens: float) -> Tensor:
        return terms.weighted_mean(values_NT, mask_NT, weight_N, values_NT.new_tensor(tokens))

    gain_NT = terms.clipped_surrogate(
        stats.logp_NT, old_logp_NT, micro.advantage_N1, options.clip_low, options.clip_high
    )
    below_NT, above_NT = terms.hinge_band(stats.entropy_NT, micro.low_N1, micro.high_N1)
    hinges_NT = options.band_low_weight * _beyond(below_NT) + options.band_high_weight * _beyond(above_NT)
    return Losses(
        -mean(gain_NT, micro.policy_NT, over.policy),
        mean(hinges_NT, micro.band_NT, over.band),
        options.kl_weight * mean(trained.kl_NT, micro.policy_NT, over.kl),
    )


def _beyond(hinge_NT: Tensor) -> Tensor:
    """0 for a token on its bound up to rounding. A quantile is often some token's own entropy, and the last bit of
    another batch or rank would otherwise decide whether that token gets the hinge's whole slope or none."""
    return hinge_NT.where(hinge_NT > ON_THE_BOUND, 0.0)


def _drawn_k3(log_probs_SV: Tensor, reference_SV: Tensor, target_S: Tensor) -> Tensor:
    drawn, anchor = (x.gather(-1, target_S[:, None])[:, 0] for x in (log_probs_SV, reference_SV))
    return terms.kl_k3(drawn, anchor)


def _exact(log_probs_SV: Tensor, reference_SV: Tensor, target_S: Tensor) -> Tensor:
    return terms.kl_exact(log_probs_SV, reference_SV)


DIVERGENCES: dict[str, Divergence | None] = {"none": None, "k3": _drawn_k3, "exact": _exact}
