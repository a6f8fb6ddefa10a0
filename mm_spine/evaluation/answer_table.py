"""answers.csv: what the model answered before and after, question by question. It needs no label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from mm_spine import measures
from mm_spine.evaluation import Item
from mm_spine.processors.answers import parse, same
from mm_spine.types import Answer, Question


@dataclass(frozen=True)
class AnswerRow:
    """One line of answers.csv.

    `answer_*` is the parsed greedy answer, `vote_*` the answer of the vote over the samples, "" where there is none;
    `vote_share_*` is the share of all samples that gave it, with four digits. `changed` is "yes" where the greedy
    answers before and after differ in meaning, else "no". `answer_entropy_*` is the entropy of the samples' answers in
    nats, with four digits, `distinct_answers_*` their number.
    """

    id: str
    split: str
    question: str
    answer_before: str
    answer_after: str
    vote_before: str
    vote_after: str
    vote_share_before: float
    vote_share_after: float
    changed: str
    answer_entropy_before: float
    answer_entropy_after: float
    distinct_answers_before: int
    distinct_answers_after: int


class AnswerChanges(TypedDict):
    """How many greedy answers of a split changed, and the mean share of the vote's answer before and after."""

    n: int
    changed: int
    vote_share_before: float
    vote_share_after: float


def answer_rows(questions: Iterable[Question], before: Sequence[Item], after: Sequence[Item]) -> list[AnswerRow]:
    """Pair the items of both evaluations, in the order of `after`. An item without a partner is left out."""
    asked = {question.id: question for question in questions}
    old = {(item.split, item.id): item for item in before}
    pairs = [(old[item.split, item.id], item) for item in after if (item.split, item.id) in old]
    return [_row(asked[now.id], was, now) for was, now in pairs]


def changes_by_split(rows: Iterable[AnswerRow]) -> dict[str, AnswerChanges]:
    """Count the changes of each split."""
    by_split: dict[str, list[AnswerRow]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    return {
        split: AnswerChanges(
            n=len(own),
            changed=sum(row.changed == "yes" for row in own),
            vote_share_before=sum(row.vote_share_before for row in own) / len(own),
            vote_share_after=sum(row.vote_share_after for row in own) / len(own),
        )
        for split, own in by_split.items()
    }


def rows_of_one(questions: Iterable[Question], items: Iterable[Item]) -> list[dict[str, object]]:
    """Return the answers of a single evaluation: id, split, question, answer, vote, vote_share, answer_entropy and
    distinct_answers."""
    asked = {question.id: question for question in questions}
    return [
        {
            "id": item.id,
            "split": item.split,
            "question": asked[item.id].prompt,
            "answer": _text(parse(item.greedy_text, asked[item.id].spec)),
            "vote": _text(item.vote),
            "vote_share": vote_share(item),
            "answer_entropy": answer_entropy(item),
            "distinct_answers": measures.distinct_answers(item.classes),
        }
        for item in items
    ]


def vote_share(item: Item) -> float:
    """Return the share of all samples in the largest vote class, in [0, 1], with four digits; 0 where none voted."""
    return round(measures.vote_share(item.classes), 4)


def answer_entropy(item: Item) -> float:
    """Return the entropy of the samples' answers in nats, with four digits."""
    return round(measures.answer_entropy(item.classes), 4)


def _row(question: Question, before: Item, after: Item) -> AnswerRow:
    was, now = (parse(item.greedy_text, question.spec) for item in (before, after))
    return AnswerRow(
        id=question.id,
        split=after.split,
        question=question.prompt,
        answer_before=_text(was),
        answer_after=_text(now),
        vote_before=_text(before.vote),
        vote_after=_text(after.vote),
        vote_share_before=vote_share(before),
        vote_share_after=vote_share(after),
        changed="yes" if _differ(was, now, question) else "no",
        answer_entropy_before=answer_entropy(before),
        answer_entropy_after=answer_entropy(after),
        distinct_answers_before=measures.distinct_answers(before.classes),
        distinct_answers_after=measures.distinct_answers(after.classes),
    )


def _differ(was: Answer | None, now: Answer | None, question: Question) -> bool:
    if was is None or now is None:
        return was is not now
    return not same(was, now, question.spec)


def _text(answer: Answer | None) -> str:
    return "" if answer is None else answer.text
