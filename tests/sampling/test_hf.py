"""The transformers sampler against plain forwards, transformers' own greedy search, and the distribution it claims."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exactness import InDouble, assert_exact, double_of
from hf_rollouts import (
    MANY_ENDS,
    assert_same_but_at_boundaries,
    ending,
    ids,
    mixed,
    sample,
)
from tiny import BANNED, END, entropy, inputs, plain_log_probs, tiny_model, tiny_policy
from torch import Tensor

from mm_spine.config import DecodingConfig, LoraConfig, ModelConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling import Completion
from mm_spine.sampling.hf import HFSampler
from mm_spine.types import Question, Request


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("batch_rows", [1, 512])
def test_log_probs_and_entropies_are_those_of_the_plain_forward(temperature: float, batch_rows: int) -> None:
    policy, plain, questions = ending(1), tiny_model(1), mixed()
    assert len({len(policy.prompt(q).ids_L) for q in questions}) > 3
    rows = sample(policy, questions, 3, temperature=temperature, batch_rows=batch_rows)
    assert all([rollout.index for rollout in row] == [0, 1, 2] for row in rows)
    drawn = [(question, rollout) for question, row in zip(questions, rows, strict=True) for rollout in row]
    assert all(rollout.logp.dtype == rollout.entropy.dtype == np.float32 for _, rollout in drawn)

    @torch.no_grad()
    def values(model: Any) -> list[torch.Tensor]:
        found = []
        for question, rollout in drawn:
            log_probs = plain_log_probs(model, question, rollout.token_ids, temperature)
            found += [log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0], entropy(log_probs)]
        return found

    ours = [torch.from_numpy(x) for _, rollout in drawn for x in (rollout.logp, rollout.entropy)]
    exact = double_of(plain)
    with InDouble():
        double = values(exact)
    assert_exact(ours, values(plain), double)


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


def test_bf16_states_are_drawn_from_with_logits_in_fp32() -> None:
    """Log-probs and entropies are those of the same states and weights in float64, up to fp32's rounding."""
    policy = tiny_policy(1)
    policy.model.bfloat16()
    sampler, head = HFSampler(policy, DecodingConfig()), policy.text.head.weight.double()
    hidden = 3 * torch.randn(40, head.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    batch = SimpleNamespace(hidden_RD=hidden, uniform_R=np.linspace(0, 1, 40, endpoint=False), barred=())
    with torch.no_grad():
        token, logp, spread = sampler._draw(batch, greedy=False)  # type: ignore[arg-type]
    log_probs = (hidden.double() @ head.T).index_fill(-1, torch.tensor(BANNED), -torch.inf).log_softmax(-1)
    torch.testing.assert_close(logp.double(), log_probs.gather(-1, token[:, None])[:, 0], rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(spread.double(), entropy(log_probs), rtol=1e-6, atol=2e-5)


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


def test_a_response_without_an_end_token_runs_to_the_limit() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        # The end of the turn is never the likeliest and hardly ever drawn.
        policy.text.head.weight[END] = 0.0
    assert {(len(r.token_ids), r.finish_reason) for row in sample(policy, mixed(3), 2) for r in row} == {(12, "length")}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_is_transformers_own_greedy_search(seed: int) -> None:
    policy, plain, questions = ending(seed), tiny_model(seed), mixed()
    plain.generation_config.eos_token_id = MANY_ENDS
    for question, row in zip(questions, sample(policy, questions, 2, greedy=True, max_new_tokens=16), strict=True):
        prompt = inputs(question, ())
        found = plain.generate(**prompt, do_sample=False, max_new_tokens=16, suppress_tokens=list(BANNED))
        expected = tuple(found[0, prompt["input_ids"].shape[1] :].tolist())
        assert [r.token_ids for r in row] == [expected, expected]


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


def test_a_large_vocabulary_is_drawn_from_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, questions = ending(), mixed()
    whole, greedy = sample(policy, questions), sample(policy, questions, greedy=True)
    monkeypatch.setattr("mm_spine.sampling.draw.WHOLE", 100)
    assert_same_but_at_boundaries(policy, questions, zip(whole, sample(policy, questions), strict=True))
    assert ids(sample(policy, questions, greedy=True)) == ids(greedy)


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


def test_a_question_that_cannot_be_asked_has_no_rollouts_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.mark.parametrize(("ending", "opening"), [("<think>\n", "<think>"), ("<think>\n\n</think>\n\n", ""), ("", "")])
def test_a_block_of_thinking_that_the_chat_template_opens_is_in_the_text(ending: str, opening: str) -> None:
    """Otherwise a response that is cut off while it thinks would look like an answer."""
    policy = tiny_policy()
    policy.processor = copy.deepcopy(policy.processor)
    policy.processor.chat_template += (
        "{% if add_generation_prompt %}{{ '" + ending.replace("\n", "\\n") + "' }}{% endif %}"
    )
    (rollout,) = HFSampler(policy, DecodingConfig(max_new_tokens=4)).sample(mixed()[:1], 1, step=0, purpose="test")[0]
    assert rollout.text == opening + policy.tokenizer.decode(rollout.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("tag", ["</think>", None])
def test_the_tokens_of_the_thinking_are_counted(tag: str | None) -> None:
    """Up to the end of the first tag that closes it, whatever tokens the tag is cut into."""
    policy = tiny_policy()
    encode = lambda text: policy.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    thought, answer = encode("<think> 1 and 2"), encode(" 3</think> 4")
    ids = [*thought, *encode(tag or ""), *(answer if tag else encode(" 3"))]
    values = np.zeros(len(ids), np.float32)
    sampler = HFSampler(policy, DecodingConfig(max_new_tokens=4))
    found = sampler.rollout(Request(mixed()[0], 0), Completion(tuple(ids), values, values, "stop"))
    assert found.thinking == (len(thought) + len(encode(tag)) if tag else None)
