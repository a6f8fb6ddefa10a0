"""Grading against gold answers: the only code that sees one.

pass@1 is the mean score over N samples, maj@N the score of the vote's answer, pass@N the best score (TTRL,
arXiv 2504.16084, section 3), pass@k the chance that one of k samples is right. Greedy is one response at temperature 0.
The same grader serves before, during and after adaptation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from mm_spine import measures
from mm_spine.config import VotesConfig
from mm_spine.intervals import bootstrap_ci
from mm_spine.processors.answers import grade, grade_all, kind_of, parse
from mm_spine.sampling import Sampler
from mm_spine.types import Answer, AnswerKey, Group, Question, Reward, Rollout, Verdict
from mm_spine.voting import make_group, representative

log = logging.getLogger(__name__)

CHUNK = 256
"""Questions sampled at a time. It bounds the rollouts held in memory; no draw depends on it."""


@dataclass(frozen=True)
class Item:
    """One question's greedy response and N samples, graded. Verdicts and scores are None without a gold answer.

    `texts`, `answers`, `classes`, `verdicts`, `lengths` (tokens), `entropies` (mean of a response, nats, None where
    the sampler gave none) and `unparsed` have one entry per sample.
    """

    id: str
    split: str
    greedy_text: str
    greedy: Verdict | None
    texts: tuple[str, ...]
    answers: tuple[Answer | None, ...]
    classes: tuple[str | None, ...]
    verdicts: tuple[Verdict, ...] | None
    vote: Answer | None
    vote_score: float | None
    lengths: tuple[int, ...]
    entropies: tuple[float | None, ...]
    unparsed: tuple[bool, ...]


class LabelFree(TypedDict):
    """Figures of the samples that need no label: length in tokens, entropies in nats (`mean_entropy` of a token,
    `answer_entropy` of the answers to one question), distinct answers to one question, share of unparsed responses."""

    mean_length: float
    mean_entropy: float | None
    answer_entropy: float
    distinct_answers: float
    unparsed: float
    n: int


class Metrics(LabelFree):
    """One metrics block of summary.json: scores in [0, 1] with their 95 % intervals, and the label-free figures.

    Entry k - 1 of `pass_at_k` is pass@k.
    """

    greedy: float | None
    greedy_ci95: list[float] | None
    pass_at_1: float | None
    pass_at_1_ci95: list[float] | None
    maj_at_n: float | None
    maj_at_n_ci95: list[float] | None
    pass_at_n: float | None
    pass_at_k: list[float] | None
    n_labelled: int


class TagScores(TypedDict):
    """Mean scores in [0, 1] of the `n` labelled questions of one value of a tag."""

    n: int
    greedy: float
    pass_at_1: float
    maj_at_n: float
    pass_at_n: float


Measure = Callable[[Item], float | None]
"""(item) -> a figure of that question, None where it has no gold answer."""


def greedy_score(item: Item) -> float | None:
    """Return the score of the greedy response, in [0, 1]."""
    return None if item.greedy is None else item.greedy.score


def pass_at_1(item: Item) -> float | None:
    """Return the mean score over the samples, in [0, 1]."""
    return None if item.verdicts is None else float(np.mean([verdict.score for verdict in item.verdicts]))


def maj_at_n(item: Item) -> float | None:
    """Return the score of the vote's answer, in [0, 1]; 0 where nothing parsed."""
    return item.vote_score


def pass_at_n(item: Item) -> float | None:
    """Return the best score over the samples, in [0, 1]."""
    return None if item.verdicts is None else max(verdict.score for verdict in item.verdicts)


MEASURES: Mapping[str, Measure] = {
    measures.GREEDY: greedy_score,
    measures.PASS_AT_1: pass_at_1,
    measures.MAJ_AT_N: maj_at_n,
    measures.PASS_AT_N: pass_at_n,
}


