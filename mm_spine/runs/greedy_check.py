"""Greedy answers against the start's votes: the guard's last look at the weights of a run, before they are saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mm_spine.config import GuardConfig
from mm_spine.processors.answers import parse
from mm_spine.runs.guard import Start, same_vote
from mm_spine.types import Question


def greedy_fall(
    questions: Sequence[Question],
    start: Mapping[str, Start],
    limits: GuardConfig,
    ask: Callable[[Sequence[Question]], Mapping[str, str]],
) -> float | None:
    """Return by how much the share of greedy answers that are the start's vote has fallen; below 0 it has risen.

    `ask` returns the greedy response to each question that could be asked, by id. Of `questions` those are asked that
    the start has a vote on, at most `limits.greedy_over`, evenly over their order. None if they are fewer than
    `limits.questions`. Reads no label.
    """
    asked = spread_over([question for question in questions if question.id in start], limits.greedy_over)
    if len(asked) < limits.questions:
        return None
    texts = ask(asked)
    lost = [
        agrees(question, start[question.id].greedy, start) - agrees(question, texts[question.id], start)
        for question in asked
        if question.id in texts
    ]
    return sum(lost) / len(lost) if len(lost) >= limits.questions else None


def agrees(question: Question, response: str, start: Mapping[str, Start]) -> bool:
    """Whether a response gives the start's vote on its question."""
    return same_vote(parse(response, question.spec), start[question.id].vote, question.spec)


def spread_over(questions: Sequence[Question], most: int) -> Sequence[Question]:
    """Return `most` of the questions, evenly over their order; all if they are no more."""
    if len(questions) <= most:
        return questions
    return [questions[i * len(questions) // most] for i in range(most)]
