"""The transformers sampler against plain forwards, transformers' own greedy search, and the distribution it claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BANNED, END, entropy, inputs, plain_log_probs, tiny_model, tiny_policy, tiny_questions
from torch import Tensor

from mm_spine.config import DecodingConfig, LoraConfig, ModelConfig
from mm_spine.draws import uniforms
from mm_spine.policy import kernels
from mm_spine.policy.model import Policy
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.batch import Batch, longest
from mm_spine.sampling.hf import HFSampler, _choose
from mm_spine.sampling.kv_cache import Sharing, held_tokens, token_bytes
from mm_spine.types import Question, Rollout

MANY_ENDS = [END, *range(0, 400, 7)]
BOUNDARY = 1e-5


def mixed(count: int = 6) -> list[Question]:
    """Questions with one, three and no images, hence prompts of different lengths, in no order of length."""
    return [tiny_questions(i + 1, (1, 3, 0)[i % 3])[i] for i in range(count)]


def sample(policy: Policy, questions: Sequence[Question], n: int = 4, **changes: Any) -> list[list[Rollout]]:
    """Rollouts; `changes` of seed, step, purpose, greedy, and of the decoding."""
    call = {"step": 0, "purpose": "test", "greedy": False} | {
        key: changes.pop(key) for key in ("step", "purpose", "greedy") if key in changes
    }
    seed = changes.pop("seed", 0)
    sampler = HFSampler(policy, DecodingConfig(**{"max_new_tokens": 12, **changes}), seed)
    return sampler.sample(questions, n, **call)


def ending(seed: int = 0, ends: Sequence[int] = MANY_ENDS) -> Policy:
    """A policy that ends at many tokens, so that its rollouts have many lengths."""
    policy = tiny_policy(seed)
    policy.model.generation_config.eos_token_id = list(ends)
    return policy


def ids(rollouts: Sequence[Sequence[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in row] for row in rollouts]


# --- what is reported of a rollout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("batch_rows", [1, 512])
def test_log_probs_and_entropies_are_those_of_the_plain_forward(temperature: float, batch_rows: int) -> None:
    policy, plain, questions = ending(1), tiny_model(1), mixed()
    assert len({len(policy.prompt(q).ids_L) for q in questions}) > 3
    for question, row in zip(
        questions, sample(policy, questions, 3, temperature=temperature, batch_rows=batch_rows), strict=True
    ):
        assert [rollout.index for rollout in row] == [0, 1, 2]
        for rollout in row:
            with torch.no_grad():
                log_probs = plain_log_probs(plain, question, rollout.token_ids, temperature)
            drawn = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            assert rollout.logp.dtype == rollout.entropy.dtype == np.float32
            np.testing.assert_allclose(rollout.logp, drawn.numpy(), atol=1e-4)
            np.testing.assert_allclose(rollout.entropy, entropy(log_probs).numpy(), atol=1e-4)


def test_a_lora_policy_samples_from_its_adapters() -> None:
    policy = tiny_policy(1, ModelConfig(train="lora", lora=LoraConfig(rank=2)))
    question = mixed(1)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter += 0.2 if "lora_B" in name else 0.0
    (rollout,) = sample(policy, question, 1)[0]
    with torch.no_grad():
        log_probs = plain_log_probs(policy.model, question[0], rollout.token_ids, 1.0)
        start = plain_log_probs(tiny_model(1), question[0], rollout.token_ids, 1.0)
    drawn = torch.tensor(rollout.token_ids)[:, None]
    np.testing.assert_allclose(rollout.logp, log_probs.gather(-1, drawn)[:, 0].numpy(), atol=1e-4)
    assert np.abs(rollout.logp - start.gather(-1, drawn)[:, 0].numpy()).max() > 0.01


def test_the_sampler_reads_the_weights_as_they_are_now() -> None:
    policy, questions = tiny_policy(1), mixed(2)
    sampler = HFSampler(policy, DecodingConfig(max_new_tokens=6))
    first = sampler.sample(questions, 4, step=0, purpose="test")
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.3)
    second = sampler.sample(questions, 4, step=0, purpose="test")
    fresh = HFSampler(policy, DecodingConfig(max_new_tokens=6)).sample(questions, 4, step=0, purpose="test")
    assert ids(second) == ids(fresh) != ids(first)


def test_finish_reason_end_token_and_length_limit() -> None:
    rollouts = [r for row in sample(ending(), mixed(), 16, max_new_tokens=9) for r in row]
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    assert len({len(r.token_ids) for r in rollouts}) > 4
    for rollout in rollouts:
        ends = [t in MANY_ENDS for t in rollout.token_ids]
        assert sum(ends[:-1]) == 0
        assert rollout.finish_reason == ("stop" if ends[-1] else "length")
        assert len(rollout.token_ids) == 9 or ends[-1]
        assert len(rollout.logp) == len(rollout.entropy) == len(rollout.token_ids)


def test_an_end_token_in_the_last_place_is_a_stop() -> None:
    rollouts = [r for row in sample(ending(), mixed(), 16, max_new_tokens=1) for r in row]
    assert {len(r.token_ids) for r in rollouts} == {1}
    assert {(r.token_ids[0] in MANY_ENDS, r.finish_reason) for r in rollouts} == {(True, "stop"), (False, "length")}


def test_text_is_the_decoded_response_without_special_tokens() -> None:
    policy = ending(ends=[END])
    policy.text.language_model.norm.weight.data.mul_(0.0)  # uniform: the end token comes at random
    rollouts = [r for row in sample(policy, mixed(2), 200, max_new_tokens=4) for r in row]
    stopped = [r for r in rollouts if r.finish_reason == "stop"]
    assert stopped and all(r.token_ids[-1] == END for r in stopped)
    for rollout in rollouts:
        assert rollout.text == policy.tokenizer.decode(list(rollout.token_ids), skip_special_tokens=True)
        assert "<|im_end|>" not in rollout.text


def test_a_model_without_an_end_token_runs_to_the_limit() -> None:
    policy = tiny_policy()
    policy.model.generation_config.eos_token_id = None
    assert {(len(r.token_ids), r.finish_reason) for row in sample(policy, mixed(3), 2) for r in row} == {(12, "length")}


# --- greedy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_is_transformers_own_greedy_search(seed: int) -> None:
    policy, plain, questions = ending(seed), tiny_model(seed), mixed()
    plain.generation_config.eos_token_id = MANY_ENDS
    for question, row in zip(questions, sample(policy, questions, 2, greedy=True, max_new_tokens=16), strict=True):
        prompt = inputs(question, ())
        found = plain.generate(**prompt, do_sample=False, max_new_tokens=16, suppress_tokens=list(BANNED))
        expected = tuple(found[0, prompt["input_ids"].shape[1] :].tolist())
        assert [r.token_ids for r in row] == [expected, expected]


# --- vision specials --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greedy", [False, True])
def test_vision_specials_are_never_drawn_however_likely(greedy: bool) -> None:
    policy, questions = tiny_policy(0, tied=False), mixed(3)
    with torch.no_grad():
        policy.text.head.weight[list(BANNED[:3])] *= 1e4
        policy.text.head.weight[list(BANNED[3:])] *= -1e4
        prompt = inputs(questions[0], ())
        assert int(policy.model(**prompt).logits[0, -1].argmax()) in BANNED
    rollouts = [r for row in sample(policy, questions, 32, greedy=greedy) for r in row]
    assert not {t for r in rollouts for t in r.token_ids} & set(BANNED)
    assert all(np.isfinite(r.logp).all() and np.isfinite(r.entropy).all() for r in rollouts)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_draw_at_either_end_of_the_interval_is_a_token_of_positive_probability(uniform: float) -> None:
    logits = torch.randn(64, 423, generator=torch.Generator().manual_seed(0)).index_fill(
        -1, torch.tensor([0, 1, *BANNED]), -torch.inf
    )
    for top_p in (1.0, 0.9):
        token = _choose(logits.log_softmax(-1), torch.full((64,), uniform).double(), DecodingConfig(top_p=top_p))
        assert not set(token.tolist()) & {0, 1, *BANNED}


# --- independence of draws --------------------------------------------------------------------------------------------


def assert_same_but_at_boundaries(policy: Policy, questions: Sequence[Question], pairs: Any, **draw: Any) -> None:
    """Equal tokens, or a first difference whose uniform lies within 1e-5 of a boundary between two tokens."""
    for question, (left, right) in zip(questions, pairs, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a.index == b.index
            if a.token_ids != b.token_ids:
                assert_at_boundary(policy, question, a, b)
            else:
                np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
                np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-5)


def assert_at_boundary(policy: Policy, question: Question, a: Rollout, b: Rollout) -> None:
    t = next(i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y)
    u = uniforms(12, 0, "test", 0, question.id, a.index)[t]
    with torch.no_grad():
        log_probs = plain_log_probs(policy.model, question, a.token_ids[: t + 1], 1.0)[-1]
    edges = log_probs.double().exp().cumsum(-1)
    assert float((edges - u * edges[-1]).abs().min()) < BOUNDARY, (question.id, a.index, t)


def test_rollouts_do_not_depend_on_order_batch_or_company() -> None:
    policy, questions = ending(), mixed()
    together = sample(policy, questions)
    backwards = sample(policy, questions[::-1])[::-1]
    alone = [sample(policy, [question])[0] for question in questions]
    in_pieces = sample(policy, questions, batch_rows=5)
    for other in (backwards, alone, in_pieces):
        assert_same_but_at_boundaries(policy, questions, zip(together, other, strict=True))
    again = sample(policy, questions)
    assert ids(again) == ids(together)
    assert all(
        np.array_equal(a.logp, b.logp) for x, y in zip(again, together, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_the_first_rollouts_do_not_depend_on_how_many_there_are() -> None:
    policy, questions = ending(), mixed()
    four, eight = sample(policy, questions, 4), sample(policy, questions, 8)
    assert_same_but_at_boundaries(policy, questions, [(a, b[:4]) for a, b in zip(four, eight, strict=True)])


def test_finished_rows_leave_the_others_as_they_are() -> None:
    """The same draws with and without early ends: each response is the longer one up to its end."""
    questions = mixed()
    short, full = sample(ending(), questions, 16), sample(ending(ends=[]), questions, 16)
    assert {len(r.token_ids) for row in full for r in row} == {12}
    assert len({len(r.token_ids) for row in short for r in row}) > 5
    for left, right in zip(short, full, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a.token_ids == b.token_ids[: len(a.token_ids)]
            np.testing.assert_allclose(a.logp, b.logp[: len(a.logp)], atol=1e-5)


def test_finished_rows_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ending(ends=range(0, 400, 3))
    sizes: list[int] = []
    forward = policy.text.language_model.forward
    monkeypatch.setattr(
        policy.text.language_model, "forward", lambda **k: sizes.append(len(k["inputs_embeds"])) or forward(**k)
    )
    sample(policy, mixed()[2:4], 32)
    assert sizes[0] == 2, "each prompt is run once, not once per rollout"
    assert sizes[1:] == sorted(sizes[1:], reverse=True) and sizes[-1] < 0.5 * sizes[1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}, {"purpose": "evaluate"}])
def test_seed_step_and_purpose_change_the_draws(change: dict[str, Any]) -> None:
    policy, questions = tiny_policy(), mixed(2)
    assert ids(sample(policy, questions)) != ids(sample(policy, questions, **change))


def test_rollouts_and_questions_have_draws_of_their_own() -> None:
    policy, question = tiny_policy(), mixed(1)[0]
    twin = Question("twin", question.images, question.prompt, question.spec)
    rows = ids(sample(policy, [question, twin], 8))
    assert len(set(rows[0])) == 8 and not set(rows[0]) & set(rows[1])


def test_sampling_neither_reads_nor_moves_the_global_random_state() -> None:
    policy, questions = tiny_policy(), mixed(2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(policy, questions)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert ids(sample(policy, questions)) == ids(first)


# --- the distribution -------------------------------------------------------------------------------------------------


def first_token_pi(policy: Policy, question: Question, temperature: float) -> Tensor:
    with torch.no_grad():
        return plain_log_probs(tiny_model(0), question, [0], temperature)[0].double().exp()


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_first_tokens_are_drawn_with_the_probabilities_of_pi(temperature: float) -> None:
    """Pearson's chi-square over the classes with at least 8 expected draws, the rest pooled: within 5 sigma."""
    policy, question, n = tiny_policy(), mixed(2)[1], 2000
    pi = first_token_pi(policy, question, temperature)
    drawn = [r.token_ids[0] for r in sample(policy, [question], n, max_new_tokens=1, temperature=temperature)[0]]
    counts = torch.bincount(torch.tensor(drawn), minlength=len(pi)).double()
    common = n * pi >= 8
    found, expected = (torch.cat([x[common], x[~common].sum()[None]]) for x in (counts, n * pi))
    freedom = int(common.sum())
    assert freedom > 10
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5, (statistic, freedom)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_evenly_spaced_draws_give_each_token_its_share(top_p: float) -> None:
    """The inverse of the cumulative distribution, exactly: counts over a grid of uniforms are N pi to within one."""
    grid = (torch.arange(20_000).double() + 0.5) / 20_000
    log_probs = (2 * torch.randn(30, generator=torch.Generator().manual_seed(0)).double()).log_softmax(-1)
    ranked, order = log_probs.exp().sort(descending=True)
    size = int((ranked.cumsum(-1) < top_p).sum()) + 1 if top_p < 1 else 30
    pi = torch.zeros(30).double().scatter(0, order[:size], ranked[:size] / ranked[:size].sum())
    token = _choose(log_probs.expand(20_000, -1), grid, DecodingConfig(top_p=top_p))
    assert (torch.bincount(token, minlength=30) - 20_000 * pi).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("top_p", [0.3, 0.8])
