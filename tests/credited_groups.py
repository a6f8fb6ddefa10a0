"""Small groups worked out by hand, with credit and token masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from small import small_config
from tiny import tiny_questions

from mm_spine.config import MethodConfig
from mm_spine.methods.apply import assign_credit, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.table import find
from mm_spine.methods.tokens import Tokens
from mm_spine.types import Group, Rollout, Vote
from mm_spine.voting import rank

QUESTIONS = tiny_questions(4)


def rollout(index: int, tokens: Sequence[int], entropy: Sequence[float], question: int = 0) -> Rollout:
    """A response with log-probs of minus its entropies."""
    values = np.array(entropy, np.float32)
    return Rollout(f"q{question}", index, tuple(tokens), "", -values, values, "stop")


def group(rollouts: Sequence[Rollout], answers: Sequence[str | None], question: int = 0) -> Group:
    """A group whose vote is the first answer."""
    share = sum(a == answers[0] for a in answers) / len(answers)
    vote = Vote(answers[0], share, {}, 0.0, sum(a is not None for a in answers))
    return Group(QUESTIONS[question], tuple(rollouts), tuple(answers), vote, parsed=(None,) * len(rollouts))


def polled(answers: Sequence[str | None], entropies: Sequence[float] | None = None, question: int = 0) -> Group:
    """A group of responses of two tokens, both of an entropy, and its vote over these answers."""
    entropies = [0.5] * len(answers) if entropies is None else entropies
    rollouts = [rollout(i, [1, 10 + i], [h, h], question) for i, h in enumerate(entropies)]
    counts = dict(rank({a: answers.count(a) for a in answers if a is not None}, f"q{question}"))
    first, second = [*counts.values(), 0, 0][:2]
    n = len(answers)
    vote = Vote(next(iter(counts), None), first / n, counts, (first - second) / n, sum(counts.values()))
    return Group(QUESTIONS[question], tuple(rollouts), tuple(answers), vote, parsed=(None,) * n)


def mixed() -> list[Group]:
    """One group that differs and one that is unanimous."""
    first = [
        rollout(0, [1, 2, 3], [0.1, 0.9, 0.5]),
        rollout(1, [1, 2], [0.1, 0.9]),
        rollout(2, [1, 2], [0.1, 0.9]),
        rollout(3, [7], [2.0]),
    ]
    second = [rollout(i, [5, 6, 7, 8, 9], [0.1, 0.2, 0.3, 0.4, 0.5], 1) for i in range(4)]
    return [group(first, ["1", "2", "2", None]), group(second, ["5"] * 4, 1)]


def with_credit(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> Group:
    """A group whose rollouts have these advantages."""
    found = group(rollouts, ["1"] * len(rollouts))
    return replace(found, rewards=torch.zeros(len(rollouts)), advantages=torch.tensor(advantages))


def everywhere(groups: Sequence[Group]) -> list[list[Tokens]]:
    """The policy term acts on all tokens, no other term on any."""
    masks = [[torch.ones(len(r.token_ids), dtype=torch.bool) for r in each.rollouts] for each in groups]
    return [[Tokens(mask_T, ~mask_T, None) for mask_T in own] for own in masks]


def options(method: str, **values: Any) -> MethodConfig:
    """A method's options, some replaced."""
    return small_config({"method": {"name": method, "share": 0.2, **values}}).method


def credited(method: str = "spine", **values: Any) -> tuple[list[Group], list[list[Tokens]], MethodConfig]:
    """`mixed` with credit and token masks."""
    own = options(method, **values)
    groups = assign_credit(Batch(mixed()), find(method), own)
    return groups, choose_tokens(Batch(groups), find(method), own), own
