"""Which responses of a step are shown."""

from __future__ import annotations

import numpy as np
import torch

from mm_spine.reporting.responses import ShownResponse, first_responses
from mm_spine.types import Answer, AnswerSpec, Group, Question, Rollout, Vote


def group(name: str, texts: tuple[str, ...]) -> Group:
    rollouts = tuple(
        Rollout(name, i, (1,), text, np.zeros(1, np.float32), None, "stop") for i, text in enumerate(texts)
    )
    vote = Vote("1", 1.0, {"1": len(texts)}, 1.0, len(texts))
    parsed = (Answer("1", "1"),) * len(texts)
    return Group(
        Question(name, (), "What?", AnswerSpec("integer")),
        rollouts,
        ("1",) * len(texts),
        vote,
        torch.ones(len(texts)),
        parsed=parsed,
    )


def test_responses_are_taken_question_by_question() -> None:
    groups = [group("a", ("a0", "a1", "a2")), group("b", ("b0",)), group("c", ("c0", "c1"))]
    assert [completion.text for completion in first_responses(groups, 5)] == ["a0", "b0", "c0", "a1", "c1"]
    assert first_responses(groups, 0) == []
    assert len(first_responses(groups, 99)) == 6
    assert first_responses(groups, 1)[0] == ShownResponse(groups[0].question, 0, "a0", "1", "1", 1.0)
