"""Tree rollouts: where they fork, what branches share with their root, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from tiny import END, entropy, plain_log_probs, tiny_model, tiny_policy
from tree_backends import (
    CALL,
    QUESTIONS,
    Scripted,
    branches,
    digits,
    named,
    outline,
    plain,
    policy,
    random_script,
    trees,
)

from mm_spine.config import DecodingConfig, TreeConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.tree import (
    TreeSampler,
    fork_places,
    special_ids,
)
from mm_spine.types import Rollout

# --- which index is what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first, n, parents",
    [
        (0, 5, [None, 0, 0, 0, 0]),
        (0, 11, [None, 0, 0, 0, 0, None, 5, 5, 5, 5, None]),
        (10, 6, [None, 10, 10, 10, 10, None]),
        (3, 8, [None, None, None, 5, 5, 5, 5, None]),
        (0, 4, [None] * 4),
        (7, 5, [None] * 5),
    ],
)
def test_whole_trees_lie_in_a_call_and_the_rest_is_flat(first: int, n: int, parents: list[int | None]) -> None:
    sampler = TreeSampler(Scripted(policy(), 9, random_script(9)), TreeConfig())
    assert sampler.whole == 5
    for question, group in zip(QUESTIONS, sampler.sample(QUESTIONS, n, first=first, **CALL), strict=True):
        assert {r.question_id for r in group} == {question.id}
        assert [r.index for r in group] == list(range(first, first + n))
        assert [r.parent for r in group] == parents


def test_branches_stand_at_their_forks_in_order_of_rank() -> None:
    """Surprisal 5 at token 3, 4 at token 6, 3 at token 0: three forks of two branches, the highest first."""
    logp = [-3.0, -1, -1, -5, -1, -1, -4, -1]
    (group,) = trees(Scripted(policy(), 8, lambda *_: (range(8), logp)), 7, QUESTIONS[:1], forks=3)
    assert [r.fork_at for r in group] == [None, 3, 3, 6, 6, 0, 0]
    assert [r.parent for r in group] == [None, *[0] * 6]


def test_sixty_votes_are_twelve_roots_and_sixty_leaves() -> None:
    (group,) = trees(Scripted(policy(), 30, random_script(30)), 60, QUESTIONS[:1])
    assert len(group) == 60 and sum(r.parent is None for r in group) == 12
    kept = [r for r in group if r.index < 32]
    assert sum(r.parent is None for r in kept) == 7
    assert {r.parent for r in kept if r.parent is not None} <= {r.index for r in kept}


def test_rounds_of_whole_trees_are_one_call() -> None:
    sampler = TreeSampler(HFSampler(digits(), DecodingConfig(max_new_tokens=6)), TreeConfig())
    whole = sampler.sample(QUESTIONS, 12, **CALL)
    rounds = [sampler.sample(QUESTIONS, n, first=first, **CALL) for first, n in ((0, 5), (5, 5), (10, 2))]
    assert outline(whole) == outline(chain(*parts) for parts in zip(*rounds, strict=True))


def test_greedy_responses_are_flat() -> None:
    backend = HFSampler(policy(), DecodingConfig(max_new_tokens=6))
    found = TreeSampler(backend, TreeConfig()).sample(QUESTIONS, 6, greedy=True, **CALL)
    assert outline(found) == outline(backend.sample(QUESTIONS, 6, greedy=True, **CALL))
    assert all(r.parent is None and r.fork_at is None for r in chain(*found))


def test_a_question_that_cannot_be_asked_has_no_rollouts() -> None:
    broken = replace(QUESTIONS[1], id="broken", images=(b"no image",))
    found = trees(plain(4), 5, [QUESTIONS[0], broken, QUESTIONS[2]])
    assert [len(group) for group in found] == [5, 0, 5]
    assert outline([found[0], found[2]]) == outline(trees(plain(4), 5, [QUESTIONS[0], QUESTIONS[2]]))


# --- where roots fork -------------------------------------------------------------------------------------------------


def test_forks_are_the_highest_signals_and_ties_go_to_the_earlier_token() -> None:
    signal_T = np.array([0.5, 2.0, 9.0, 2.0, 2.0 + 1e-6, 3.0], np.float32)
    tokens, special = [1, 2, END, 4, 5, 6], frozenset({END})
    assert fork_places(tokens, signal_T, 1, special) == [5]
    assert fork_places(tokens, signal_T, 4, special) == [5, 1, 3, 4]
    assert fork_places(tokens, signal_T, 9, special) == [5, 1, 3, 4, 0]
    assert fork_places([END], signal_T[:1], 2, special) == fork_places([], signal_T[:0], 2, special) == []


def test_special_tokens_are_all_that_the_tokenizer_marks_and_all_that_end() -> None:
    marked = tiny_policy()
    marked.model.generation_config.eos_token_id = [END, 7]
    assert special_ids(marked) == {7, *range(415, 423)}
    for ends, more in ((0, {0}), (None, set()), ([], set())):
        marked.model.generation_config.eos_token_id = ends
        assert special_ids(marked) == {*range(415, 423), *more}


def test_nothing_forks_at_a_special_token() -> None:
    """The end token is by far the least likely of each root; on a real policy likewise, over many roots."""
    script = ([7, 8, END], [-0.1, -0.2, -9.0])
    (group,) = trees(Scripted(policy(), 3, lambda *_: script), 5, QUESTIONS[:1])
    assert [r.fork_at for r in group] == [None, 1, 1, 0, 0]
    backend = HFSampler(digits(), DecodingConfig(max_new_tokens=8))
    forked = [root.token_ids[at] for group in trees(backend, 100) for root, _, at in branches(group)]
    assert len(forked) > 100 and not special_ids(digits()) & set(forked)


def test_a_short_root_forks_as_often_as_it_can_and_the_missing_leaves_are_flat() -> None:
    short = {0: ([7, END], [-0.1, -2.0]), 5: ([END], [-2.0])}
    backend = Scripted(policy(), 4, lambda name, index: short.get(index, ([1, 2, 3, END], [-1.0] * 4)))
    (group,) = trees(backend, 10, QUESTIONS[:1])
    assert [r.parent for r in group] == [None, 0, 0, None, None, *[None] * 5]
    assert [r.fork_at for r in group][:3] == [None, 0, 0]
    assert [r.token_ids for r in group[6:]] == [(1, 2, 3, END)] * 4
    assert [(r.index, r.prefix) for r, _ in backend.calls[1]] == [(i, ()) for i in (1, 2, 3, 4, 6, 7, 8, 9)]


@pytest.mark.slow
def test_entropy_forks_are_the_policys_own_where_the_sampler_gives_none() -> None:
    """By the plain forward, with the sampler's entropies and without; surprisal forks elsewhere."""
    given, silent = (trees(plain(silent=silent), 5, rank_by="entropy") for silent in (False, True))
    assert outline(given) == outline(silent) != outline(trees(plain(), 5))
    assert all(r.entropy is None for r in chain(*silent)) and all(r.entropy is not None for r in chain(*given))
    for question, group in zip(QUESTIONS, given, strict=True):
        exact = entropy(plain_log_probs(tiny_model(1), question, group[0].token_ids, 0.8)).detach().numpy()
        assert [group[1].fork_at, group[3].fork_at] == fork_places(group[0].token_ids, exact, 2, special_ids(policy()))


