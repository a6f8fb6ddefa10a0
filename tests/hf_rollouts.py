"""Rollouts of the transformers sampler, and when two of them count as equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import END, plain_log_probs, tiny_policy, tiny_questions

from mm_spine.config import DecodingConfig
from mm_spine.draws import uniforms
from mm_spine.policy.model import Policy
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.hf import HFSampler
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


def assert_same_but_at_boundaries(policy: Policy, questions: Sequence[Question], pairs: Any) -> None:
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


def complete(policy: Policy, requests: Sequence[Request], **changes: Any) -> list[Completion]:
    """Completions with the draws of `sample`."""
    greedy = changes.pop("greedy", False)
    sampler = HFSampler(policy, DecodingConfig(**{"max_new_tokens": 12, **changes}))
    return sampler.complete(requests, step=0, purpose="test", greedy=greedy)


def spied_shapes(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of each forward of the language model, as they come."""
    shapes: list[tuple[int, int]] = []
    forward = policy.text.language_model.forward

    def spy(**arguments: Any) -> Any:
        shapes.append(tuple(arguments["inputs_embeds"].shape[:2]))
        return forward(**arguments)

    monkeypatch.setattr(policy.text.language_model, "forward", spy)
    return shapes