def test_top_p_never_leaves_the_nucleus_and_reaches_all_of_it(top_p: float) -> None:
    policy, question = tiny_policy(), mixed(2)[1]
    pi = first_token_pi(policy, question, 0.4)
    ranked, order = pi.sort(descending=True)
    size = int((ranked.cumsum(-1) < top_p).sum()) + 1
    nucleus = set(order[:size].tolist())
    rollouts = sample(policy, [question], 4000, max_new_tokens=1, temperature=0.4, top_p=top_p)[0]
    drawn = {r.token_ids[0] for r in rollouts}
    assert drawn <= nucleus
    assert len(drawn) > 0.9 * size if top_p == 0.3 else len(drawn) > 0.5 * size
    shares = np.mean([r.token_ids[0] == int(order[0]) for r in rollouts])
    assert abs(shares - float(ranked[0] / ranked[:size].sum())) < 0.04
    np.testing.assert_allclose(
        [r.logp[0] for r in rollouts[:50]], [float(pi[r.token_ids[0]].log()) for r in rollouts[:50]], atol=1e-4
    )


# --- prefixes ---------------------------------------------------------------------------------------------------------


def complete(policy: Policy, requests: Sequence[Request], **changes: Any) -> list[Completion]:
    """Completions with the draws of `sample`."""
    greedy = changes.pop("greedy", False)
    sampler = HFSampler(policy, DecodingConfig(**{"max_new_tokens": 12, **changes}))
    return sampler.complete(requests, step=0, purpose="test", greedy=greedy)


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