# --- what a branch is -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("own", [policy, digits])
def test_a_branch_is_its_roots_beginning_and_draws_of_its_own(own: Callable[[], Policy]) -> None:
    """Figures by a plain forward over the whole response; the draws are those of a request with that prefix."""
    backend = plain(own=own())
    for question, group in zip(QUESTIONS, trees(backend, 10), strict=True):
        assert branches(group)
        for root, branch, at in branches(group):
            assert branch.token_ids[:at] == root.token_ids[:at] and len(branch.token_ids) > at
            (alone,) = backend.complete([Request(question, branch.index, root.token_ids[:at])], **CALL)
            assert branch.token_ids[at:] == alone.token_ids and branch.finish_reason == alone.finish_reason
        for rollout in group:
            with torch.no_grad():
                log_probs = plain_log_probs(backend.model, question, rollout.token_ids, 0.8)
            drawn = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            np.testing.assert_allclose(rollout.logp, drawn.numpy(), atol=1e-5)
            np.testing.assert_allclose(rollout.entropy, entropy(log_probs).numpy(), atol=1e-5)
            assert rollout.text == own().tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
            assert rollout.finish_reason == ("stop" if rollout.token_ids[-1] == END else "length")
            assert rollout.weight == 1


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("own", [policy, digits])
def test_the_transformers_sampler_grows_the_trees_of_the_plain_forward(
    own: Callable[[], Policy], distinct: bool
) -> None:
    fast = HFSampler(own(), DecodingConfig(max_new_tokens=8, temperature=0.8))
    found, expected = (trees(backend, 6, distinct=distinct) for backend in (fast, plain(own=own())))
    assert outline(found) == outline(expected)
    for mine, its in zip(chain(*found), chain(*expected), strict=True):
        np.testing.assert_allclose(mine.logp, its.logp, atol=1e-4)
        np.testing.assert_allclose(mine.entropy, its.entropy, atol=1e-4)


