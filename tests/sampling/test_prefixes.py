"""Completions of a prefix, and first tokens that are barred."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hf_rollouts import (
    BOUNDARY,
    complete,
    ending,
    mixed,
    sample,
    spied_shapes,
)
from tiny import END, entropy, plain_log_probs, tiny_model, tiny_policy, tiny_questions

from mm_spine.draws import uniforms
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.batch import longest
from mm_spine.types import Rollout


def assert_is_the_rest(completion: Completion, rollout: Rollout, at: int) -> None:
    assert completion.token_ids == rollout.token_ids[at:]
    assert completion.finish_reason == rollout.finish_reason
    np.testing.assert_allclose(completion.logp, rollout.logp[at:], atol=1e-5)
    np.testing.assert_allclose(completion.entropy, rollout.entropy[at:], atol=1e-5)


@pytest.mark.parametrize("batch_rows", [7, 512])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_response_cut_anywhere_and_continued_is_itself(greedy: bool, batch_rows: int) -> None:
    """Prefixes of many lengths, none, whole and ended ones, in one call and in no order of question."""
    policy, questions = ending(), mixed()
    drawn = sample(policy, questions, 3, greedy=greedy)
    cuts = [(q, r, at) for at in (3, 0, 12, 1, 7) for q, row in zip(questions, drawn, strict=True) for r in row]
    requests = [Request(q, r.index, r.token_ids[:at]) for q, r, at in cuts]
    for completion, (_, rollout, at) in zip(
        complete(policy, requests, greedy=greedy, batch_rows=batch_rows), cuts, strict=True
    ):
        assert_is_the_rest(completion, rollout, at)


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2", "qwen3"])
def test_what_follows_a_prefix_is_that_of_the_plain_forward(kind: str) -> None:
    policy, plain = tiny_policy(1, kind=kind), tiny_model(1, kind=kind)
    questions = tiny_questions(3, 2 if kind.endswith("vl") else 0, side=32)
    prefixes = [(), (5, 6, 7), (5, 6), (9,), (5, 6, 7, 8)]
    requests = [Request(q, i, prefix) for q in questions for i, prefix in enumerate(prefixes)]
    for request, completion in zip(requests, complete(policy, requests, temperature=0.6), strict=True):
        start, tokens = len(request.prefix), (*request.prefix, *completion.token_ids)
        assert len(completion.token_ids) == 12 - start or completion.token_ids[-1] == END
        with torch.no_grad():
            log_probs = plain_log_probs(plain, request.question, tokens, 0.6)[start:]
        drawn = log_probs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(completion.logp, drawn.numpy(), atol=1e-4)
        np.testing.assert_allclose(completion.entropy, entropy(log_probs).numpy(), atol=1e-4)


def test_a_prefix_that_has_ended_or_is_full_has_nothing_to_follow() -> None:
    policy, question = tiny_policy(), mixed(1)[0]
    full, over = tuple(range(1, 13)), tuple(range(1, 16))
    requests = [Request(question, 0, (5, END)), Request(question, 1, full), Request(question, 2, over)]
    empty = complete(policy, requests)
    assert [c.finish_reason for c in empty] == ["stop", "length", "length"]
    assert all(c.token_ids == () and c.logp.shape == c.entropy.shape == (0,) for c in empty)
    alone = complete(policy, [Request(question, 3)])
    assert [c.token_ids for c in complete(policy, [requests[0], Request(question, 3)])] == [(), alone[0].token_ids]
    assert complete(policy, []) == []


def test_forks_of_one_response_cost_one_prefill_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, questions = ending(ends=[]), mixed()[2:4]
    shapes = spied_shapes(policy, monkeypatch)
    root, other = tuple(range(1, 9)), (1, 2, 99, 4, 5)
    prefixes = [root[:3], root, root[:5], other, (), root]
    complete(policy, [Request(q, i, prefix) for q in questions for i, prefix in enumerate(prefixes)])
    lengths = [len(policy.prompt(q).ids_L) for q in questions]
    assert shapes[0] == (2, max(lengths)), "each prompt once"
    assert shapes[1] == (4, len(root)), "of each question its two longest prefixes, once"
    assert shapes[2:] and {length for _, length in shapes[2:]} == {1}


def test_the_longest_prefixes_cover_the_others() -> None:
    rng = np.random.default_rng(0)
    prefixes = [tuple(rng.integers(0, 3, rng.integers(1, 6)).tolist()) for _ in range(200)]
    cover = longest(prefixes)
    assert set(cover) == set(prefixes)
    for prefix, long in cover.items():
        assert long in cover and long[: len(prefix)] == prefix
        assert not any(len(other) > len(long) and other[: len(long)] == long for other in prefixes)


@pytest.mark.parametrize("greedy", [False, True])
def test_barred_tokens_are_never_first_and_the_rest_share_their_probability(greedy: bool) -> None:
    """The inverse of the renormalised cumulative distribution at the request's own draw; the log-prob is pi's."""
    policy, plain, question = tiny_policy(), tiny_model(), mixed(2)[1]
    prefix = (5, 6)
    with torch.no_grad():
        log_pi = plain_log_probs(plain, question, (*prefix, 0), 1.0)[-1]
    likely = log_pi.argsort(descending=True)[:3].tolist()
    barred = {token: float(log_pi[token]) for token in likely}
    requests = [Request(question, i, prefix, barred if i % 2 else {}) for i in range(60)]
    left = log_pi.double().exp().index_fill(0, torch.tensor(likely), 0.0)
    edges = (left / left.sum()).cumsum(0)
    for request, completion in zip(requests, complete(policy, requests, greedy=greedy), strict=True):
        first = completion.token_ids[0]
        assert abs(completion.logp[0] - float(log_pi[first])) < 1e-4
        if request.barred:
            u = uniforms(12, 0, "test", 0, question.id, request.index)[2]
            expected = int(left.argmax()) if greedy else int(torch.searchsorted(edges, u, right=True))
            assert first == expected or float((edges - u).abs().min()) < BOUNDARY
    free = [c for r, c in zip(requests, complete(policy, requests, greedy=greedy), strict=True) if not r.barred]
    unbarred = complete(policy, [r for r in requests if not r.barred], greedy=greedy)
    assert [c.token_ids for c in free] == [c.token_ids for c in unbarred]


def test_a_token_is_barred_in_the_first_place_only() -> None:
    policy, question = tiny_policy(), mixed(1)[0]
    policy.text.language_model.norm.weight.data.mul_(0.0)  # uniform over what is not banned
    drawn = complete(policy, [Request(question, i, (), dict.fromkeys(range(200), -6.0)) for i in range(40)])
    assert min(c.token_ids[0] for c in drawn) >= 200
    assert min(t for c in drawn for t in c.token_ids[1:]) < 50
