"""Votes over the meaning of answers: classes of equal answers, the winner, and when it can no longer change.

`vote` counts, `rank` decides who leads and how a tie is broken, `decided` and `confident` say when to stop.
Label-free by construction: answers and their spec come in, never a gold answer. Nothing here depends on the order of
the rollouts. A tie favours no label: the order of tied classes is drawn by a hash for each question anew.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, combinations

import numpy as np
from scipy.special import gammainc, gammaln

from mm_spine.config import VotesConfig
from mm_spine.processors.answers import closes_answer, kind_of, parse_all, same
from mm_spine.types import Answer, AnswerSpec, Group, Question, Rollout, Vote


def classify(answers: Sequence[Answer | None], spec: AnswerSpec) -> list[str | None]:
    """Return the class name of each of N answers, None where nothing was parsed.

    A class is one canonical key where the kind has keys, else a connected component of pairwise `same`, because
    equality as computed need not be transitive. A class is named after its shortest member, the smallest by code point
    among those. Further answers can only join classes, never split them. A kind may have classes of its own instead.
    """
    if (classes := kind_of(spec).classes) is not None:
        return classes(answers, spec)
    names = _components(sorted({a for a in answers if a is not None}, key=_total_order), spec)
    return [None if answer is None else names[answer] for answer in answers]


def vote(answers: Sequence[Answer | None], spec: AnswerSpec, question_id: str) -> tuple[Vote, tuple[str | None, ...]]:
    """Return the vote of N rollouts of a question, and the class of each.

    The largest class wins. On a tie the margin is 0 and the hash of `rank` decides. Unparsed responses count in N but
    never win. Raises ValueError without rollouts.
    """
    if not answers:
        raise ValueError("a vote needs at least one rollout")
    classes = tuple(classify(answers, spec))
    counts = dict(rank(Counter(name for name in classes if name is not None), question_id))
    leader, second = ([*counts.values(), 0, 0])[:2]
    n = len(answers)
    winner = next(iter(counts), None)
    return Vote(winner, leader / n, counts, (leader - second) / n, sum(counts.values())), classes


def rank(counts: Mapping[str, int], question_id: str) -> list[tuple[str, int]]:
    """Order the classes of a question by votes. Of classes with equal votes, the smallest `tie_order` is first."""
    return sorted(counts.items(), key=lambda item: (-item[1], tie_order(question_id, item[0])))


def tie_order(question_id: str, name: str) -> bytes:
    """Return what tied classes of a question are ordered by: a hash of its id and the class name."""
    # An order by name would elect "A" in 34 % and "D" in 19 % of votes of 8 by uniform chance. Python's own hash
    # differs between processes. An id or answer may hold lone surrogates, which plain UTF-8 refuses.
    text = "\x1f".join(("tie", question_id, name)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def representative(
    answers: Sequence[Answer | None], classes: Sequence[str | None], winner: str | None
) -> Answer | None:
    """Return the answer that a vote is graded by: the one that the winning class is named by.

    Where it is not among `answers`, it is the shortest of the class, then the smallest by code point. None where
    nothing won.
    """
    # A class's name need not parse back into an answer. It stands in only where no member is left, as when the vote
    # was over more rollouts than are given here.
    if winner is None:
        return None
    members = [answer for answer, name in zip(answers, classes, strict=True) if answer is not None and name == winner]
    named = [answer for answer in members if answer.text == winner]
    return min(named or members, key=_shortest_first, default=Answer(winner, winner))


def decided(counts: Mapping[str, int], remaining: int, keyed: bool, question_id: str) -> bool:
    """Whether no outcome of the `remaining` samples can change the winner of `counts` (class name -> votes).

    Kinds with keys: every rival ends below the leader, or level with it and after it in `tie_order`. A class not yet
    seen may come before any other in that order, so that the leader also needs more votes than remain. Kinds without
    keys: a new answer may join any other classes into one, so that the leader needs more votes than all rivals and the
    remaining samples together. The class that wins in the end then contains all votes of the present leader, perhaps
    under a shorter name. Raises ValueError for a negative `remaining`.
    """
    if remaining < 0:
        raise ValueError(f"remaining samples cannot be negative: {remaining}")
    if remaining == 0:
        return True
    ranked = rank(counts, question_id)
    if not ranked:
        return False
    (winner, leader), *rivals = ranked
    if not keyed:
        return leader > sum(count for _, count in rivals) + remaining
    if leader <= remaining:
        return False
    first = tie_order(question_id, winner)
    return all(
        leader > count + remaining or (leader == count + remaining and first < tie_order(question_id, name))
        for name, count in rivals
    )


def confident(counts: Mapping[str, int], level: float) -> bool:
    """Whether the posterior that the leader of `counts` is the mode of the answers exceeds `level`.

    Stopping votes by a posterior is the idea of Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860). The
    posterior is `mode_posterior`. It takes rollouts as independent, which the branches of a tree are not quite.
    Unparsed responses are no evidence. False where nothing parsed.
    """
    return mode_posterior(counts) > level


def mode_posterior(counts: Mapping[str, int]) -> float:
    """Return the probability that the largest class of `counts` (class name -> votes) is the most frequent answer.

    The prior is a uniform Dirichlet(1, ..., 1) over the classes seen and one unseen class, so that the posterior is
    Dirichlet(1 + votes, ..., 1). Returns 0 where there are no votes.
    """
    votes = sorted(counts.values(), reverse=True)
    return first_is_largest([*(1.0 + n for n in votes), 1.0]) if votes else 0.0


def first_is_largest(shapes: Sequence[float]) -> float:
    """Return P(X_0 > X_j for all j > 0) of X ~ Dirichlet(`shapes`), K shapes of 1 or more, by quadrature to 1e-9."""
    # A Dirichlet variable is a vector of independent Gamma variables over their sum. The probability is the integral of
    # the density of Gamma(shapes[0]) times the product of the others' distribution functions.
    lead, others = shapes[0], np.asarray(shapes[1:])[:, None]
    # Less than 1e-15 of the density lies further out.
    width = 12 * lead**0.5 + 40
    low, high = max(0.0, lead - width), lead + width
    nodes, weights = _gauss_legendre()
    x = low + (high - low) * (nodes + 1) / 2
    density = np.exp((lead - 1) * np.log(x) - x - gammaln(lead))
    return float((weights * density * gammainc(others, x).prod(axis=0)).sum() * (high - low) / 2)


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(256)


def make_group(question: Question, rollouts: Sequence[Rollout], rules: VotesConfig | None = None) -> Group:
    """Parse every rollout and vote by `rules` (`cut_off` and `ties`); a rollout of `weight` k has k votes.

    Raises ValueError for a rollout of another question.
    """
    return group_of(question, rollouts, parse_all([rollout.text for rollout in rollouts], question.spec), rules)


def group_of(
    question: Question,
    rollouts: Sequence[Rollout],
    answers: Sequence[Answer | None],
    rules: VotesConfig | None = None,
) -> Group:
    """Vote on rollouts whose answers are parsed already. See `make_group`."""
    rules = rules or VotesConfig()
    for rollout in rollouts:
        if rollout.question_id != question.id:
            raise ValueError(f"question {question.id!r}: rollout {rollout.index} belongs to {rollout.question_id!r}")
    cut = frozenset() if rules.cut_off == "count" else frozenset(r.index for r in rollouts if unfinished(r))
    cast = [
        None if rollout.index in cut else answer
        for answer, rollout in zip(answers, rollouts, strict=True)
        for _ in range(rollout.weight)
    ]
    outcome, classes = vote(cast, question.spec, question.id)
    first = accumulate((rollout.weight for rollout in rollouts[:-1]), initial=0)
    dropped = cut if rules.cut_off == "mask" else frozenset()
    if rules.ties == "drop" and outcome.tied:
        dropped = frozenset(rollout.index for rollout in rollouts)
    return Group(
        question,
        tuple(rollouts),
        tuple(classes[i] for i in first),
        outcome,
        parsed=tuple(answers),
        dropped=dropped,
    )


def unfinished(rollout: Rollout) -> bool:
    """Whether a rollout was cut off by the limit on its tokens before it closed an answer."""
    return rollout.finish_reason == "length" and not closes_answer(rollout.text)


def subsample(group: Group, keep: int) -> Group:
    """Keep the first `keep` rollouts by index, under the vote of all: vote with many, train with few.

    Raises ValueError for `keep` below 1, or where rewards are computed already: they are over the kept rollouts.
    """
    if keep < 1:
        raise ValueError(f"question {group.question.id!r}: keep at least one rollout, not {keep}")
    if group.rewards is not None or group.advantages is not None:
        raise ValueError(f"question {group.question.id!r}: subsample before rewards and advantages are computed")
    order = sorted(range(len(group.rollouts)), key=lambda i: group.rollouts[i].index)[:keep]
    return group.at(order)


def _shortest_first(answer: Answer) -> tuple[int, str]:
    return len(answer.text), answer.text


def _total_order(answer: Answer) -> tuple[int, str, str]:
    return *_shortest_first(answer), answer.key or ""


def _components(members: Sequence[Answer], spec: AnswerSpec) -> dict[Answer, str]:
    """Map each answer to the name of its component. `members` are in name order: the first of a component names it."""
    # Each pair is compared at most once, always the same way round. Every text of a key is compared with the answers
    # without a key: a checker may find 0.25 equal to an answer that it does not find equal to 1/4.
    first: dict[str, Answer] = {}
    root = {a: first.setdefault(a.text if a.key is None else a.key, a) for a in members}
    for a, b in combinations(members, 2):
        both_keyed = a.key is not None and b.key is not None
        if root[a] != root[b] and not both_keyed and same(a, b, spec):
            kept, absorbed = sorted((root[a], root[b]), key=_total_order)
            root = {answer: kept if r == absorbed else r for answer, r in root.items()}
    return {answer: r.text for answer, r in root.items()}
