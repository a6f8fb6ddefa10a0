"""The figures of a step: its line in steps.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mm_spine import distributed
from mm_spine.config import MethodConfig
from mm_spine.methods.method import Batch
from mm_spine.methods.terms import clipped_share, truncated_ratio
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.model import Policy
from mm_spine.policy.text import Trained
from mm_spine.training.batch import MicroBatch
from mm_spine.training.loss import Losses
from mm_spine.training.parity import Gap, gap_of
from mm_spine.types import Group, StepReport


class Sums(NamedTuple):
    """Sums over the tokens of a micro-batch, to be added over micro-batches and ranks. `gap_max` is a maximum."""

    policy: float
    band: float
    kl: float
    tokens: float
    compared: float
    gap: float
    gap_max: float
    gap_kl: float
    clipped: float
    truncated: float
    chosen: float
    entropy: float
    weighted: float
    gap_kl2: float
    gap_signed: float
    gap_squared: float
    logp: float
    logp_squared: float
    gap_times_logp: float
    terms: np.ndarray

    def scaled(self, factor: float) -> Sums:
        """Return all sums times `factor`."""
        return Sums(*(factor * total for total in self))  # type: ignore[arg-type]  # an array times a number is an array


def sums_of(micro: MicroBatch, trained: Trained, parts: Losses, old_logp_NT: Tensor, options: MethodConfig) -> Sums:
    """Sum the figures of one micro-batch."""
    stats, weight_N1 = trained.stats, micro.weight_N[:, None]
    gap = gap_of(micro, stats)
    weighted_NT = stats.selected_NT.float() * weight_N1
    clipped_NT = clipped_share(stats.logp_NT, old_logp_NT, micro.advantage_NT, *micro.limits(options))

    def chosen(where_NT: Tensor) -> float:
        return float((where_NT & micro.policy_NT).float().mul(weight_N1).sum())

    truncated = 0.0
    if options.truncate is not None:
        truncated = chosen(truncated_ratio(old_logp_NT, micro.sampled_logp_NT, math.inf) > options.truncate)
    return Sums(
        policy=float(parts.policy.detach()),
        band=float(parts.band.detach()),
        kl=float(parts.kl.detach()),
        tokens=float(stats.selected_NT.sum()),
        compared=gap.tokens,
        gap=gap.total,
        gap_max=gap.most,
        gap_kl=gap.kl,
        clipped=chosen(clipped_NT),
        truncated=truncated,
        chosen=chosen(micro.policy_NT),
        entropy=float((stats.entropy_NT.detach() * weighted_NT).sum()),
        weighted=float(weighted_NT.sum()),
        gap_kl2=gap.kl2,
        gap_signed=gap.gap,
        gap_squared=gap.gap2,
        logp=gap.logp,
        logp_squared=gap.logp2,
        gap_times_logp=gap.cross,
        terms=np.array([float(term.detach()) for term in parts.terms]),
    )


def add_up(report: StepReport, parts: Sequence[Sums], names: Sequence[str] = (), truncates: bool = False) -> Gap:
    """Fill in losses and clipping from all micro-batches and ranks. Returns the gap over the tokens trained.

    `names` are those of the further terms; `truncates` says whether importance weights are truncated.
    """
    total = Sums(*map(sum, zip(*parts, strict=True)))  # type: ignore[arg-type]  # sums of arrays are arrays
    report.loss_policy, report.loss_band, report.loss_kl = total.policy, total.band, total.kl
    report.loss = total.policy + total.band + total.kl + float(np.sum(total.terms))
    if names:
        report.loss_terms = dict(zip(names, total.terms.tolist(), strict=True))
    report.ratio_clipped = total.clipped / max(total.chosen, 1)
    if truncates:
        report.ratio_truncated = total.truncated / max(total.chosen, 1)
    report.tokens_trained = int(total.tokens)
    # Where sampler and scoring gave no entropies, those of the tokens trained are all that is known.
    # The first epoch's forward is of the policy that sampled.
    if report.entropy_mean is None and total.weighted:
        report.entropy_mean = report.entropy_forks = total.entropy / total.weighted
    moments = total.gap_kl2, total.gap_signed, total.gap_squared, total.logp, total.logp_squared, total.gap_times_logp
    return Gap(total.compared, total.gap, total.gap_kl, max(part.gap_max for part in parts), *moments)


def describe(
    report: StepReport,
    voted: Sequence[Group],
    groups: Sequence[Group],
    tokens: Sequence[Sequence[Tokens]],
    most_votes: int,
) -> None:
    """Fill in the figures of the rollouts: votes over all `voted` ones, masks and entropies over the kept `groups`.

    Shares of votes are of the rollouts drawn, which an early stop makes fewer than `most_votes`. A rollout of `weight`
    k counts k times in the shares of responses.
    """
    if not voted:
        return
    sampled = [rollout for group in voted for rollout in group.rollouts]
    pairs = [pair for group in voted for pair in zip(group.rollouts, group.parsed, strict=True)]
    copies = [pair for pair in pairs for _ in range(pair[0].weight)]
    flat = [chosen for group in tokens for chosen in group]
    # There are no groups where the votes of all questions are outside `sampling.votes.keep`.
    selected = torch.cat([torch.zeros(0, dtype=torch.bool), *(t.policy_T for t in flat)]).numpy()
    report.majority_share = float(np.mean([group.vote.share for group in voted]))
    report.margin = float(np.mean([group.vote.margin for group in voted]))
    report.unparsed = float(np.mean([answer is None for _, answer in copies]))
    report.unanimous = float(np.mean([group.vote.share == 1.0 for group in voted]))
    report.ties = float(np.mean([group.vote.tied for group in voted]))
    report.cut_off = float(np.mean([rollout.finish_reason == "length" for rollout, _ in copies]))
    report.length_mean = float(np.mean([len(r.token_ids) for r in sampled]))
    report.selected_share = _mean(selected)
    report.rollouts_sampled = sum(_votes(group) for group in voted)
    report.tokens_sampled = sum(r.own_tokens for r in sampled)
    report.tokens_saved = sum(tokens_saved(group, most_votes) for group in voted)
    if any(group.measured is not None for group in groups):
        report.reward_mean = float(torch.cat([group.rewards for group in groups if group.rewards is not None]).mean())
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    entropies = [rollout.entropy for rollout in rollouts if rollout.entropy is not None]
    if rollouts and len(entropies) == len(rollouts):
        entropy = np.concatenate(entropies)
        report.entropy_mean = _mean(entropy)
        report.entropy_forks = _mean(entropy[selected])
        _describe_band(report, entropy, flat)


def without_replayed(batch: Batch, tokens: Sequence[Sequence[Tokens]]) -> tuple[Batch, list[list[Tokens]], int]:
    """Return the batch and its tokens without the rollouts of earlier steps, and how many of these there were."""
    groups, kept = [], []
    for group, chosen in zip(batch.groups, tokens, strict=True):
        own = [i for i, rollout in enumerate(group.rollouts) if not rollout.replayed]
        groups.append(group.at(own))
        kept.append([chosen[i] for i in own])
    count = sum(len(group.rollouts) for group in batch.groups) - sum(map(len, kept))
    return batch._replace(groups=groups), kept, count


def encodes_saved(policy: Policy, groups: Sequence[Group]) -> int:
    """Count the image encodes that one tower run per rollout would have added to one per distinct image."""
    share = [(policy.prompt(group.question).image_keys, len(group.rollouts)) for group in distributed.mine(groups)]
    used = distributed.gather(share)
    distinct = {key for keys, _ in used for key in keys}
    return sum(len(keys) * rollouts for keys, rollouts in used) - len(distinct)


def tokens_saved(group: Group, most_votes: int) -> int:
    """Count the tokens of one question that were not drawn: prefixes that branches share, and votes that stopped early.

    The second part is an estimate: the rollouts not drawn, each as long as the mean of those drawn.
    """
    drawn = sum(r.own_tokens for r in group.rollouts)
    spared = (most_votes - _votes(group)) * drawn / max(len(group.rollouts), 1)
    return sum(r.fork_at or 0 for r in group.rollouts) + round(spared)


def _votes(group: Group) -> int:
    return sum(rollout.weight for rollout in group.rollouts)


def _mean(values: np.ndarray) -> float:
    # Responses may all be empty, and JSON has no nan.
    return float(values.mean()) if len(values) else 0.0


def _describe_band(report: StepReport, entropy: np.ndarray, flat: Sequence[Tokens]) -> None:
    forks = torch.cat([t.band_T for t in flat]).numpy()
    if flat[0].bounds is None or not forks.any():
        return
    low, high = (
        np.concatenate([np.full(len(t.band_T), float(t.bounds[side])) for t in flat if t.bounds is not None])
        for side in (0, 1)
    )
    report.band_low, report.band_high = float(low[forks].mean()), float(high[forks].mean())
    report.share_below = float((entropy[forks] < low[forks]).mean())
    report.share_above = float((entropy[forks] > high[forks]).mean())
