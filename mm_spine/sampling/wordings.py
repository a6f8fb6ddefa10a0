"""Questions asked in several wordings: one vote over all of them, and each response trained under its own prompt.

Rollout i of a question that has k wordings answers wording i % k. Wording 0 is the question's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mm_spine.sampling.backend import Backend
from mm_spine.sampling.growing import GrowingSampler
from mm_spine.sampling.phase import Script
from mm_spine.types import Group, Question, Rollout

Item = TypeVar("Item")


def worded(question: Question, wordings: Sequence[str], number: int) -> Question:
    """Return `question` in its wording `number`: 0 is its own, n puts it into the n-th of `wordings`.

    The others have ids of their own, such as "q7#2" for the second wording, because draws depend on the id.
    """
    if number == 0:
        return question
    prompt = wordings[number - 1].replace("{question}", question.prompt)
    return replace(question, id=f"{question.id}#{number + 1}", prompt=prompt)


class WordingSampler:
    """Ask `inner` each question in its own words and in `wordings`, in turn; the rollouts are the question's.

    Where `inner` grows families, each is of one wording. A wording that cannot be asked has no rollouts.
    """

    def __init__(self, inner: Backend | GrowingSampler, wordings: Sequence[str]) -> None:
        self.inner, self.wordings = inner, tuple(wordings)

    @property
    def backend(self) -> Backend:
        """The backend that everything is drawn from."""
        return self.inner if isinstance(self.inner, Backend) else self.inner.backend

    @property
    def whole(self) -> int:
        """See `GrowingSampler.whole`: one family of each wording."""
        return getattr(self.inner, "whole", 1) * (1 + len(self.wordings))

    @property
    def version(self) -> int:
        """The version of the weights that the backend samples with."""
        return self.inner.version

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights after an update."""
        self.inner.sync(weights)

    def run(self, scripts: Sequence[Script[Any]], *, step: int, purpose: str) -> list[Any]:
        """Run scripts of requests to their ends in one phase of the backend; return their results, in order."""
        return self.inner.run(scripts, step=step, purpose=purpose)

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`. Greedy responses are all of the question's own wording."""
        if greedy:
            return self.inner.sample(questions, n, step=step, purpose=purpose, greedy=True, first=first)
        return self.run([self.draw(question, n, first) for question in questions], step=step, purpose=purpose)

    def draw(self, question: Question, n: int, first: int = 0) -> Script[list[Rollout]]:
        """Draw the rollouts `first` to `first + n - 1` of `question`, as a script; all wordings side by side."""
        count = 1 + len(self.wordings)
        jobs = []
        for number in range(count):
            # Rollout j of wording w is rollout j * count + w of the question.
            begin, end = (-(-(index - number) // count) for index in (first, first + n))
            jobs.append(self.inner.draw(worded(question, self.wordings, number), end - begin, begin))
        drawn = yield jobs
        own = [_of_question(r, question, number, count) for number, part in enumerate(drawn) for r in part]
        return sorted(own, key=lambda rollout: rollout.index)


def _of_question(rollout: Rollout, question: Question, number: int, count: int) -> Rollout:
    """Return rollout j of wording `number` as one of the question."""
    parent = None if rollout.parent is None else rollout.parent * count + number
    return replace(rollout, question_id=question.id, index=rollout.index * count + number, parent=parent)


def by_wording(group: Group, wordings: Sequence[str]) -> list[Group]:
    """Divide a group into one group for each wording that has rollouts, under the vote of all."""
    if not wordings:
        return [group]
    count, parts = 1 + len(wordings), []
    for number in range(count):
        asked = worded(group.question, wordings, number)
        own = group.at([i for i, rollout in enumerate(group.rollouts) if rollout.index % count == number])
        rollouts = tuple(replace(rollout, question_id=asked.id) for rollout in own.rollouts)
        parts.append(replace(own, question=asked, rollouts=rollouts, wording_of=group.question.id))
    return [part for part in parts if part.rollouts]


def rejoined(
    groups: Sequence[Group], values: Sequence[Sequence[Item]], questions: Iterable[Question]
) -> tuple[list[Group], list[list[Item]]]:
    """Join the groups of each question's wordings again, rollouts by index, and `values` of each rollout with them.

    Groups of questions without further wordings stay as they are. `questions` are those that the groups were divided
    from.
    """
    if not any(group.wording_of for group in groups):
        return list(groups), [list(own) for own in values]
    known = {question.id: question for question in questions}
    found: dict[str, list[tuple[Group, Sequence[Item]]]] = {}
    for group, own in zip(groups, values, strict=True):
        found.setdefault(group.wording_of or group.question.id, []).append((group, own))
    joined = [_joined(known[name], parts) for name, parts in found.items()]
    return [group for group, _ in joined], [own for _, own in joined]


def _joined(question: Question, parts: Sequence[tuple[Group, Sequence[Item]]]) -> tuple[Group, list[Item]]:
    first = parts[0][0]
    rows = [
        (replace(rollout, question_id=question.id), answer, parsed, value)
        for group, own in parts
        for rollout, answer, parsed, value in zip(group.rollouts, group.answers, group.parsed, own, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: rows[i][0].index)
    rollouts, answers, parsed, values = zip(*(rows[i] for i in order), strict=True)
    rewards, advantages = (_in_order([getattr(g, name) for g, _ in parts], order) for name in ("rewards", "advantages"))
    dropped = frozenset().union(*(group.dropped for group, _ in parts))
    whole = Group(question, rollouts, answers, first.vote, rewards, advantages, parsed=parsed, dropped=dropped)
    return whole, list(values)


def _in_order(tensors: Sequence[Tensor | None], order: Sequence[int]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known)[list(order)] if known else None
