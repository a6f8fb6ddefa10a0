"""Votes over the meaning of answers: classes of equal answers, the winner, and when it can no longer change.

Label-free by construction: answers and their spec come in, never a gold. Nothing here depends on the order
of the rollouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, combinations

import numpy as np
from scipy.special import gammainc, gammaln

from mm_spine.processors.answers import parse_all, same
from mm_spine.types import Answer, AnswerSpec, Group, Question, Rollout, Vote


def classify(answers: Sequence[Answer | None], spec: AnswerSpec) -> list[str | None]:
    """The class name of each of N answers, None where nothing was parsed.

    A class is one canonical key where the kind has keys, else a connected component of pairwise `same`
    (equality by machine is not transitive). Its name is the shortest member, then the smallest by code point.
    Further answers can only join classes, never part them.
    """
    names = _components(sorted({a for a in answers if a is not None}, key=_total_order), spec)
    return [None if answer is None else names[answer] for answer in answers]


def vote(answers: Sequence[Answer | None], spec: AnswerSpec) -> tuple[Vote, tuple[str | None, ...]]:
    """The vote of N rollouts, and the class of each.

    The largest class wins; on a tie the smallest name by code point, with margin 0. What was not parsed
    counts in N but never wins. ValueError: no rollouts.
    """
    if not answers:
        raise ValueError("a vote needs at least one rollout")
    classes = tuple(classify(answers, spec))
    counts = dict(_ranked(Counter(name for name in classes if name is not None)))
    leader, second = ([*counts.values(), 0, 0])[:2]
    n = len(answers)
    winner = next(iter(counts), None)
    return Vote(winner, leader / n, counts, (leader - second) / n, sum(counts.values())), classes


def representative(
    answers: Sequence[Answer | None], classes: Sequence[str | None], winner: str | None
) -> Answer | None:
    """The answer that a vote is graded by: the shortest of the winning class, then the smallest, in any order.

    A class's name need not read back as an answer. It stands in only where no member is left, as when the vote was
    over more rollouts than these; None where nothing won.
    """
    if winner is None:
        return None
    members = (answer for answer, name in zip(answers, classes, strict=True) if answer is not None and name == winner)
    return min(members, key=_name_order, default=Answer(winner, winner))


def decided(counts: Mapping[str, int], remaining: int, keyed: bool) -> bool:
    """Whether no outcome of the `remaining` samples can change the winner of `counts` (class name -> votes).

    Keyed kinds: every rival ends below the leader, or level with it and after it by name; a class not yet
    seen may have any name. Kinds without keys: a new answer may join any other classes into one, so the
    leader needs more than all of them and the remaining samples together. The class that wins in the end then holds
    every vote that leads now, under a shorter name perhaps, and more only where a new answer equals both it and a
    rival. ValueError: negative `remaining`.
    """
    if remaining < 0:
        raise ValueError(f"remaining samples cannot be negative: {remaining}")
    if remaining == 0:
        return True
    ranked = _ranked(counts)
    if not ranked:
        return False
    (winner, leader), *rivals = ranked
    if not keyed:
        return leader > sum(count for _, count in rivals) + remaining
    safe = all((-leader, winner) < (-count - remaining, name) for name, count in rivals)
    return safe and leader > remaining


def confident(counts: Mapping[str, int], level: float) -> bool:
    """Whether the posterior that the leader of `counts` is the mode of the answers exceeds `level`.

    The idea of stopping votes by a posterior is Adaptive-Consistency's (Aggarwal et al. 2023, arXiv 2305.11860); the
    posterior here is `mode_posterior`, which takes rollouts as independent; the branches of a tree are not quite. What
    was not parsed is evidence of nothing. Nothing parsed: False.
    """
    return mode_posterior(counts) > level


def mode_posterior(counts: Mapping[str, int]) -> float:
    """The probability that the largest class of `counts` (class name -> votes) is the most frequent answer.

    Prior: a uniform Dirichlet(1, ..., 1) over the classes seen and one that is not, so that the posterior is
    Dirichlet(1 + votes, ..., 1). 0 where there are no votes.
    """
    votes = sorted(counts.values(), reverse=True)
    return first_is_largest([*(1.0 + n for n in votes), 1.0]) if votes else 0.0


def first_is_largest(shapes: Sequence[float]) -> float:
    """P(X_0 > X_j for all j > 0) of X ~ Dirichlet(`shapes`), K shapes of 1 or more, by quadrature to 1e-9.

    A Dirichlet is independent Gammas over their sum, so that it is the integral of Gamma(x; shapes[0])'s density
    times the product of the others' distribution functions.
    """
    lead, others = shapes[0], np.asarray(shapes[1:])[:, None]
    width = 12 * lead**0.5 + 40  # below 1e-15 of the density lies further out
    low, high = max(0.0, lead - width), lead + width
    nodes, weights = _gauss_legendre()
    x = low + (high - low) * (nodes + 1) / 2
    density = np.exp((lead - 1) * np.log(x) - x - gammaln(lead))
    return float((weights * density * gammainc(others, x).prod(axis=0)).sum() * (high - low) / 2)


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(256)


def make_group(question: Question, rollouts: Sequence[Rollout]) -> Group:
    """Parse every rollout and vote; one of `weight` k has k votes. ValueError: another question's."""
    return group_of(question, rollouts, parse_all([rollout.text for rollout in rollouts], question.spec))


