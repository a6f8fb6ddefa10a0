"""Check that two backends are the same policy: their greedy responses, and log-probs after updates and syncs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from drawn import logprob_gap

from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling import Sampler
from mm_spine.types import Question, Rollout

UPDATE = 1e-3
"""Standard deviation of the noise of one update, in units of each tensor's own."""


def greedy_differences(
    policy: Policy, questions: Sequence[Question], one: Sampler, other: Sampler, limit: float
) -> tuple[int, int]:
    """(questions whose greedy responses differ, those of them where the policy is not level between the two tokens).

    Level: their log-probs at the first difference are less than `limit` (nats) apart, by the trainer's own forward.
    """
    first, second = (s.sample(questions, 1, step=0, purpose="greedy", greedy=True) for s in (one, other))
    apart = [_apart(policy, q, a[0], b[0]) for q, a, b in zip(questions, first, second, strict=True)]
    differing = [gap for gap in apart if gap is not None]
    return len(differing), sum(gap >= limit for gap in differing)


def _apart(policy: Policy, question: Question, a: Rollout, b: Rollout) -> float | None:
    """Return the nats between the first two tokens that differ; None if the responses are the same."""
    if a.token_ids == b.token_ids:
        return None
    at = next((t for t, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), None)
    if at is None:
        return float("inf")  # one ends where the other goes on
    distribution = Distribution(1.0, policy.banned)
    first, second = score_responses(policy, [(question, [a.token_ids, b.token_ids])], distribution)[0]
    return float(np.abs(first.logp[at] - second.logp[at]))


def gap_after_updates(
    policy: Policy, questions: Sequence[Question], sampler: Sampler, rounds: int, rollouts: int = 2
) -> float:
    """Return the largest log-prob gap (nats) of sampler and trainer over `rounds` of noisy updates and syncs."""
    return max(_round(policy, questions, sampler, rollouts, step) for step in range(rounds))


def _round(policy: Policy, questions: Sequence[Question], sampler: Sampler, rollouts: int, step: int) -> float:
    with torch.no_grad():
        random = torch.Generator(policy.device).manual_seed(step)
        for weight in policy.trainable().values():
            noise = torch.randn(weight.shape, generator=random, device=weight.device).to(weight.dtype)
            weight.add_(UPDATE * weight.std() * noise)
    sampler.sync(policy.trainable().items())
    return logprob_gap(policy, questions, sampler.sample(questions, rollouts, step=step, purpose="parity"))
