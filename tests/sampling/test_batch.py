"""Continuous batching: limits on rows and bytes, and texts that do not depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hf_rollouts import (
    assert_same_but_at_boundaries,
    complete,
    ending,
    mixed,
    sample,
    spied_shapes,
)
from tiny import tiny_policy, tiny_questions
from torch import Tensor

from mm_spine.config import DecodingConfig
from mm_spine.sampling import Request
from mm_spine.sampling.batch import Batch
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.kv_cache import Sharing, held_tokens, token_bytes
from mm_spine.types import Question


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


@pytest.mark.parametrize("batch_rows", [1, 7, 512])
@pytest.mark.parametrize("rows_in_budget", [0, 9, 1000])
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