def group_of(question: Question, rollouts: Sequence[Rollout], answers: Sequence[Answer | None]) -> Group:
    """`make_group` where the answers of the rollouts are parsed already."""
    for rollout in rollouts:
        if rollout.question_id != question.id:
            raise ValueError(f"question {question.id!r}: rollout {rollout.index} belongs to {rollout.question_id!r}")
    cast = [answer for answer, rollout in zip(answers, rollouts, strict=True) for _ in range(rollout.weight)]
    outcome, classes = vote(cast, question.spec)
    first = accumulate((rollout.weight for rollout in rollouts[:-1]), initial=0)
    return Group(question, tuple(rollouts), tuple(classes[i] for i in first), outcome)


def subsample(group: Group, keep: int) -> Group:
    """Vote with many, train with few: the first `keep` rollouts by index, under the vote of all.

    ValueError: `keep` below 1, or rewards already given, for those belong to the rollouts kept.
    """
    if keep < 1:
        raise ValueError(f"question {group.question.id!r}: keep at least one rollout, not {keep}")
    if group.rewards is not None or group.advantages is not None:
        raise ValueError(f"question {group.question.id!r}: subsample before rewards and advantages are computed")
    order = sorted(range(len(group.rollouts)), key=lambda i: group.rollouts[i].index)[:keep]
    return replace(
        group, rollouts=tuple(group.rollouts[i] for i in order), answers=tuple(group.answers[i] for i in order)
    )


def _name_order(answer: Answer) -> tuple[int, str]:
    return len(answer.text), answer.text


def _total_order(answer: Answer) -> tuple[int, str, str]:
    return *_name_order(answer), answer.key or ""


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _components(members: Sequence[Answer], spec: AnswerSpec) -> dict[Answer, str]:
    """Answer -> name of its component. `members` come in name order, so the first of a component names it,
    and each pair is compared at most once, always the same way round.

    Every text of a key is compared with answers that have none: to a checker 0.25 may equal what 1/4 does not."""
    first: dict[str, Answer] = {}
    root = {a: first.setdefault(a.text if a.key is None else a.key, a) for a in members}
    for a, b in combinations(members, 2):
        both_keyed = a.key is not None and b.key is not None
        if root[a] != root[b] and not both_keyed and same(a, b, spec):
            kept, absorbed = sorted((root[a], root[b]), key=_total_order)
            root = {answer: kept if r == absorbed else r for answer, r in root.items()}
    return {answer: r.text for answer, r in root.items()}
