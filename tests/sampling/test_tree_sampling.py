"""Tree rollouts: where they fork, what branches share with their root, what they cost, and that they train as leaves.

`Plain` completes requests by whole forwards of transformers, token by token; `Scripted` without any model.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import digit_policy, small_config, write_data, write_model
from tiny import END, entropy, plain_log_probs, tiny_model, tiny_policy, tiny_questions
from torch import Tensor

from mm_spine import rollout_table
from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import DecodingConfig, MethodConfig, TreeConfig, VotesConfig
from mm_spine.draws import generator, uniforms
from mm_spine.methods.apply import Tokens, assign_credit, choose_tokens
from mm_spine.methods.table import find
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import Scores, score_responses
from mm_spine.runs.listeners.listener import Listener, Step
from mm_spine.runs.run import run
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.sampling.tree import (
    TreeSampler,
    fork_depths,
    fork_places,
    ratio_by_forks,
    special_ids,
    token_ratio,
)
from mm_spine.training.batch import collate, packed_length, trained_groups
from mm_spine.training.loss import Denominators, denominators, losses
from mm_spine.types import Group, Question, Rollout, Vote

QUESTIONS = tiny_questions(3)
TOLERANCE = 1e-5
CALL: Mapping[str, Any] = {"step": 3, "purpose": "train"}


class Watched(Backend):
    """A backend that remembers what each call was asked for, and what it drew."""

    def __init__(self, policy: Policy, decoding: DecodingConfig, seed: int = 0) -> None:
        super().__init__(policy, decoding, seed)
        self.calls: list[list[tuple[Request, Completion]]] = []

    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        uniform = [uniforms(self.decoding.max_new_tokens, self.seed, purpose, step, *named(r)) for r in requests]
        found = [self.one(*pair) for pair in zip(requests, uniform, strict=True)]
        self.calls.append(list(zip(requests, found, strict=True)))
        return found

    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        raise NotImplementedError

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        pass

    @property
    def drawn(self) -> int:
        """Tokens drawn so far."""
        return sum(len(completion.token_ids) for _, completion in chain(*self.calls))


def named(request: Request) -> tuple[str, int]:
    return request.question.id, request.index


class Plain(Watched):
    """A whole forward for every token; `silent` withholds the entropies."""

    def __init__(
        self, policy: Policy, decoding: DecodingConfig, seed: int = 0, model: Any = None, silent: bool = False
    ) -> None:
        super().__init__(policy, decoding, seed)
        self.model, self.silent = model or policy.model, silent

    @torch.no_grad()
    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        tokens, logp, certain = list(request.prefix), [], []
        while len(tokens) < len(uniform_T) and (not logp or tokens[-1] != END):
            log_probs = plain_log_probs(self.model, request.question, [*tokens, 0], self.decoding.temperature)[-1]
            probs = log_probs.double().exp()
            probs[[] if logp else list(request.barred)] = 0.0
            bounds = probs.cumsum(0)
            token = int(torch.searchsorted(bounds, float(uniform_T[len(tokens)]) * bounds[-1], right=True))
            tokens.append(token)
            logp.append(float(log_probs[token]))
            certain.append(float(entropy(log_probs)))
        own_entropy = None if self.silent else np.array(certain, np.float32)
        reason = "stop" if tokens[-1] == END else "length"
        return Completion(tuple(tokens[len(request.prefix) :]), np.array(logp, np.float32), own_entropy, reason)


class Scripted(Watched):
    """Roots as `script` says (question, index -> token ids, log-probs); branches go on with tokens above 200."""

    def __init__(self, policy: Policy, length: int, script: Callable[[str, int], tuple[Any, Any]]) -> None:
        super().__init__(policy, DecodingConfig(max_new_tokens=length))
        self.script = script

    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        if request.prefix:
            tokens = 200 + (uniform_T[len(request.prefix) :] * 100).astype(int)
            logp = np.log(uniform_T[len(request.prefix) :].astype(np.float32))
        else:
            tokens, logp = (np.asarray(x) for x in self.script(*named(request)))
        return Completion(tuple(tokens.tolist()), logp.astype(np.float32), None, "length")


@cache
def policy() -> Policy:
    """Shared: nothing here trains it."""
    return tiny_policy(1)


@cache
def digits() -> Policy:
    """Shared likewise; its responses are short and end."""
    return digit_policy()


def plain(length: int = 8, silent: bool = False, seed: int = 0, own: Policy | None = None) -> Plain:
    return Plain(own or policy(), DecodingConfig(max_new_tokens=length, temperature=0.8), seed, silent=silent)


def trees(backend: Backend, n: int, questions: Sequence[Question] = QUESTIONS, **tree: Any) -> list[list[Rollout]]:
    """Tree rollouts of one call."""
    return TreeSampler(backend, TreeConfig(**tree)).sample(questions, n, **CALL)


def outline(rollouts: Iterable[Iterable[Rollout]]) -> list[Any]:
    """Everything but the log-probs and entropies, which other batches round otherwise."""
    names = ("question_id", "index", "token_ids", "text", "finish_reason", "parent", "fork_at", "weight")
    return [[getattr(rollout, name) for name in names] for rollout in chain(*rollouts)]


def branches(group: Sequence[Rollout]) -> list[tuple[Rollout, Rollout, int]]:
    """(root, branch, fork) of every branch of a question."""
    by_index = {r.index: r for r in group}
    return [(by_index[r.parent], r, r.fork_at) for r in group if r.parent is not None and r.fork_at is not None]


def random_script(length: int) -> Callable[[str, int], tuple[Any, Any]]:
    """Roots of random tokens and log-probs: forks fall anywhere."""

    def script(name: str, index: int) -> tuple[Any, Any]:
        rng = generator("script", name, index)
        return rng.integers(0, 200, length), -rng.exponential(1.0, length)

    return script


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


def test_entropy_forks_are_the_policys_own_where_the_sampler_gives_none() -> None:
    """By the plain forward, with the sampler's entropies and without; surprisal forks elsewhere."""
    given, silent = (trees(plain(silent=silent), 5, rank_by="entropy") for silent in (False, True))
    assert outline(given) == outline(silent) != outline(trees(plain(), 5))
    assert all(r.entropy is None for r in chain(*silent)) and all(r.entropy is not None for r in chain(*given))
    for question, group in zip(QUESTIONS, given, strict=True):
        exact = entropy(plain_log_probs(tiny_model(1), question, group[0].token_ids, 0.8)).detach().numpy()
        assert [group[1].fork_at, group[3].fork_at] == fork_places(group[0].token_ids, exact, 2, special_ids(policy()))