# --- barred first tokens ----------------------------------------------------------------------------------------------


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


def test_a_nucleus_is_that_of_the_tokens_that_are_not_barred() -> None:
    probs = torch.tensor([[0.6, 0.2, 0.15, 0.05]]).double()
    barred = probs.log().index_fill(-1, torch.tensor([0]), -torch.inf)
    drawn = [int(_choose(barred, torch.tensor([u]).double(), DecodingConfig(top_p=0.6))) for u in (0.0, 0.5, 0.6, 0.99)]
    assert drawn == [1, 1, 2, 2]


# --- continuous batching under a budget -------------------------------------------------------------------------------


def spied_shapes(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of each forward of the language model, as they come."""
    shapes: list[tuple[int, int]] = []
    forward = policy.text.language_model.forward

    def spy(**arguments: Any) -> Any:
        shapes.append(tuple(arguments["inputs_embeds"].shape[:2]))
        return forward(**arguments)

    monkeypatch.setattr(policy.text.language_model, "forward", spy)
    return shapes


def spied_holdings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(rows, prompts, bytes really held) at each step."""
    held: list[tuple[int, int, int]] = []
    record = Batch.record

    def spy(batch: Batch, *drawn: Any, **more: Any) -> None:
        tensors = [*batch.prompts.layers, *batch.responses.layers]
        assert batch.bytes == sum(t.untyped_storage().nbytes() for t in tensors)
        held.append((len(batch.rows), len(batch.prompts.length_B), batch.bytes))
        record(batch, *drawn, **more)

    monkeypatch.setattr(Batch, "record", spy)
    return held


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_planned_for_are_the_bytes_held(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(kind=kind)
    policy.model.to(dtype)
    questions, held = tiny_questions(3, int(kind.endswith("vl")), side=32), spied_holdings(monkeypatch)
    sample(policy, questions, 5, max_new_tokens=3)
    tokens = held_tokens([len(policy.prompt(q).ids_L) for q in questions], 15, 3)
    assert held[0] == (15, 3, tokens * token_bytes(policy.text.language_model))


@pytest.mark.parametrize("batch_rows", [1, 3, 7, 10, 512])
@pytest.mark.parametrize("rows_in_budget", [0, 2, 9, 1000])
def test_neither_rows_nor_bytes_pass_their_limits_and_the_texts_are_the_same(
    batch_rows: int, rows_in_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, questions = ending(), mixed()
    longest_prompt = max(len(policy.prompt(q).ids_L) for q in questions)
    size = token_bytes(policy.text.language_model)
    budget = size * max(1, held_tokens([longest_prompt] * min(rows_in_budget, 6), rows_in_budget, 12))
    together = sample(policy, questions)
    held, shapes = spied_holdings(monkeypatch), spied_shapes(policy, monkeypatch)
    limited = sample(policy, questions, batch_rows=batch_rows, kv_cache_gb=(budget + 0.5) / 1e9)
    assert_same_but_at_boundaries(policy, questions, zip(together, limited, strict=True))
    assert all(rows <= batch_rows for rows, _, _ in held)
    assert all(total <= budget or (rows, prompts) == (1, 1) for rows, prompts, total in held)
    assert sum(rows for rows, tokens in shapes if tokens > 1) == len(questions), "each prompt is run once"


def test_questions_join_whole_while_others_are_still_going(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, questions = ending(), mixed()
    admitted: list[tuple[int, list[str]]] = []
    admit = Batch.admit

    def spy(batch: Batch, numbers: Sequence[int], draws: np.ndarray) -> None:
        admitted.append((len(batch.rows), [batch.requests[i].question.id for i in numbers]))
        admit(batch, numbers, draws)

    monkeypatch.setattr(Batch, "admit", spy)
    sample(policy, questions, 4, batch_rows=10)
    assert any(running > 0 for running, _ in admitted)
    assert all(names.count(name) == 4 for _, names in admitted for name in names)
    order = [name for _, names in admitted for name in dict.fromkeys(names)]
    lengths = {q.id: len(policy.prompt(q).ids_L) for q in questions}
    assert sorted(order) == sorted(lengths)
    assert [lengths[name] for name in order] == sorted(lengths.values(), reverse=True)


def test_prompts_of_very_different_lengths_do_not_touch_each_other() -> None:
    policy, (question, *_) = ending(), mixed()
    texts = ("Add.", "Which of the two is larger? " * 12, "Read. " * 30, "Even? " * 3, "Say it again. " * 20)
    questions = [Question(f"l{i}", question.images * (i % 2), text, question.spec) for i, text in enumerate(texts)]
    lengths = [len(policy.prompt(q).ids_L) for q in questions]
    assert max(lengths) > 6 * min(lengths)
    alone = [sample(policy, [q], 3)[0] for q in questions]
    for batch_rows in (4, 6, 512):
        together = sample(policy, questions, 3, batch_rows=batch_rows)
        assert_same_but_at_boundaries(policy, questions, zip(alone, together, strict=True))


def test_prompts_are_prefilled_in_pieces_that_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, questions = ending(), mixed()
    whole = sample(policy, questions)
    monkeypatch.setattr("mm_spine.sampling.kv_cache.PREFILL_TOKENS", 50)
    shapes = spied_shapes(policy, monkeypatch)
    pieces = sample(policy, questions)
    assert_same_but_at_boundaries(policy, questions, zip(whole, pieces, strict=True))
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert len(prefills) > 1 and all(rows == 1 or rows * length <= 50 for rows, length in prefills)


def test_short_prompts_and_prefixes_are_not_padded_to_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, (question, *_) = ending(ends=[]), mixed()
    questions = [Question(f"s{i}", (), "Say it again. " * (60 if i == 3 else 1), question.spec) for i in range(8)]
    prefixes = [tuple(range(60 if i == 5 else 2)) for i in range(8)]
    shapes = spied_shapes(policy, monkeypatch)
    requests = [Request(q, i, prefix) for i, (q, prefix) in enumerate(zip(questions, prefixes, strict=True))]
    complete(policy, requests, max_new_tokens=61)
    computed = sum(rows * tokens for rows, tokens in shapes if tokens > 1)
    real = sum(len(policy.prompt(q).ids_L) + len(prefix) for q, prefix in zip(questions, prefixes, strict=True))
    assert computed <= 2 * real, (computed, real)


def test_prefixes_ask_only_their_own_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prefixes beside 12 prompts: no forward has queries for a prompt that none of them follows."""
    policy = ending(ends=[])
    asked: list[int] = []
    attend = Sharing.attend

    def spy(sharing: Sharing, layer: int, query: Tensor, scale: float) -> Any:
        asked.append(sharing.grid_BN.numel() / len(query))
        return attend(sharing, layer, query, scale)

    monkeypatch.setattr(Sharing, "attend", spy)
    requests = [Request(q, i, (5, 6) if i % 7 == 3 else ()) for i, q in enumerate(mixed(12))]
    plain = complete(policy, requests)
    assert max(asked) == 1.0
    alone = [complete(policy, [request])[0] for request in requests]
    assert [c.token_ids for c in plain] == [c.token_ids for c in alone]


def test_logits_are_made_in_pieces_that_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, questions = ending(), mixed(3)
    whole = sample(policy, questions)
    monkeypatch.setattr("mm_spine.sampling.hf.LOGIT_BYTES", 4 * 423 * 5)
    assert_same_but_at_boundaries(policy, questions, zip(whole, sample(policy, questions), strict=True))
    barring = [Request(questions[0], i, (), dict.fromkeys(range(200), -6.0)) for i in range(12)]
    assert all(c.token_ids[0] >= 200 for c in complete(policy, barring))


def test_rollouts_asked_for_later_are_those_asked_for_at_once() -> None:
    policy, questions = ending(), mixed()
    sampler = HFSampler(policy, DecodingConfig(max_new_tokens=12))
    four, early, late = (
        sampler.sample(questions, n, step=0, purpose="test", first=first) for n, first in ((4, 0), (2, 0), (2, 2))
    )
    pieces = [a + b for a, b in zip(early, late, strict=True)]
    assert [[r.index for r in row] for row in pieces] == [[0, 1, 2, 3]] * len(questions)
    assert_same_but_at_boundaries(policy, questions, zip(four, pieces, strict=True))


def test_in_bf16_most_texts_are_the_same_in_any_batch(record_property: Any) -> None:
    """The share that differs is measured; what is reported of a text that does not hardly differs."""
    policy, questions = ending(), mixed()
    policy.model.to(torch.bfloat16)
    large, small = (sample(policy, questions, 16, batch_rows=rows) for rows in (512, 7))
    pairs = [pair for rows in zip(large, small, strict=True) for pair in zip(*rows, strict=True)]
    share = np.mean([a.token_ids != b.token_ids for a, b in pairs])
    record_property("differing_share_bf16", float(share))
    print(f"bf16: {share:.1%} of the texts differ between batches of 512 and 7 rows")
    assert share < 0.6
    same = [np.abs(a.logp - b.logp).max() for a, b in pairs if a.token_ids == b.token_ids]
    assert np.median(same) < 0.05


@pytest.mark.parametrize("causal", [False, True])
def test_kernels_agree_with_the_plain_products(causal: bool) -> None:
    """Of the output and the log-sum-exp, with fewer key heads than query heads, padded keys and strided buffers."""
    random = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 5, 16, generator=random)
    k, v = torch.randn(2, 3, 2, 9, 16, generator=random)[:, :, :, : 5 if causal else 7]
    bias = None if causal else kernels.padding_bias(7, torch.tensor([7, 3, 1]), torch.float32)
    found = kernels.attend(q, k, v, 0.3, bias, causal)
    for fast, plain in zip(found, kernels.attend_plainly(q, k, v, 0.3, bias, causal), strict=True):
        assert fast.shape == plain.shape
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


# --- questions that cannot be asked -----------------------------------------------------------------------------------


def test_a_question_that_cannot_be_asked_has_no_rollouts_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    policy, good = tiny_policy(), mixed(3)
    bad = Question("broken", (b"no image",), "What is it?", good[0].spec)
    with caplog.at_level("WARNING"):
        rollouts = sample(policy, [good[0], bad, *good[1:]])
        again = sample(policy, [bad])
    assert rollouts[1] == [] and again == [[]]
    assert ids([rollouts[0], *rollouts[2:]]) == ids(sample(policy, good))
    assert list(policy.skipped) == ["broken"] and policy.skipped["broken"].startswith("broken: ")
    assert sum("broken" in record.getMessage() for record in caplog.records) == 1
    assert not policy.can_ask(bad) and policy.can_ask(good[0])


def test_nothing_asked_nothing_drawn() -> None:
    assert sample(tiny_policy(), []) == []
