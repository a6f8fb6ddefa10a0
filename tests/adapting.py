"""Small adaptations for the tests of the loop and of training: a biased policy, five questions, three steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from small import digit_policy, small_config
from tiny import tiny_questions
from torch import Tensor

from mm_spine.adapt import Hooks, adapt
from mm_spine.policy.model import Policy
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.engine import Engine
from mm_spine.types import Question, Rollout

QUESTIONS = tiny_questions(5)
PLAIN = {"method": {"name": "ttrl", "kl": "none"}}
MIXED = {"method": {"unanimous": "regularise", "kl": "none"}, "optim": {"questions_per_step": 5}}
"""Every group trains, so that every step has the same five leaf groups."""


class Altered:
    """The usual sampler, its rollouts changed on the way."""

    def __init__(self, policy: Policy, config: Any, change: Callable[[Rollout], Rollout]) -> None:
        self._sampler = HFSampler(policy, config.sampling, config.seed)
        self._change = change

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        drawn = self._sampler.sample(questions, n, step=step, purpose=purpose, greedy=greedy, first=first)
        return [[self._change(rollout) for rollout in group] for group in drawn]

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        pass


def with_text(text: str) -> Callable[[Rollout], Rollout]:
    """Every response reads as `text`, whatever its tokens."""
    return lambda rollout: replace(rollout, text=text)


def run(*layers: Any, change: Any = None, questions: Sequence[Question] = QUESTIONS, **hooks: Any) -> Any:
    """(policy, its starting weights, the step records, the result) of one adaptation."""
    config = small_config(*layers)
    policy = digit_policy(config.model)
    start, records = policy.weights(), []
    sampler = None if change is None else Altered(policy, config, change)
    ended = adapt(questions, policy, sampler, config=config, hooks=Hooks(on_step=records.append, **hooks))
    return policy, start, records, ended


def counting_forwards(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows by one with each forward of the engine."""
    count: list[None] = []
    usual = Engine.forward

    def counted(self: Engine, *args: Any) -> Any:
        count.append(None)
        return usual(self, *args)

    monkeypatch.setattr(Engine, "forward", counted)
    return count


def moved(policy: Policy, start: dict[str, Tensor]) -> bool:
    """Whether any trainable weight differs from `start` in any bit."""
    return any(not torch.equal(weight, start[name]) for name, weight in policy.trainable().items())


def stopping_after(steps: int) -> Callable[[], str | None]:
    """A signal that arrives during step number `steps`."""
    asked = iter(range(1, 1000))
    return lambda: "SIGTERM" if next(asked) == steps else None