# --- what a branch is -------------------------------------------------------------------------------------------------


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


# --- what trees cost --------------------------------------------------------------------------------------------------


def test_tokens_drawn_are_what_the_recorded_forks_say() -> None:
    for tree in ({}, {"distinct": True}, {"forks": 3, "branches": 1}):
        backend = plain(own=digits())
        found = list(chain(*trees(backend, 12, QUESTIONS[:1], **tree)))
        assert backend.drawn == sum(len(r.token_ids) - (r.fork_at or 0) for r in found)
        ratio = token_ratio([r.fork_at for r in found], [len(r.token_ids) for r in found])
        assert ratio == backend.drawn / sum(len(r.token_ids) for r in found)


def even_forks(length: int) -> Callable[[str, int], tuple[Any, Any]]:
    """Twelve roots whose two forks each lie at 24 evenly spaced places, from 1/48 of the length to 47/48."""

    def script(name: str, index: int) -> tuple[Any, Any]:
        logp = np.full(length, -0.01)
        logp[[length * (4 * (index // 5) + side) // 48 for side in (1, 3)]] = -5.0, -4.0
        return generator("even", name, index).integers(0, 200, length), logp

    return script


def test_uniform_forks_cost_three_fifths_of_flat_sampling() -> None:
    """M 12, N 2, B 2: (1 + 0.5 x 4)/(1 + 4) = 0.60 at 60 leaves, by counting and by the formula."""
    backend = Scripted(policy(), 240, even_forks(240))
    (group,) = trees(backend, 60, QUESTIONS[:1])
    assert len(group) == 60 and backend.drawn == 0.6 * 60 * 240
    assert token_ratio([r.fork_at for r in group], [len(r.token_ids) for r in group]) == 0.6
    assert ratio_by_forks(group) == pytest.approx(0.6, abs=1e-12)
    assert np.mean(fork_depths(group)) == pytest.approx(0.5, abs=1e-12) and len(fork_depths(group)) == 24


@pytest.mark.parametrize("forks, count", [(2, 2), (3, 2), (1, 4)])
def test_the_formula_agrees_with_counting_where_branches_are_as_long_as_their_root(forks: int, count: int) -> None:
    """(1 + B sum_k(1 - t_k/T))/(1 + B N), over eight trees of each question."""
    size = 1 + forks * count
    found = list(chain(*trees(Scripted(policy(), 50, random_script(50)), 8 * size, forks=forks, branches=count)))
    measured = token_ratio([r.fork_at for r in found], [len(r.token_ids) for r in found])
    assert ratio_by_forks(found) == measured
    depths = fork_depths(found)
    assert len(depths) == 3 * 8 * forks
    assert measured == pytest.approx((1 + count * forks * (1 - np.mean(depths))) / size, rel=1e-12)


def test_roots_of_different_lengths_weigh_by_their_tokens() -> None:
    """Trees of 10 and 30 tokens forked at 4 and 3, one branch each, of 6 and 9 tokens; a flat one of 5.

    Counted: 10 + 2 + 30 + 6 + 5 of 60; by the forks: 10 + 6 + 30 + 27 + 5 of 85.
    """
    lengths, forks, parents = [10, 6, 30, 9, 5], [None, 4, None, 3, None], [None, 0, None, 2, None]
    made = [
        Rollout("q", i, (1,) * length, "", np.zeros(length), None, "stop", parent, at)
        for i, (length, at, parent) in enumerate(zip(lengths, forks, parents, strict=True))
    ]
    assert token_ratio(forks, lengths) == 53 / 60
    assert ratio_by_forks(made) == 78 / 85
    assert fork_depths(made) == [0.4, 0.1]
    assert token_ratio([None], [0]) == 1.0 and token_ratio([], []) == 1.0


# --- what the trainer makes of them -----------------------------------------------------------------------------------


def group_of(question: Question, rollouts: Sequence[Rollout]) -> Group:
    """Every third rollout gave the vote's answer."""
    answers = tuple("1" if i % 3 == 0 else str(i) for i in range(len(rollouts)))
    share = answers.count("1") / len(answers)
    vote = Vote("1", share, {}, 0.0, len(answers))
    return Group(question, tuple(rollouts), answers, vote, parsed=(None,) * len(answers))


def hinge(values: Tensor) -> Tensor:
    return torch.where(values > 1e-4, values, 0.0)


def plain_loss(
    model: Any, groups: Sequence[Group], tokens: Sequence[Sequence[Tokens]], options: MethodConfig, over: Denominators
) -> Tensor:
    """Policy term and band, one forward for each leaf of each group."""
    total = torch.zeros(())
    for group, chosen in zip(groups, tokens, strict=True):
        for rollout, advantage, own in zip(group.rollouts, group.advantages, chosen, strict=True):
            log_probs = plain_log_probs(model, group.question, rollout.token_ids, 0.8)
            logp = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            ratio = torch.exp(logp - logp.detach())
            total = total - (ratio * advantage)[own.policy_T].sum() / over.policy
            if own.bounds is not None:
                certain = entropy(log_probs)[own.band_T]
                below, above = hinge(own.bounds.low - certain), hinge(certain - own.bounds.high)
                hinges = options.band_low_weight * below + options.band_high_weight * above
                total = total + hinges.sum() / over.band
    return total


@pytest.mark.parametrize("method", ["spine", "ettrl"])
def test_training_on_trees_is_flat_training_on_their_leaves(method: str) -> None:
    """Loss and every gradient, against a plain forward for each leaf with its own advantage, mask and bounds."""
    own, model = tiny_policy(2, tied=False), tiny_model(2, tied=False)
    options = small_config({"method": {"name": method, "share": 0.5, "kl": "none"}}).method
    rollouts = trees(Plain(own, DecodingConfig(max_new_tokens=24, temperature=0.8)), 6, QUESTIONS[:2])
    groups = [group_of(*pair) for pair in zip(QUESTIONS, rollouts, strict=False)]
    groups = assign_credit(groups, find(method), options)
    tokens = choose_tokens(groups, find(method), options, seed=0, step=0)
    over, rows = denominators(tokens, options), trained_groups(groups, tokens, options)
    trained = own.text((micro := collate(own, rows)).packed, Distribution(0.8, own.banned))
    parts = losses(trained, micro, trained.stats.logp_NT.detach(), options, over)
    (parts.policy + parts.band).backward()
    expected = plain_loss(model, groups, tokens, options, over)
    expected.backward()
    torch.testing.assert_close(parts.policy + parts.band, expected, rtol=TOLERANCE, atol=TOLERANCE)
    names = {id(parameter): name for name, parameter in own.model.named_parameters()}
    flat = dict(model.named_parameters())
    for name, parameter in own.trainable().items():
        wanted = flat[names[id(parameter)]].grad
        assert wanted is not None and parameter.grad is not None and wanted.norm() > 0, name
        assert (parameter.grad - wanted).norm() <= TOLERANCE * wanted.norm(), name
    prompts = sum(len(own.prompt(question).ids_L) for question in QUESTIONS[:2])
    leaves = sum(len(r.token_ids) - 1 for group in rollouts for r in group)
    assert micro.packed.plan.length < prompts + leaves


def test_shared_tokens_are_computed_once() -> None:
    """A row is its prompt and the tokens drawn; the last token of a leaf predicts nothing and is left out."""

    def script(name: str, index: int) -> tuple[Any, Any]:
        logp = np.full(60, -0.1)
        logp[[20, 40]] = -2.0
        return generator(name, index).integers(0, 200, 60), logp

    backend = Scripted(policy(), 60, script)
    (rollouts,) = trees(backend, 10, QUESTIONS[:1])
    silent = [replace(r, entropy=np.zeros(60, np.float32)) for r in rollouts]
    options = small_config({"method": {"name": "ttrl"}}).method
    groups = assign_credit([group_of(QUESTIONS[0], silent)], find("ttrl"), options)
    (row,) = trained_groups(groups, choose_tokens(groups, find("ttrl"), options, 0, 0), options)
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    assert backend.drawn == 2 * (60 + 2 * 40 + 2 * 20)
    assert packed_length(policy(), row) == prompt + backend.drawn - len(rollouts)


ETTRL: Mapping[str, Any] = {
    "method": "ettrl",
    "sampling": {"votes": 11, "train_rollouts": 7},
    "optim": {"steps": 3, "lr": 0.003},
}


def test_the_loop_trains_on_trees() -> None:
    """With the configured sampler; votes over all leaves, the first 7 trained on, shared tokens counted once."""
    config = small_config(ETTRL)
    own, seen = digit_policy(config.model), []
    start = own.weights()
    assert adapt(QUESTIONS, own, config=config, hooks=Hooks(on_step=seen.append)).steps == 3
    assert any(not torch.equal(p, start[name]) for name, p in own.trainable().items())
    for record in seen:
        assert record.report.parity_max < 1e-4
        for group in record.groups:
            assert [r.index for r in group.rollouts] == list(range(7))
            assert {r.parent for r in group.rollouts} <= {None, 0, 5}
    assert any(branches(group.rollouts) for record in seen for group in record.groups)
    assert any(record.report.grad_norm > 0 for record in seen)


def test_the_loop_counts_what_trees_share_once() -> None:
    config = small_config(ETTRL, {"optim": {"steps": 1}, "sampling": {"votes": 7}})
    seen: list[StepRecord] = []
    adapt(QUESTIONS, digit_policy(config.model), config=config, hooks=Hooks(on_step=seen.append))
    found = [r for group in seen[0].groups for r in group.rollouts]
    assert seen[0].report.tokens_sampled == sum(len(r.token_ids) - (r.fork_at or 0) for r in found)
    assert any(r.fork_at for r in found)


def test_votes_in_rounds_end_at_whole_trees() -> None:
    """Each question's leaves are the first of its full vote, however many rounds it took."""
    tree = TreeSampler(HFSampler(digits(), DecodingConfig(max_new_tokens=4)), TreeConfig())
    votes = VotesConfig(max=22, stop="decided", round=4)
    full = tree.sample(QUESTIONS, 22, step=0, purpose="train")
    groups = vote_in_rounds(tree, QUESTIONS, votes, 3, step=0, purpose="train")
    counts = [len(group.rollouts) for group in groups]
    assert all(count % 5 == 0 or count == 22 for count in counts)
    assert outline(group.rollouts for group in groups) == outline(g[:n] for g, n in zip(full, counts, strict=True))


def test_the_loop_scores_trees_that_come_without_entropies() -> None:
    config = small_config(ETTRL, {"optim": {"steps": 1}, "sampling": {"max_new_tokens": 4}})
    reports = []
    for silent in (False, True):
        own, seen = digit_policy(config.model), []
        backend = Plain(own, config.sampling, config.seed, silent=silent)
        tree = TreeSampler(backend, config.sampling.tree or TreeConfig())
        adapt(QUESTIONS, own, tree, config=config, hooks=Hooks(on_step=seen.append))
        reports.append(seen[0].report)
    given, scored = reports
    assert given.grad_norm > 0 and scored.grad_norm == pytest.approx(given.grad_norm, rel=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run with trees, and its configuration."""
    folder = tmp_path_factory.mktemp("trees")
    model, data = write_model(folder / "model"), write_data(folder / "data")
    off = {"evaluation": {"held_out": False, "limit": 1}}
    config = small_config({"benchmark": str(data), "model": {"path": str(model)}}, ETTRL, off)
    assert run(config, folder / "whole") is not None
    return folder / "whole", config


def test_a_run_records_parents_and_forks(whole: tuple[Path, Any]) -> None:
    tables = [rollout_table.read_rollout_table(path) for path in sorted(whole[0].glob("rollouts/*.parquet"))]
    assert len(tables) == 3
    forked = 0
    for table in tables:
        rows = {(row["question_id"], row["index"]): row for row in table.to_pylist()}
        for row in rows.values():
            if row["parent"] is not None:
                root, at = rows[row["question_id"], row["parent"]], row["fork_at"]
                assert row["token_ids"][:at] == root["token_ids"][:at]
                forked += 1
    assert forked > 12


def test_a_run_with_trees_resumes_to_the_bit(whole: tuple[Path, Any], tmp_path: Path) -> None:
    class Stopping(Listener):
        def step(self, step: Step) -> None:
            if step.report.step == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    assert run(whole[1], tmp_path / "stopped", listener=Stopping()) is None
    assert run(whole[1], tmp_path / "stopped", resume=True) is not None
    for pattern in ("steps.jsonl", "rollouts/*.parquet", "adapted/*.safetensors"):
        paths = sorted(whole[0].glob(pattern))
        assert paths
        for path in paths:
            assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(whole[0])).read_bytes(), path.name


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_plain_forward() -> None:
    """Several questions in one forward; responses that are equal, that continue one another, and of no tokens."""
    responses = [[(5, 6, 7), (5, 6, 7, 8, END), (5, 6, 7), ()], [], [(END,)], [()]]
    questions = [*QUESTIONS, QUESTIONS[0]]
    found = score_responses(policy(), list(zip(questions, responses, strict=True)), Distribution(0.8, policy().banned))
    assert [len(scores) for scores in found] == [4, 0, 1, 1]
    for question, rows, scores in zip(questions, responses, found, strict=True):
        for tokens, own in zip(rows, scores, strict=True):
            assert own.logp.shape == own.entropy.shape == (len(tokens),)
            if tokens:
                assert_scores(own, question, tokens)


def assert_scores(own: Scores, question: Question, tokens: Sequence[int]) -> None:
    with torch.no_grad():
        log_probs = plain_log_probs(tiny_model(1), question, tokens, 0.8)
    drawn = log_probs.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    np.testing.assert_allclose(own.logp, drawn.numpy(), atol=1e-5)
    np.testing.assert_allclose(own.entropy, entropy(log_probs).numpy(), atol=1e-5)


def test_scoring_nothing_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "prompt", lambda *_: pytest.fail("a prompt was encoded"))
    distribution = Distribution(1.0)
    assert score_responses(policy(), [], distribution) == []
    assert score_responses(policy(), [(QUESTIONS[0], []), (QUESTIONS[1], [])], distribution) == [[], []]
