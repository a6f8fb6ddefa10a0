"""Scores of given responses, against a plain forward of transformers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny import END, entropy, plain_log_probs, tiny_model
from tree_backends import QUESTIONS, policy

from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import Scores, score_responses
from mm_spine.types import Question


def test_scores_are_the_plain_forward() -> None:
    """Several questions in one forward; responses that are equal, that continue one another, and of no tokens."""
    responses = [[(5, 6, 7), (5, 6, 7, 8, END), (5, 6, 7), ()], [], [(END,)], [()]]
    questions = [*QUESTIONS, QUESTIONS[0]]
    found = score_responses(policy(), list(zip(questions, responses, strict=True)), Distribution(0.8, policy().banned))
    assert [len(scores) for scores in found] == [4, 0, 1, 1]
    for question, rows, scores in zip(questions, responses, found, strict=True):
        for tokens, own in zip(rows, scores, strict=True):
            assert own.logp.shape == own.entropy.shape == (len(tokens),)
            if tokens:
                assert_scores(own, question, tokens)


def assert_scores(own: Scores, question: Question, tokens: Sequence[int]) -> None:
    with torch.no_grad():
        log_probs = plain_log_probs(tiny_model(1), question, tokens, 0.8)
    drawn = log_probs.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    np.testing.assert_allclose(own.logp, drawn.numpy(), atol=1e-5)
    np.testing.assert_allclose(own.entropy, entropy(log_probs).numpy(), atol=1e-5)


def test_scoring_nothing_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "prompt", lambda *_: pytest.fail("a prompt was encoded"))
    distribution = Distribution(1.0)
    assert score_responses(policy(), [], distribution) == []
    assert score_responses(policy(), [(QUESTIONS[0], []), (QUESTIONS[1], [])], distribution) == [[], []]