def evaluate(
    questions: Sequence[Question],
    key: AnswerKey,
    sampler: Sampler,
    *,
    samples: int,
    split: str,
    rules: VotesConfig | None = None,
) -> list[Item]:
    """Draw a greedy and `samples` sampled responses per question, vote and grade, in the order of the questions.

    `rules` say which of the responses that were cut off vote; every response is graded. A question that the sampler
    could not ask (it returns an empty list) is left out and logged. Raises ValueError when
    `samples` < 1, a gold answer is not of its question's kind, or a question got another number of responses.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; evaluation needs at least 1 sample per question")
    check_key(questions, key)
    items = []
    # Purpose "evaluate" and step 0 every time: before and after are compared with common random numbers.
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        greedy = sampler.sample(chunk, 1, step=0, purpose="evaluate", greedy=True)
        sampled = sampler.sample(chunk, samples, step=0, purpose="evaluate")
        for question, first, rollouts in zip(chunk, greedy, sampled, strict=True):
            if _was_asked(question, first, rollouts, samples):
                group = make_group(question, rollouts, rules)
                items.append(_item(group, key.get(question.id), first[0], split))
    return items


def check_kinds(questions: Sequence[Question]) -> None:
    """Raise ValueError naming the first question whose kind of answer is unknown, and the nearest kind."""
    for question in questions:
        try:
            kind_of(question.spec)
        except ValueError as error:
            raise ValueError(f"question {question.id!r}: {error}") from error


def check_key(questions: Sequence[Question], key: AnswerKey) -> None:
    """Raise ValueError naming the first question whose gold answer is not of its kind."""
    for question in questions:
        if question.id in key:
            try:
                grade(None, key[question.id], question.spec)
            except ValueError as error:
                raise ValueError(f"question {question.id!r}: {error}") from error


def _was_asked(question: Question, greedy: Sequence[Rollout], rollouts: Sequence[Rollout], samples: int) -> bool:
    if not greedy and not rollouts:
        log.warning("question %r could not be asked and is not evaluated", question.id)
        return False
    if len(greedy) != 1 or len(rollouts) != samples:
        raise ValueError(
            f"question {question.id!r}: the sampler gave {len(greedy)} greedy and {len(rollouts)} sampled "
            f"responses, expected 1 and {samples}"
        )
    return True


def _item(group: Group, gold: Sequence[str] | None, greedy: Rollout, split: str) -> Item:
    # The vote was taken without the gold answer. Here the vote and the samples are graded.
    question, rollouts, answers = group.question, group.rollouts, group.parsed
    vote = representative(answers, group.answers, group.vote.answer)
    return Item(
        id=question.id,
        split=split,
        greedy_text=greedy.text,
        greedy=None if gold is None else grade(parse(greedy.text, question.spec), gold, question.spec),
        texts=tuple(rollout.text for rollout in rollouts),
        answers=answers,
        classes=group.answers,
        verdicts=None if gold is None else grade_all(answers, gold, question.spec),
        vote=vote,
        vote_score=None if gold is None else grade(vote, gold, question.spec).score,
        lengths=tuple(len(rollout.token_ids) for rollout in rollouts),
        entropies=tuple(_mean_entropy(rollout) for rollout in rollouts),
        unparsed=tuple(answer is None for answer in answers),
    )


def graded_again(item: Item, gold: Sequence[str] | None, question: Question) -> Item:
    """Return the item graded against `gold`, which became known after the evaluation; ungraded for None."""
    if gold is None:
        return replace(item, greedy=None, verdicts=None, vote_score=None)
    return replace(
        item,
        greedy=grade(parse(item.greedy_text, question.spec), gold, question.spec),
        verdicts=grade_all(item.answers, gold, question.spec),
        vote_score=grade(item.vote, gold, question.spec).score,
    )


def _mean_entropy(rollout: Rollout) -> float | None:
    if rollout.entropy is None or len(rollout.entropy) == 0:
        return None
    return float(np.mean(rollout.entropy, dtype=np.float64))


def to_json(item: Item) -> dict[str, Any]:
    """Return the item as a row of evaluation/{before,after}.jsonl."""

    def plain(value: Any) -> Any:
        if isinstance(value, Answer | Verdict):
            return value._asdict()
        return [plain(entry) for entry in value] if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in vars(item).items()}


def from_json(row: Mapping[str, Any]) -> Item:
    """Return the item of a row that `to_json` wrote. Raises ValueError naming the item and the keys that do not fit."""
    if set(row) != set(Item.__dataclass_fields__):
        odd = sorted(set(row) ^ set(Item.__dataclass_fields__))
        raise ValueError(f"item {row.get('id')!r}: missing or unknown keys {odd}; evaluate again with this version")
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    fields["greedy"] = None if row["greedy"] is None else Verdict(**row["greedy"])
    fields["verdicts"] = None if row["verdicts"] is None else tuple(Verdict(**verdict) for verdict in row["verdicts"])
    fields["vote"] = _answer(row["vote"])
    fields["answers"] = tuple(map(_answer, row["answers"]))
    return Item(**fields)


def _answer(row: Mapping[str, Any] | None) -> Answer | None:
    return None if row is None else Answer(**row)


def metrics(items: Sequence[Item]) -> Metrics:
    """Compute one metrics block of summary.json.

    Scores and their 95 % intervals are over the `n_labelled` questions with a gold answer, None where there are none.
    Raises ValueError when there are no items.
    """
    free = label_free_metrics(items)
    greedy, pass_1, maj, pass_n = (_values(items, measure) for measure in MEASURES.values())
    return Metrics(
        greedy=mean_or_none(greedy),
        greedy_ci95=_interval(greedy),
        pass_at_1=mean_or_none(pass_1),
        pass_at_1_ci95=_interval(pass_1),
        maj_at_n=mean_or_none(maj),
        maj_at_n_ci95=_interval(maj),
        pass_at_n=mean_or_none(pass_n),
        pass_at_k=pass_at_k(items),
        **free,
        n_labelled=sum(item.verdicts is not None for item in items),
    )


def pass_at_k(items: Sequence[Item]) -> list[float] | None:
    """Return the mean pass@k over the questions with a gold answer, for k = 1, 2, ...; None where there are none.

    A sample is right or wrong, by its verdict's `correct`: where scores lie between 0 and 1, entry 0 is not pass@1.
    """
    graded = [item.verdicts for item in items if item.verdicts is not None]
    counts = [(len(verdicts), sum(verdict.correct for verdict in verdicts)) for verdicts in graded]
    return measures.mean_pass_at_k(counts) if counts else None


def breakdown(
    items: Sequence[Item], tags: Mapping[str, Mapping[str, str]], names: Sequence[str]
) -> dict[str, dict[str, TagScores]]:
    """Break mean scores down by tag: tag -> value -> scores of its labelled questions, as results are published.

    `tags` maps question id -> tag -> value, `names` are the tags to report. A question without a tag is in no row of
    that tag.
    """
    table: dict[str, dict[str, TagScores]] = {}
    for name in names:
        rows: dict[str, list[Item]] = {}
        for item in items:
            value = tags.get(item.id, {}).get(name)
            if value is not None and item.verdicts is not None:
                rows.setdefault(value, []).append(item)
        if rows:
            table[name] = {value: _tag_scores(rows[value]) for value in sorted(rows)}
    return table


def _tag_scores(items: Sequence[Item]) -> TagScores:
    greedy, pass_1, maj, pass_n = (float(np.mean(_values(items, measure))) for measure in MEASURES.values())
    return TagScores(n=len(items), greedy=greedy, pass_at_1=pass_1, maj_at_n=maj, pass_at_n=pass_n)


def _values(items: Sequence[Item], measure: Measure) -> list[float]:
    return [value for value in map(measure, items) if value is not None]


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean of `values`, None without any."""
    return float(np.mean(values)) if values else None


