"""Proposals: when they are asked, with what, and what is drawn where they propose nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from tree_backends import CALL, QUESTIONS, Scripted, outline, plain, policy, random_script

from mm_spine.draws import generator
from mm_spine.policy import scoring
from mm_spine.sampling import Completion, Request
from mm_spine.sampling import growing as growing_module
from mm_spine.sampling.growing import GrowingSampler
from mm_spine.types import Growth, Question, Rollout


def chained(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
    """Each rollout keeps two tokens more of the one before it than that one kept of its own."""
    last = drawn[-1]
    return [Request(question, last.index + 1, last.token_ids[: 2 * len(drawn)], {}, last.index)]


def nothing(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
    return []


def scripted(length: int = 9) -> Scripted:
    return Scripted(policy(), length, random_script(length))


def test_a_proposal_may_continue_any_rollout_of_its_family() -> None:
    backend = scripted()
    (group,) = GrowingSampler(backend, Growth(3, chained)).sample(QUESTIONS[:1], 7, **CALL)
    assert [r.index for r in group] == list(range(7))
    assert [r.parent for r in group] == [None, 0, 1, None, 3, 4, None]
    assert [r.fork_at for r in group] == [None, 2, 4, None, 2, 4, None]
    assert [[ask.index for ask, _ in call] for call in backend.calls] == [[0, 3, 6], [1, 4], [2, 5]]
    for parent, child in ((0, 1), (1, 2), (3, 4), (4, 5)):
        at = group[child].fork_at or 0
        assert group[child].token_ids[:at] == group[parent].token_ids[:at]
        assert np.array_equal(group[child].logp[:at], group[parent].logp[:at])
        assert len(group[child].logp) == len(group[child].token_ids) == 9


def test_what_is_never_proposed_is_drawn_flat() -> None:
    backend = scripted()
    found = GrowingSampler(backend, Growth(4, nothing)).sample(QUESTIONS, 9, **CALL)
    assert outline(found) == outline(scripted().sample(QUESTIONS, 9, **CALL))
    assert [len(call) for call in backend.calls] == [9, 18]


def test_a_proposal_outside_its_family_is_refused() -> None:
    def strange(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
        return [Request(question, drawn[0].index + 3)]

    with pytest.raises(ValueError, match=r"proposed was rollout 3, which is not of the family range\(0, 3\)"):
        GrowingSampler(scripted(), Growth(3, strange)).sample(QUESTIONS[:1], 6, **CALL)


def test_no_index_is_drawn_twice() -> None:
    def again(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
        return [Request(question, i) for i in range(2)]

    backend = scripted()
    (group,) = GrowingSampler(backend, Growth(3, again)).sample(QUESTIONS[:1], 3, **CALL)
    assert [r.index for r in group] == [0, 1, 2]
    assert [[ask.index for ask, _ in call] for call in backend.calls] == [[0], [1], [2]]


def draws_of(seed: int = 0, **other: Any) -> list[tuple[int, float]]:
    """(root, first draw) of each time that a proposal is asked."""
    heard: list[tuple[int, float]] = []

    def listening(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
        heard.append((drawn[0].index, float(rng.random())))
        return [Request(question, drawn[-1].index + 1)]

    backend = scripted()
    backend.seed = seed
    GrowingSampler(backend, Growth(3, listening)).sample(QUESTIONS[:1], 6, **{**CALL, **other})
    return sorted(heard)


def test_a_family_has_draws_of_its_own() -> None:
    name = QUESTIONS[0].id
    first, second = (float(generator(0, "grow", "train", 3, name, root).random()) for root in (0, 3))
    assert draws_of() == [(0, first), (0, first), (3, second), (3, second)] and first != second


@pytest.mark.parametrize("other", [{"step": 4}, {"purpose": "anchor"}, {"seed": 1}])
def test_the_draws_depend_on_seed_purpose_and_step(other: dict[str, Any]) -> None:
    assert not set(draws_of()) & set(draws_of(**other))


class NewestFirst(Scripted):
    """A backend whose phase finishes one request at a time, the one that was submitted last."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.finished: list[int] = []
        self.open: list[Request] = []

    @contextmanager
    def phase(self, *, step: int, purpose: str, greedy: bool = False) -> Iterator[Any]:
        self.how = {"step": step, "purpose": purpose}
        yield self

    def submit(self, requests: Sequence[Request]) -> None:
        self.open += requests

    def drain(self) -> list[tuple[Request, Completion]]:
        request = self.open.pop()
        self.finished.append(request.index)
        return list(zip([request], self.complete([request], **self.how), strict=True))


def test_no_family_waits_for_another() -> None:
    """The root submitted last is finished first, and its family is grown before the first root is drawn."""
    backend = NewestFirst(policy(), 9, random_script(9))
    (group,) = GrowingSampler(backend, Growth(3, chained)).sample(QUESTIONS[:1], 6, **CALL)
    assert backend.finished == [3, 4, 5, 0, 1, 2]
    waves = GrowingSampler(scripted(), Growth(3, chained)).sample(QUESTIONS[:1], 6, **CALL)
    assert outline([group]) == outline(waves)


@pytest.mark.slow
def test_missing_entropies_of_a_question_come_from_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proposal sees them; the rollouts stay without, as their sampler gave them."""
    seen: list[Any] = []
    calls: list[int] = []

    def reading(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
        seen.append((question.id, drawn[0].index, np.round(drawn[0].entropy, 4).tolist()))
        return []

    def counted(*given: Any) -> Any:
        calls.append(len(given[1][0][1]))
        return scoring.score_responses(*given)

    monkeypatch.setattr(growing_module, "score_responses", counted)
    found = []
    for gives in (True, False):
        backend = plain(4, silent=not gives)
        backend.gives_entropies = gives
        found.append(GrowingSampler(backend, Growth(2, reading, reads_entropies=True)).sample(QUESTIONS, 6, **CALL))
    assert calls == [3, 3, 3]
    assert sorted(seen[:9]) == sorted(seen[9:])
    assert outline(found[0]) == outline(found[1])
    assert all(r.entropy is None for r in chain(*found[1]))
