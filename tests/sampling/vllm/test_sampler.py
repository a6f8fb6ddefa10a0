"""Rollouts of vLLM, against the trainer's own forward and the transformers sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from exactness import InDouble, assert_exact, double_of
from tiny import BANNED, END, TEMPERATURE, inputs, plain_log_probs, tiny_image, tiny_policy, tiny_questions
from vllm_policies import EXACT, KINDS, TOKEN_BYTES, disturb, gap, ids, mixed, needs_vllm, sample, sampler_of, sync

from mm_spine.config import ConfigError, LoraConfig, ModelConfig, RunStopped, TreeConfig
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.tree import TreeSampler
from mm_spine.sampling.vllm import engine as vllm_engine
from mm_spine.sampling.vllm import sampler as vllm_sampler
from mm_spine.sampling.vllm import weights as vllm_weights
from mm_spine.types import Question, Rollout

# Every engine takes seconds to start.
pytestmark = pytest.mark.slow


# --- the same policy --------------------------------------------------------------------------------------------------


@torch.no_grad()
def top_two_gap(sampler: Backend, question: Question, tokens: Sequence[int]) -> float:
    """How much likelier the likeliest token after `tokens` is than the second, in nats."""
    logits = sampler.policy.model(**inputs(question, tokens)).logits[0, -1]
    first, second = sampler.distribution.log_probs(logits).topk(2).values.tolist()
    return first - second


@needs_vllm
def test_greedy_responses_are_those_of_transformers(policy: Policy) -> None:
    """64 tokens on 20 image questions; they may part once, where two tokens are closer than the log-probs agree."""
    questions = tiny_questions(20)
    ours = sampler_of(policy, max_new_tokens=64)
    theirs = HFSampler(policy, ours.decoding)
    rows = [sample(sampler, questions, 1, greedy=True) for sampler in (ours, theirs)]
    difference = gap(ours, questions, rows[0])
    assert difference < EXACT
    parted = 0
    for question, [a], [b] in zip(questions, *rows, strict=True):
        assert len(a.token_ids) == 64 or a.finish_reason == "stop"
        if a.token_ids != b.token_ids:
            same = next(t for t, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y)
            assert top_two_gap(ours, question, a.token_ids[:same]) < 2 * difference
            parted += 1
        else:
            np.testing.assert_allclose(a.logp, b.logp, atol=EXACT)
    assert parted <= 1


@needs_vllm
def test_log_probs_are_the_trainers_after_each_of_twenty_updates(policy: Policy) -> None:
    """Both heads of a tied weight move, and no cache keeps what an older policy left in it."""
    questions, sampler = mixed(), sampler_of(policy)
    seen = []
    for step in range(21):
        rollouts = sample(sampler, questions, step=step)
        assert gap(sampler, questions, rollouts) < EXACT, step
        seen.append(rollouts[0][0].logp[0])
        disturb(policy, step)
        sync(sampler)
    assert len(set(seen)) == len(seen)


@needs_vllm
def test_the_gap_shows_one_weight_that_is_wrong_in_the_engine(policy: Policy) -> None:
    questions, sampler = mixed(3), sampler_of(policy)
    right = gap(sampler, questions, sample(sampler, questions))
    vllm_sampler._engines[policy]._llm.collective_rpc(corrupt)
    vllm_sampler._engines[policy]._llm.reset_prefix_cache()
    assert gap(sampler, questions, sample(sampler, questions)) > 100 * right


def corrupt(worker: Any) -> None:
    """One number of one layer's norm. (Matrices are packed for the CPU: what the parameter says is not read again.)"""
    weight = next(w for name, w in worker.get_model().named_parameters() if "post_attention_layernorm" in name)
    weight.data[0] += 3.0


