"""Rollouts that grow from others in vLLM, which gives no entropies, and questions in several wordings."""

from __future__ import annotations

from vllm_policies import EXACT, gap, mixed, needs_vllm, sample, sampler_of

from mm_spine.config import RegenerateConfig
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling.growing import special_ids
from mm_spine.sampling.regenerate import RegeneratingSampler
from mm_spine.sampling.tree import fork_places
from mm_spine.sampling.wordings import WordingSampler, worded

WORDINGS = ("Look: {question}",)


@needs_vllm
def test_continuations_begin_where_the_policy_is_unsure(policy: Policy) -> None:
    """By the exact entropies of a forward; every rollout is the policy's, and has no entropies of vLLM's."""
    questions, sampler = mixed(3), sampler_of(policy, max_new_tokens=16)
    options = RegenerateConfig(candidates=2, least_characters=1)
    rollouts = sample(RegeneratingSampler(sampler, options), questions, 8)
    assert gap(sampler, questions, rollouts) < EXACT
    for question, row in zip(questions, rollouts, strict=True):
        roots = [row[0], row[4]]
        (scores,) = score_responses(policy, [(question, [root.token_ids for root in roots])], sampler.distribution)
        for root, score in zip(roots, scores, strict=True):
            short = {t for t in root.token_ids if not policy.tokenizer.decode([t]).strip()}
            ranked = fork_places(root.token_ids, score.entropy, len(root.token_ids), special_ids(policy) | short)
            continued = row[root.index + 1 : root.index + 4]
            best = [at for at in ranked if at > 0][:2]
            assert len({r.fork_at for r in continued}) == 1 and {r.fork_at for r in continued} <= set(best)
            assert all(r.token_ids[: r.fork_at] == root.token_ids[: r.fork_at] for r in continued)
    assert all(r.entropy is None for row in rollouts for r in row)


@needs_vllm
def test_wordings_are_asked_in_one_phase(policy: Policy) -> None:
    questions, sampler = mixed(2), sampler_of(policy)
    asked = [worded(question, WORDINGS, 1) for question in questions]
    rollouts = sample(WordingSampler(sampler, WORDINGS), questions, 4)
    assert gap(sampler, questions, [row[::2] for row in rollouts]) < EXACT
    assert gap(sampler, asked, [row[1::2] for row in rollouts]) < EXACT
    alone = sample(sampler, asked, 2)
    assert [[r.token_ids for r in row[1::2]] for row in rollouts] == [[r.token_ids for r in row] for row in alone]
