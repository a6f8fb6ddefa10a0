"""What a step's number decides: its questions and its learning rate. Neither depends on the steps before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm_spine import distributed
from mm_spine.config import ConfigError, RunConfig, RunStopped
from mm_spine.draws import generator
from mm_spine.types import Question

if TYPE_CHECKING:
    from mm_spine.policy.model import Policy


def batch_of(questions: Sequence[Question], config: RunConfig, step: int) -> list[Question]:
    """Return the questions of a step: seeded permutations, one an epoch, are laid end to end and cut into batches."""
    count = len(questions)
    size = min(config.optim.questions_per_step, count)
    places = range(step * size, (step + 1) * size)
    epochs = {place // count for place in places}
    orders = {epoch: generator(config.seed, "order", epoch).permutation(count) for epoch in epochs}
    chosen = (int(orders[place // count][place % count]) for place in places)
    # A batch across two epochs may draw a question twice; it is asked once.
    return [questions[i] for i in dict.fromkeys(chosen)]


def further_questions(questions: Sequence[Question], batch: Sequence[Question], seed: int, step: int) -> list[Question]:
    """Return all questions that are not in a step's `batch`, in the order in which the step may sample them too."""
    asked = {question.id for question in batch}
    order = generator(seed, "refill", step).permutation(len(questions))
    return [questions[i] for i in map(int, order) if questions[i].id not in asked]


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, then constant, or linear or cosine decay to 0 at the last step."""
    optim = config.optim
    warmup = optim.warmup * optim.steps
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(optim.steps - warmup, 1)
    factors = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return optim.lr * factors[optim.schedule]


def check_askable(questions: Sequence[Question], policy: Policy, new_tokens: int) -> None:
    """Raise ConfigError if none of the questions can be asked. Each rank tries its share until one can."""
    share = distributed.mine(questions)
    askable = distributed.on_all_or_none(lambda: any(policy.can_ask(q, new_tokens) for q in share), RunStopped)
    reasons = distributed.gather(list(policy.skipped.values())[:1])
    if not any(distributed.gather([askable])):
        raise ConfigError(f"none of the {len(questions):,} questions can be asked; the first, {reasons[0]}")


def check_questions(questions: Sequence[Question]) -> None:
    """Raise ConfigError where there are no questions, or two have one id."""
    if not questions:
        raise ConfigError("no questions to adapt to")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ConfigError(f"question id {question.id!r} occurs twice: ids must be unique, draws depend on them")
        seen.add(question.id)
