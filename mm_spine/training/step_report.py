"""What a step was like: the figures of its line in steps.jsonl."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods.terms import clipped_share
from mm_spine.policy.text import Trained
from mm_spine.training.update import Gap, Losses, MicroBatch, Tokens, gap_of
from mm_spine.types import Group, StepReport


def sums(
    micro: MicroBatch, trained: Trained, parts: Losses, old_logp_NT: Tensor, options: MethodConfig
) -> dict[str, float]:
    """Sums over this micro-batch's tokens, to be added over micro-batches and ranks."""
    stats = trained.stats
    mask, weight = stats.selected_NT, micro.weight_N[:, None]
    gap = gap_of(micro, stats)
    clipped = clipped_share(stats.logp_NT, old_logp_NT, micro.advantage_N1, options.clip_low, options.clip_high)
    return {
        "policy": float(parts.policy.detach()),
        "band": float(parts.band.detach()),
        "kl": float(parts.kl.detach()),
        "tokens": float(mask.sum()),
        "gap": gap.total,
        "gap_max": gap.most,
        "gap_kl": gap.kl,
        "clipped": float((clipped & micro.policy_NT).float().mul(weight).sum()),
        "chosen": float(micro.policy_NT.float().mul(weight).sum()),
    }


def add_up(report: StepReport, parts: Sequence[dict[str, float]]) -> Gap:
    """Fill in losses and clipping from all micro-batches and ranks. Returns the gap over the tokens trained."""
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    report.loss_policy, report.loss_band, report.loss_kl = total["policy"], total["band"], total["kl"]
    report.loss = total["policy"] + total["band"] + total["kl"]
    report.ratio_clipped = total["clipped"] / max(total["chosen"], 1)
    report.tokens_trained = int(total["tokens"])
    return Gap(total["tokens"], total["gap"], total["gap_kl"], max(part["gap_max"] for part in parts))


def describe_gap(report: StepReport, gap: Gap) -> None:
    """Fill in how far sampler and trainer are apart: mean, largest, KL."""
    tokens = max(gap.tokens, 1)
    report.parity_mean, report.parity_max, report.parity_kl = gap.total / tokens, gap.most, gap.kl / tokens


def describe(
    report: StepReport,
    voted: Sequence[Group],
    groups: Sequence[Group],
    tokens: Sequence[Sequence[Tokens]],
    most_votes: int,
) -> None:
    """Fill in what the rollouts say: votes over all of them, masks and entropies over the kept ones.

    Shares of votes are of the rollouts taken, where a question may have fewer than `most_votes`.
    """
    if not voted:
        return
    everyone = [rollout for group in voted for rollout in group.rollouts]
    entropy = np.concatenate([r.entropy for group in groups for r in group.rollouts])
    flat = [chosen for group in tokens for chosen in group]
    selected = torch.cat([t.policy_T for t in flat]).numpy()
    report.majority_share = float(np.mean([group.vote.share for group in voted]))
    report.margin = float(np.mean([group.vote.margin for group in voted]))
    report.unparsed = float(np.mean([answer is None for group in voted for answer in group.answers]))
    report.unanimous = float(np.mean([group.vote.share == 1.0 for group in voted]))
    report.length_mean = float(np.mean([len(r.token_ids) for r in everyone]))
    report.entropy_mean = _mean(entropy)
    report.entropy_forks = _mean(entropy[selected])
    report.selected_share = _mean(selected)
    report.rollouts_sampled = sum(_cast(group) for group in voted)
    report.tokens_sampled = sum(r.own_tokens for r in everyone)
    report.tokens_saved = sum(tokens_saved(group, most_votes) for group in voted)
    _describe_band(report, entropy, flat)


def tokens_saved(group: Group, most_votes: int) -> int:
    """Tokens that one question's rollouts did without: prefixes that branches share, and votes that stopped early.

    The second is an estimate: the rollouts not drawn, each as long as the mean of what was drawn for this question.
    """
    drawn = sum(r.own_tokens for r in group.rollouts)
    spared = (most_votes - _cast(group)) * drawn / max(len(group.rollouts), 1)
    return sum(r.fork_at or 0 for r in group.rollouts) + round(spared)


def _cast(group: Group) -> int:
    return sum(rollout.weight for rollout in group.rollouts)


def _mean(values: np.ndarray) -> float:
    """0 of nothing: responses may all be empty, and a file of JSON holds no nan."""
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
