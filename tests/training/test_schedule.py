"""Which questions a step asks, and its learning rate."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from small import small_config
from tiny import tiny_questions

from mm_spine.training.schedule import batch_of, further_questions, learning_rate

QUESTIONS = tiny_questions(5)


@pytest.mark.parametrize("count, size", [(6, 2), (4, 4), (3, 8), (9, 3)])
def test_every_epoch_asks_every_question_once(count: int, size: int) -> None:
    config = small_config({"optim": {"questions_per_step": size}})
    questions = tiny_questions(count)
    per_epoch = max(1, count // size)
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        asked = Counter(question.id for step in steps for question in batch_of(questions, config, step))
        assert asked == Counter(question.id for question in questions)


def test_a_batch_across_two_epochs_never_asks_twice() -> None:
    """Five questions, four a step: each step but the last of the cycle straddles an epoch."""
    config = small_config({"optim": {"questions_per_step": 4}})
    batches = [[question.id for question in batch_of(QUESTIONS, config, step)] for step in range(20)]
    assert all(len(set(batch)) == len(batch) for batch in batches)
    assert set(batches[0]) | set(batches[1]) == {question.id for question in QUESTIONS}
    asked = Counter(name for batch in batches for name in batch)
    assert min(asked.values()) > 16 - 5 and max(asked.values()) <= 16


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    questions = tiny_questions(9)
    config = small_config({"optim": {"questions_per_step": 3}})
    ids = [[q.id for q in batch_of(questions, config, step)] for step in range(6)]
    assert [[q.id for q in batch_of(questions, config, step)] for step in reversed(range(6))] == ids[::-1]
    first, second = (sorted(chain(*epoch)) for epoch in (ids[:3], ids[3:]))
    assert first == second == [f"q{i}" for i in range(9)]
    assert ids[:3] != ids[3:]
    other = small_config({"optim": {"questions_per_step": 3}, "seed": 1})
    assert [[q.id for q in batch_of(questions, other, step)] for step in range(6)] != ids


@pytest.mark.parametrize(
    "schedule, warmup, expected",
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1, 0.8535534, 0.5, 0.1464466]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_learning_rate(schedule: str, warmup: float, expected: list[float]) -> None:
    config = small_config({"optim": {"steps": 4, "lr": 0.2, "schedule": schedule, "warmup": warmup}})
    assert [learning_rate(config, step) / 0.2 for step in range(4)] == pytest.approx(expected)


def test_the_questions_that_refill_a_step_are_all_others_in_an_order_of_the_step() -> None:
    config = small_config({"optim": {"questions_per_step": 2}})
    questions = tiny_questions(9)
    orders = []
    for step in range(3):
        batch = batch_of(questions, config, step)
        further = further_questions(questions, batch, config.seed, step)
        assert further == further_questions(questions, batch, config.seed, step)
        assert sorted(q.id for q in (*batch, *further)) == sorted(q.id for q in questions)
        orders.append([q.id for q in further])
    # No step's order is that of another, the questions of both left out.
    common = set.intersection(*map(set, orders))
    assert len({tuple(name for name in order if name in common) for order in orders}) > 1