def _interval(values: Sequence[float]) -> list[float] | None:
    return list(bootstrap_ci(values)) if values else None


def label_free_metrics(items: Sequence[Item]) -> LabelFree:
    """Compute the figures that show a collapse without any label.

    The mean entropy is over tokens, None where the sampler gave no entropies; entropy of the answers and distinct
    answers are means over questions. Raises ValueError when there are no items.
    """
    if not items:
        raise ValueError("nothing was evaluated: no question could be asked")
    lengths = np.array([length for item in items for length in item.lengths], dtype=np.float64)
    entropies = [entropy for item in items for entropy in item.entropies]
    known = np.array([entropy is not None for entropy in entropies])
    tokens, nats = lengths[known], np.array([entropy for entropy in entropies if entropy is not None])
    return LabelFree(
        mean_length=float(lengths.mean()),
        mean_entropy=float(np.average(nats, weights=tokens)) if known.any() else None,
        answer_entropy=float(np.mean([measures.answer_entropy(item.classes) for item in items])),
        distinct_answers=float(np.mean([measures.distinct_answers(item.classes) for item in items])),
        unparsed=float(np.mean([flag for item in items for flag in item.unparsed])),
        n=len(items),
    )


@dataclass(frozen=True)
class _Oracle:
    """The control that rewards correct answers. A run that uses it is not label-free."""

    key: AnswerKey
    label_free: bool = False

    def __call__(self, group: Group) -> Tensor:
        name = group.wording_of or group.question.id
        if name not in self.key:
            raise ValueError(f"question {name!r} has no gold answer; the oracle needs one for every question")
        verdicts = grade_all(group.parsed, self.key[name], group.question.spec)
        # A response that does not vote, because it was cut off, is rewarded as one without an answer.
        pairs = zip(verdicts, group.answers, strict=True)
        return torch.tensor([float(verdict.correct and answer is not None) for verdict, answer in pairs])


def oracle_reward(key: AnswerKey) -> Reward:
    """Return the reward (N,) of the oracle: 1.0 where a rollout's answer is correct. Its `label_free` is False.

    Calling the reward raises ValueError for a question without a gold answer.
    """
    return _Oracle(key)
