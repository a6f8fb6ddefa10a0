"""Responses drawn anew from a token of high entropy: which token, which responses, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from tiny import END, entropy, plain_log_probs
from tree_backends import CALL, QUESTIONS, Plain, Scripted, digits, outline, plain, policy, random_script

from mm_spine.config import DecodingConfig, RegenerateConfig
from mm_spine.draws import generator
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.regenerate import RegeneratingSampler, regeneration
from mm_spine.types import Question, Rollout

LONG, SHORT = 256, 5
"""A token of two characters and one of a single character."""


def regenerated(
    backend: Backend, n: int, questions: Sequence[Question] = QUESTIONS, **options: Any
) -> list[list[Rollout]]:
    return RegeneratingSampler(backend, RegenerateConfig(**options)).sample(questions, n, **CALL)


def root_of(tokens: Sequence[int], entropies: Sequence[float], index: int = 0) -> Rollout:
    certain = np.array(entropies, np.float32)
    return Rollout(QUESTIONS[0].id, index, tuple(tokens), "", np.zeros(len(tokens), np.float32), certain, "stop")


def places(root: Rollout, **options: Any) -> set[int]:
    """Where continuations of `root` begin, over many draws."""
    growth = regeneration(RegenerateConfig(**options), policy())
    asked = [growth.propose(QUESTIONS[0], [root], generator("draw", i)) for i in range(200)]
    assert all(len({ask.prefix for ask in asks}) <= 1 for asks in asked)
    return {len(asks[0].prefix) for asks in asked if asks}


def test_continuations_begin_at_one_of_the_tokens_of_highest_entropy() -> None:
    root = root_of([LONG] * 6, [9.0, 1.0, 3.0, 2.0, 3.0, 0.5])
    assert places(root, candidates=1) == {2}
    assert places(root, candidates=2) == {2, 4}
    assert places(root, candidates=3) == {2, 3, 4}
    assert places(root) == {1, 2, 3, 4, 5}  # The first token never: all of the response would be drawn anew.


def test_special_and_short_tokens_are_no_candidates() -> None:
    tokenizer = policy().tokenizer
    assert [len(tokenizer.decode([token]).strip()) for token in (LONG, SHORT)] == [2, 1]
    root = root_of([LONG, SHORT, LONG, SHORT, LONG, END], [5.0, 4.0, 1.0, 3.0, 0.5, 9.0])
    assert places(root) == {2, 4}
    assert places(root, least_characters=1, candidates=2) == {1, 3}
    assert places(root, least_characters=99) == set()


def test_the_token_is_drawn_uniformly() -> None:
    root = root_of([LONG] * 5, [0.0, 4.0, 3.0, 2.0, 1.0])
    growth = regeneration(RegenerateConfig(candidates=4), policy())
    found = [len(growth.propose(QUESTIONS[0], [root], generator("u", i))[0].prefix) for i in range(4000)]
    # Each of 4 places 1,000 times; one standard deviation is 27.4.
    assert all(abs(found.count(at) - 1000) < 5 * 27.4 for at in (1, 2, 3, 4))


def test_requests_are_the_continuations_of_their_root() -> None:
    root = root_of([LONG] * 4, [0.0, 0.0, 2.0, 0.0], index=8)
    growth = regeneration(RegenerateConfig(candidates=1), policy())
    asks = growth.propose(QUESTIONS[0], [root], generator("any"))
    assert growth.size == 4 and [(a.index, a.prefix, a.parent) for a in asks] == [
        (9, (LONG, LONG), 8),
        (10, (LONG, LONG), 8),
        (11, (LONG, LONG), 8),
    ]
    assert not any(ask.barred for ask in asks)


def test_sixteen_votes_are_four_roots_and_three_continuations_of_each() -> None:
    found = regenerated(HFSampler(digits(), DecodingConfig(max_new_tokens=8)), 16, least_characters=1)
    for group in found:
        by_root = [group[i : i + 4] for i in range(0, 16, 4)]
        assert [root.parent for root, *_ in by_root] == [None] * 4
        for root, *continued in by_root:
            assert {r.parent for r in continued} <= {root.index, None}
            assert len({r.fork_at for r in continued}) == 1
    assert sum(r.parent is not None for r in chain(*found)) > 20


def test_a_root_without_a_candidate_has_flat_rollouts_beside_it() -> None:
    backend = Scripted(policy(), 9, random_script(9))
    with_entropies = Certain(policy(), 9, random_script(9))
    found = regenerated(with_entropies, 8, least_characters=99)
    assert outline(found) == outline(backend.sample(QUESTIONS, 8, **CALL))


class Certain(Scripted):
    """Gives entropies, so that nothing has to be scored."""

    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        drawn = super().one(request, uniform_T)
        return drawn._replace(entropy=-drawn.logp)


@pytest.mark.slow
def test_a_continuation_is_its_roots_beginning_and_draws_of_its_own() -> None:
    """Figures by a plain forward over the whole response; the draws are those of a request with that prefix."""
    backend = plain(own=digits())
    continued = 0
    for question, group in zip(QUESTIONS, regenerated(backend, 8, least_characters=1), strict=True):
        for rollout in group:
            with torch.no_grad():
                log_probs = plain_log_probs(backend.model, question, rollout.token_ids, 0.8)
            drawn = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            np.testing.assert_allclose(rollout.logp, drawn.numpy(), atol=1e-5)
            np.testing.assert_allclose(rollout.entropy, entropy(log_probs).numpy(), atol=1e-5)
            if rollout.parent is None or rollout.fork_at is None:
                continue
            root, at = group[rollout.parent], rollout.fork_at
            (alone,) = backend.complete([Request(question, rollout.index, root.token_ids[:at])], **CALL)
            assert rollout.token_ids == (*root.token_ids[:at], *alone.token_ids)
            continued += 1
    assert continued > 6


def test_the_draws_do_not_depend_on_the_batch() -> None:
    one, wide = (
        RegeneratingSampler(
            HFSampler(digits(), DecodingConfig(max_new_tokens=6, batch_rows=rows)), RegenerateConfig(least_characters=1)
        )
        for rows in (1, 512)
    )
    together = wide.sample(QUESTIONS, 8, **CALL)
    assert outline(together) == outline(one.sample([question], 12, **CALL)[0][:8] for question in QUESTIONS)
    assert outline(together) != outline(wide.sample(QUESTIONS, 8, **{**CALL, "step": 4}))


@pytest.mark.slow
def test_a_sampler_without_entropies_draws_the_same() -> None:
    def silent() -> Plain:
        backend = plain(8, own=digits(), silent=True)
        backend.gives_entropies = False
        return backend

    given = regenerated(plain(8, own=digits()), 8, least_characters=1)
    scored = regenerated(silent(), 8, least_characters=1)
    assert outline(given) == outline(scored) and all(r.entropy is None for r in chain(*scored))