@needs_vllm
def test_the_gap_shows_a_tied_head_left_behind(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    questions, sampler = mixed(3), sampler_of(policy)
    sample(sampler, questions)
    every = vllm_weights.served_weights

    def without_head(*arguments: Any, **how: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return (pair for pair in every(*arguments, **how) if pair[0] != "lm_head.weight")

    monkeypatch.setattr(vllm_engine, "served_weights", without_head)
    disturb(policy, 5, 0.1)
    sync(sampler)
    half = gap(sampler, questions, sample(sampler, questions))
    monkeypatch.undo()
    sync(sampler)
    assert gap(sampler, questions, sample(sampler, questions)) < EXACT < half


@needs_vllm
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_served(kind: str) -> None:
    policy = tiny_policy(2, kind=kind)
    questions = mixed() if kind.endswith("vl") else tiny_questions(4, 0)
    sampler = sampler_of(policy)
    for seed in range(2):
        assert gap(sampler, questions, sample(sampler, questions)) < EXACT
        disturb(policy, seed)
        sync(sampler)
    greedy, same = (sample(s, questions, 1, greedy=True) for s in (sampler, HFSampler(policy, sampler.decoding)))
    assert ids(greedy) == ids(same)


OTHERS = {
    "untied": {"tied": False},
    "lora": {"config": ModelConfig(train="lora", lora=LoraConfig(rank=2))},
    "merger": {"config": ModelConfig(train_merger=True)},
    "bfloat16": {},
}


@needs_vllm
@pytest.mark.parametrize("which", OTHERS)
def test_whatever_trains_is_served(which: str) -> None:
    """A head of its own, adapters merged into what they adapt, a merger that makes other features."""
    policy = tiny_policy(3, **OTHERS[which])
    if which == "bfloat16":
        policy.model.bfloat16()
    questions, sampler = mixed(), sampler_of(policy)
    before = sample(sampler, questions)
    disturb(policy, 0, 0.1)
    sync(sampler)
    for seed in (1, 2):
        after = sample(sampler, questions)
        if which == "bfloat16":
            assert gap(sampler, questions, after) < 0.5
        else:
            assert_served_exactly(policy, questions, after)
        assert ids(after) != ids(before)
        disturb(policy, seed)
        sync(sampler)


def assert_served_exactly(policy: Policy, questions: Sequence[Question], rollouts: Sequence[Sequence[Rollout]]) -> None:
    """vLLM's log-probs are as near to the plain forward in float64 as three times the plain forward in fp32 is."""
    pairs = [(question, r) for question, row in zip(questions, rollouts, strict=True) for r in row]

    @torch.no_grad()
    def log_probs(model: Any) -> list[torch.Tensor]:
        return [
            plain_log_probs(model, q, r.token_ids).gather(-1, torch.tensor(r.token_ids)[:, None])[:, 0]
            for q, r in pairs
        ]

    exact = double_of(policy.model)
    with InDouble():
        double = log_probs(exact)
    assert_exact([torch.from_numpy(r.logp) for _, r in pairs], log_probs(policy.model), double)


@needs_vllm
def test_a_new_sampler_takes_the_weights_as_they_are(policy: Policy) -> None:
    """Between the questions of a run with scope=question the weights are put back, and nobody syncs."""
    questions, start = mixed(3), policy.weights()
    first = sample(sampler_of(policy), questions)
    disturb(policy, 0, 0.1)
    assert ids(sample(sampler_of(policy), questions)) != ids(first)
    policy.restore(start)
    assert ids(sample(sampler_of(policy), questions)) == ids(first)


# --- what may be drawn ------------------------------------------------------------------------------------------------


@needs_vllm
@pytest.mark.parametrize(("temperature", "factor"), [(TEMPERATURE, 20), (2.0, 200)])
def test_vision_specials_are_never_drawn(policy: Policy, temperature: float, factor: float) -> None:
    with torch.no_grad():
        policy.text.head.weight[list(BANNED)] *= factor
    sampler, questions = sampler_of(policy, temperature=temperature), mixed(3)
    rollouts = sample(sampler, questions, 16)
    assert not {token for row in ids(rollouts) for tokens in row for token in tokens} & set(BANNED)
    with torch.no_grad():
        logits = policy.model(**inputs(questions[0], rollouts[0][0].token_ids)).logits[0]
    assert logits[-12:].softmax(-1)[:, list(BANNED)].sum(-1).mean() > 0.3
    assert gap(sampler, questions, rollouts) < EXACT


def test_a_temperature_that_vllm_does_not_take_is_named(policy: Policy) -> None:
    with pytest.raises(ConfigError, match="temperature=2.5: vLLM takes 2 at most; .* sampling.backend=hf"):
        sampler_of(policy, temperature=2.5)


@needs_vllm
def test_draws_do_not_depend_on_the_batch(policy: Policy) -> None:
    sampler, questions = sampler_of(policy), mixed()
    together = ids(sample(sampler, questions))
    assert ids(sample(sampler, questions[::-1])) == together[::-1]
    assert ids(sample(sampler, questions[:1], 1)) == [together[0][:1]]
    assert ids(sample(sampler, questions, 2, first=2)) == [row[2:] for row in together]
    alone = [[ids(sample(sampler, [q], 1, first=i))[0][0] for i in range(4)] for q in questions]
    assert alone == together


@needs_vllm
def test_more_prompts_than_one_forward_takes_draw_the_same(policy: Policy) -> None:
    """300 short prompts: what a forward has no room for is cut, and a cut prompt's draws begin where they would."""
    questions = [
        replace(question, id=f"many{i}", prompt=f"Which digit is number {i} of the row of numbers? Answer with one.")
        for i, question in enumerate(tiny_questions(300, 0))
    ]
    sampler = sampler_of(policy, max_new_tokens=2)
    assert sum(len(policy.prompt(question).ids_L) for question in questions) > 3 * 4096
    few = [row for at in range(0, 300, 30) for row in ids(sample(sampler, questions[at : at + 30], 1))]
    assert ids(sample(sampler, questions, 1)) == few


@needs_vllm
def test_preempted_responses_draw_the_same(served: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values for a few responses only, and forwards of 64 tokens: what is dropped is computed again in
    pieces."""
    usual = vllm_engine.VLLMEngine._settings

    def narrow(engine: Any, policy: Policy) -> dict[str, Any]:
        room = {"kv_cache_memory_bytes": 60 * vllm_engine.BLOCK * TOKEN_BYTES, "max_num_batched_tokens": 64}
        return {**usual(engine, policy), **room, "max_num_seqs": 64}

    monkeypatch.setattr(vllm_engine.VLLMEngine, "_settings", narrow)
    questions = mixed(12)
    ours = sampler_of(tiny_policy(1), max_new_tokens=40)
    drawn = sample(ours, questions, 6)
    assert vllm_sampler._engines[ours.policy].max_tokens == 512
    assert ids(drawn) == ids(sample(sampler_of(served, max_new_tokens=40), questions, 6))


@needs_vllm
def test_draws_depend_on_seed_purpose_step_and_index(policy: Policy) -> None:
    questions = mixed(1)
    ways = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    rows = [sample(sampler_of(policy, seed=s), questions, 3, purpose=p, step=t)[0] for s, p, t in ways]
    assert len({rollout.token_ids for row in rows for rollout in row}) == 3 * len(ways)


@needs_vllm
def test_a_nucleus_leaves_the_unlikely_out(policy: Policy) -> None:
    questions, sampler = mixed(2), sampler_of(policy, top_p=0.2, max_new_tokens=6)
    rollouts = sample(sampler, questions, 8)
    asked = [(question, [r.token_ids for r in row]) for question, row in zip(questions, rollouts, strict=True)]
    with torch.no_grad():
        scores = score_responses(policy, asked, sampler.distribution)
    wide = ids(sample(sampler_of(policy, max_new_tokens=6), questions, 8))
    assert len({r for row in ids(rollouts) for r in row}) < len({r for row in wide for r in row})
    assert np.mean([s.logp.mean() for own in scores for s in own]) > math.log(0.1)


@needs_vllm
def test_a_response_ends_at_any_end_token_and_keeps_it(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [END, *range(0, 400, 7)]
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", ends)
    (row,) = sample(sampler_of(policy, max_new_tokens=8), mixed(1), 32)
    for rollout in row:
        stopped = rollout.finish_reason == "stop"
        assert (rollout.token_ids[-1] in ends) == stopped
        assert not set(rollout.token_ids[:-1]) & set(ends)
        assert stopped or (rollout.finish_reason == "length" and len(rollout.token_ids) == 8)
        assert rollout.entropy is None
    assert {rollout.finish_reason for rollout in row} == {"stop", "length"}


# --- forks ------------------------------------------------------------------------------------------------------------


def complete(sampler: Backend, requests: Sequence[Request], **call: Any) -> list[Completion]:
    return sampler.complete(requests, **{"step": 0, "purpose": "test", **call})


@needs_vllm
@pytest.mark.parametrize("cut", [1, 13, 30])
def test_a_greedy_response_goes_on_from_its_own_beginning(policy: Policy, cut: int) -> None:
    questions, sampler = mixed(), sampler_of(policy, max_new_tokens=32)
    whole = [row[0] for row in sample(sampler, questions, 1, greedy=True)]
    rests = complete(
        sampler, [Request(q, 0, r.token_ids[:cut]) for q, r in zip(questions, whole, strict=True)], greedy=True
    )
    for rollout, rest in zip(whole, rests, strict=True):
        assert rest.token_ids == rollout.token_ids[cut:]
        np.testing.assert_allclose(rest.logp, rollout.logp[cut:], atol=EXACT)


@needs_vllm
def test_a_fork_draws_other_tokens_than_its_parent(policy: Policy) -> None:
    (question,), sampler = mixed(1), sampler_of(policy)
    root = sample(sampler, [question], 1)[0][0]
    branches = complete(sampler, [Request(question, i, root.token_ids[:4]) for i in range(8)])
    assert len({branch.token_ids for branch in branches}) > 4
    leaves = [
        replace(root, token_ids=root.token_ids[:4] + b.token_ids, logp=np.concatenate([root.logp[:4], b.logp]))
        for b in branches
    ]
    assert gap(sampler, [question], [leaves]) < EXACT
    assert all(len(leaf.token_ids) == 12 for leaf in leaves)


@needs_vllm
@pytest.mark.parametrize("greedy", [False, True])
def test_barred_tokens_are_not_drawn_first_and_log_probs_stay_the_policys(policy: Policy, greedy: bool) -> None:
    (question,), sampler = mixed(1), sampler_of(policy)
    prefix = sample(sampler, [question], 1, greedy=True)[0][0].token_ids[:3]
    with torch.no_grad():
        logits = policy.model(**inputs(question, prefix)).logits[0, -1]
    log_probs = sampler.distribution.log_probs(logits)
    likeliest = log_probs.topk(3).indices.tolist()
    barred = {token: float(log_probs[token]) for token in likeliest}
    requests = [Request(question, i, prefix, barred) for i in range(16)]
    drawn = complete(sampler, requests, greedy=greedy)
    for completion in drawn:
        assert completion.token_ids[0] not in barred
        assert completion.logp[0] == pytest.approx(float(log_probs[completion.token_ids[0]]), abs=EXACT)
    leaves = [
        Rollout(question.id, 0, prefix + c.token_ids, "", np.concatenate([np.zeros(3), c.logp]), None, "")
        for c in drawn
    ]
    with torch.no_grad():
        (scores,) = score_responses(policy, [(question, [r.token_ids for r in leaves])], sampler.distribution)
    assert all(np.abs(s.logp - r.logp)[3:].max() < EXACT for s, r in zip(scores, leaves, strict=True))


@needs_vllm
def test_all_the_mass_may_be_barred(policy: Policy) -> None:
    """A token as good as certain: what is left is drawn, at a log-prob that is low and finite."""
    (drawn,) = complete(sampler_of(policy), [Request(mixed(1)[0], 0, (5, 6), {7: 0.0})])
    assert drawn.token_ids[0] != 7
    assert -100 < drawn.logp[0] < -16


@needs_vllm
@pytest.mark.parametrize("distinct", [False, True])
def test_trees_grow_in_vllm(policy: Policy, distinct: bool) -> None:
    """Forks by surprisal, from vLLM's own log-probs: every leaf is the policy's, and shares its root's beginning."""
    questions, sampler = mixed(3), sampler_of(policy)
    rollouts = sample(TreeSampler(sampler, TreeConfig(forks=2, branches=2, distinct=distinct)), questions, 10)
    assert gap(sampler, questions, rollouts) < EXACT
    for row in rollouts:
        branches = [leaf for leaf in row if leaf.parent is not None]
        assert len(branches) == 8
        for leaf in branches:
            shared = row[leaf.parent].token_ids[: leaf.fork_at]
            assert leaf.token_ids[: leaf.fork_at] == shared
            assert not distinct or leaf.token_ids[leaf.fork_at] != row[leaf.parent].token_ids[leaf.fork_at]


@needs_vllm
def test_a_prefix_that_has_ended_or_is_full_gets_nothing(policy: Policy) -> None:
    (question,), sampler = mixed(1), sampler_of(policy, max_new_tokens=4)
    requests = [Request(question, 0, (5, tiny.END)), Request(question, 0, (5,) * 4), Request(question, 0, (5,))]
    ended, full, going = complete(sampler, requests)
    assert (ended.token_ids, ended.finish_reason) == ((), "stop")
    assert (full.token_ids, full.finish_reason) == ((), "length")
    assert 1 <= len(going.token_ids) <= 3


# --- prompts ----------------------------------------------------------------------------------------------------------


@needs_vllm
def test_another_image_gives_another_distribution(policy: Policy) -> None:
    """Two images of one size under one prompt and one id: nothing is taken from the other's cache."""
    one, other = (
        Question("same", (tiny_image(seed).resize((84, 56)),), "Which digit?", mixed(1)[0].spec) for seed in (1, 2)
    )
    sampler = sampler_of(policy)
    rows = [sample(sampler, [question]) for question in (one, other, one)]
    assert np.abs(rows[0][0][0].logp[:1] - rows[1][0][0].logp[:1]).max() > 1e-3
    assert ids(rows[2]) == ids(rows[0])
    assert gap(sampler, [one], rows[0]) < EXACT
    assert gap(sampler, [other], rows[1]) < EXACT


@needs_vllm
def test_the_tower_runs_once_per_image(policy: Policy) -> None:
    questions = [replace(q, images=(tiny_image(5000 + i), tiny_image(5010 + i))) for i, q in enumerate(mixed(3))]
    before = policy.images.tower_runs
    sampler = sampler_of(policy)
    sample(sampler, questions, 8)
    sync(sampler)
    sample(sampler, questions, 8)
    assert policy.images.tower_runs - before == 6


@needs_vllm
def test_a_question_longer_than_the_context_is_skipped_and_named(policy: Policy) -> None:
    long = replace(tiny_questions(1)[0], id="long", prompt="Which digit? " * 300)
    rollouts = sample(sampler_of(policy), [*mixed(1), long])
    assert [len(row) for row in rollouts] == [4, 0]
    assert "context" in policy.skipped["long"]


@needs_vllm
def test_a_cache_too_small_for_a_question_is_named(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(sampler_of(policy), mixed(1))
    monkeypatch.setattr(vllm_engine.VLLMEngine, "max_tokens", 20)
    with pytest.raises(RunStopped, match="q0: .* do not fit .* holds 20; raise sampling.vllm.kv_cache_gb"):
        sample(sampler_of(policy), mixed(1))


@needs_vllm
def test_heads_that_vllm_cannot_compute_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tiny.TINY_CONFIGS["qwen2_5_vl"].keywords["usual"]
    monkeypatch.setitem(tiny.TINY_CONFIGS, "qwen2_5_vl", usual)
    with pytest.raises(ConfigError, match="heads are 16 wide.* use sampling.backend=hf"):
        sample(sampler_of(tiny_policy()), mixed(1))