@pytest.mark.parametrize("distinct", [False, True])
def test_the_draws_do_not_depend_on_the_batch(distinct: bool) -> None:
    """Each question alone, in another order, more of them, other rows decoded together: the same trees."""
    tree = TreeConfig(distinct=distinct)
    one, wide = (
        TreeSampler(HFSampler(digits(), DecodingConfig(max_new_tokens=6, batch_rows=rows)), tree) for rows in (1, 512)
    )
    together = wide.sample(QUESTIONS, 10, **CALL)
    alone = [one.sample([question], 15, **CALL)[0][:10] for question in QUESTIONS]
    turned = wide.sample(QUESTIONS[::-1], 10, **CALL)[::-1]
    assert outline(together) == outline(alone) == outline(turned)


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"step": 4}, {"purpose": "anchor"}])
def test_another_step_purpose_or_seed_is_another_tree(other: dict[str, Any]) -> None:
    usual = outline(trees(plain(4), 5))
    assert usual != outline(TreeSampler(plain(4), TreeConfig()).sample(QUESTIONS, 5, **{**CALL, **other}))
    assert usual != outline(trees(plain(4, seed=1), 5))


# --- distinct branches ------------------------------------------------------------------------------------------------


def tokens_at_forks(group: Sequence[Rollout]) -> dict[tuple[int, int], list[int]]:
    """(root, fork) -> the tokens there, the root's first."""
    found: dict[tuple[int, int], list[int]] = {}
    for root, branch, at in branches(group):
        found.setdefault((root.index, at), [root.token_ids[at]]).append(branch.token_ids[at])
    return found


def test_distinct_branches_start_with_different_tokens_none_the_roots() -> None:
    backend = HFSampler(digits(), DecodingConfig(max_new_tokens=6))
    free, distinct = (trees(backend, 28, branches=3, distinct=option) for option in (False, True))
    assert any(len(set(there)) < 4 for group in free for there in tokens_at_forks(group).values())
    found = [there for group in distinct for there in tokens_at_forks(group).values()]
    assert len(found) > 12 and all(len(there) == len(set(there)) == 4 for there in found)


def test_a_distinct_branch_bars_its_root_and_elder_siblings_with_their_log_probs() -> None:
    backend = plain(4)
    (group,) = trees(backend, 4, QUESTIONS[:1], forks=1, branches=3, distinct=True)
    root, *younger = group
    at = younger[0].fork_at
    assert at is not None and [len(call) for call in backend.calls] == [1, 1, 1, 1]
    for b, call in enumerate(backend.calls[1:]):
        ((request, _),) = call
        assert request.index == 1 + b and request.prefix == root.token_ids[:at]
        assert request.barred == {r.token_ids[at]: float(r.logp[at]) for r in group[: 1 + b]}


class Even(Scripted):
    """Branches begin with a token of their own, and all their tokens have the log-prob of the script."""

    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        tokens, logp, *rest = super().one(request, uniform_T)
        tokens = (300 + request.index, *tokens[1:]) if request.barred else tokens
        return Completion(tokens, np.full_like(logp, self.script(*named(request))[1][0]), *rest)


@pytest.mark.parametrize(
    "share, parents", [(1.0, [None] * 5), (0.5, [None, 0, None, 0, None]), (0.3, [None, 0, 0, 0, 0])]
)
def test_where_barring_leaves_no_probability_the_leaf_is_flat(share: float, parents: list[int | None]) -> None:
    """The root's token has all of it; it and the elder branch have half each; a third branch would have none left."""
    backend = Even(policy(), 6, lambda *_: (range(1, 7), [np.log(share)] * 6))
    (group,) = trees(backend, 5, QUESTIONS[:1], distinct=True)
    assert [r.parent for r in group] == parents
    assert all(r.token_ids == (1, 2, 3, 4, 5, 6) for r in group if r.parent is None)


def test_tokens_drawn_are_what_the_recorded_forks_say() -> None:
    for tree in ({}, {"distinct": True}, {"forks": 3, "branches": 1}):
        backend = plain(own=digits())
        found = list(chain(*trees(backend, 12, QUESTIONS[:1], **tree)))
        assert backend.drawn == sum(len(r.token_ids) - (r.fork_at or 0) for r in found)
