"""The questions that changed, as the page shows them: prompt, images, votes, and a few responses from training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from mm_spine.reporting.changes import Change, Changes, answer_text, find_changes
from mm_spine.reporting.finished_run import SPLITS
from mm_spine.reporting.formats import shortened
from mm_spine.reporting.saved_run import Json, SavedRun, attempt
from mm_spine.reporting.thumbnails import data_address, read_thumbnails
from mm_spine.reporting.training_responses import read_responses, response_for_page

RESPONSES_EACH = 4
"""Responses from training that the page shows of one question."""

PAGE = 40
"""Questions of a list that the page shows at first, and adds whenever more are asked for. Only the first of them have
responses from training."""

ROW_BYTES = 4_000_000
"""Bytes of questions in one page; of more, those that changed most are shown."""

MARKUP_BYTES = 2_500
"""Bytes of one question on the page beside its texts, about."""

IMAGE_BYTES = 4_000_000
"""Bytes of images in one page, before base64; further images stay in the run's folder."""

RESPONSE_BYTES = 5_000_000
"""Bytes of responses from training, with their tokens, in one page. The whole page then stays below 15 MB."""

CLASSES_SHOWN = 6
"""Classes of equal answers that are listed for one question; the rarest are joined."""


class ClassVotes(NamedTuple):
    """A class of equal answers: its votes before and after, and whether the answer is right, where that is known."""

    answer: str
    before: int
    after: int
    right: bool | None


class QuestionSide(NamedTuple):
    """What one evaluation, before or after, has of a question.

    Attributes:
        text: the greedy response.
        why: the grader's reason for its verdict, "" without a gold answer.
        correct: the verdict on the greedy response, None without a gold answer.
        vote: the answer that won the vote, None where no sample was parsed.
        votes, samples: votes for that answer, and samples in all.
    """

    text: str
    why: str
    correct: bool | None
    vote: str | None
    votes: int
    samples: int


class ShownQuestion(NamedTuple):
    """One question that changed. `images` are data URLs, `responses` the JSON that page.js shows.

    `old` and `new` are the greedy answers, `right` the right one among them; "" where they are not known.
    """

    id: str
    prompt: str
    images: tuple[str, ...]
    before: QuestionSide
    after: QuestionSide
    old: str
    new: str
    right: str
    classes: tuple[ClassVotes, ...]
    responses: Sequence[Json]


class Direction(NamedTuple):
    """The questions of a split that changed in one way: `total` in all, and those of the page, `PAGE` at a time."""

    name: str
    split: str
    mark: str
    title: str
    total: int
    pages: Sequence[Sequence[ShownQuestion]]

    @property
    def shown(self) -> int:
        """How many the page holds."""
        return sum(map(len, self.pages))


class _Budget:
    """Bytes that the page may still hold of one kind, and the number of questions that did not fit."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.refused = 0

    def takes(self, size: int) -> bool:
        """Whether `size` bytes fit; if so, they are used up."""
        if size > self.left:
            self.refused += 1
            return False
        self.left -= size
        return True


class _Budgets:
    """What one list may hold: its share of the page's limits."""

    def __init__(self, lists: int) -> None:
        self.rows, self.images, self.responses = (
            _Budget(limit // max(lists, 1)) for limit in (ROW_BYTES, IMAGE_BYTES, RESPONSE_BYTES)
        )


KINDS = (
    ("learnt", "▲", "Learnt: wrong before, right after"),
    ("corrupted", "▼", "Corrupted: right before, wrong after"),
    ("moved", "◆", "Another answer or vote, no gold answer"),
)
"""Field of `Changes`, mark and title of a list."""


def shown_directions(saved: SavedRun, tokenizer: Tokenizer | None, missing: list[str]) -> list[Direction]:
    """Return what changed in each way, each split apart; add a sentence to `missing` for what is left out."""
    nothing = Changes((), (), ())
    changes = attempt(lambda: find_changes(saved.before, saved.after, saved.answers), missing) or nothing
    lists = [
        (kind, split, mark, title, found)
        for kind, mark, title in KINDS
        for split in SPLITS
        if (found := [change for change in getattr(changes, kind) if change.key[0] == split])
    ]
    wanted = [change.key[1] for _, split, *_, found in lists if split == "adapted" for change in found[:PAGE]]
    rollouts = attempt(lambda: read_responses(saved.rollouts, wanted, RESPONSES_EACH), missing) or {}
    refused = Counter[str]()
    directions = []
    for kind, split, mark, title, found in lists:
        budgets = _Budgets(len(lists))
        shown: list[ShownQuestion] = []
        for change in found:
            show = partial(_shown_question, change, saved, rollouts, tokenizer, budgets)
            if (question := attempt(show, missing)) is not None:
                shown.append(question)
            if budgets.rows.refused:
                break
        refused += Counter({"Images": budgets.images.refused, "Responses": budgets.responses.refused})
        pages = [shown[i : i + PAGE] for i in range(0, len(shown), PAGE)]
        directions.append(Direction(kind, split, mark, f"{title}, {SPLITS[split].lower()}", len(found), pages))
    missing += [
        f"{kind} of {count} questions are left out to keep this page below 15 MB." for kind, count in refused.items()
    ]
    return directions


def _shown_question(
    change: Change,
    saved: SavedRun,
    rollouts: Mapping[str, Sequence[Json]],
    tokenizer: Tokenizer | None,
    budgets: _Budgets,
) -> ShownQuestion | None:
    """Return a question as the page shows it, None when the list is full."""
    split, name = change.key
    before, after = _side(change.before), _side(change.after)
    prompt = shortened(saved.questions.get(change.key) or change.answers.get("question", ""))
    texts = (prompt, prompt, before.text, after.text, before.why, after.why)
    if not budgets.rows.takes(MARKUP_BYTES + sum(len(text.encode("utf-8", "replace")) for text in texts)):
        return None
    # Held-out questions are not trained on. A rollout of the same id is of another question.
    trained = rollouts.get(name, ()) if split == "adapted" else ()
    responses = [response_for_page(rollout, tokenizer) for rollout in trained]
    images = list(read_thumbnails(saved.path, name))
    images_fit = budgets.images.takes(sum(len(data) for _, data in images))
    classes = _class_votes(change)
    old, new = (shortened(change.answers.get(f"answer_{when}", ""), 40, 20) for when in ("before", "after"))
    return ShownQuestion(
        id=name,
        prompt=prompt,
        images=tuple(data_address(*image) for image in images) if images_fit else (),
        before=before,
        after=after,
        old=old,
        new=new,
        right=_right_answer(before, after, old, new, classes),
        classes=classes,
        responses=responses if budgets.responses.takes(len(json.dumps(responses))) else (),
    )


def _right_answer(before: QuestionSide, after: QuestionSide, old: str, new: str, classes: Sequence[ClassVotes]) -> str:
    """Return the right answer as the model gave it; "" where neither a greedy answer nor a sample shows it."""
    for side, answer in ((after, new), (before, old)):
        if side.correct and answer:
            return answer
    return next((shortened(votes.answer, 40, 20) for votes in classes if votes.right), "")


def _side(line: Json) -> QuestionSide:
    greedy = line["greedy"] if isinstance(line["greedy"], Mapping) else {}
    classes = [name for name in line["classes"] if name is not None]
    most_common = Counter(classes).most_common(1)
    return QuestionSide(
        text=shortened(str(line["greedy_text"])),
        why=shortened(str(greedy.get("why", "")), 300, 100),
        correct=greedy.get("correct"),
        vote=answer_text(line["vote"]),
        votes=most_common[0][1] if most_common else 0,
        samples=len(line["classes"]),
    )


def _class_votes(change: Change) -> tuple[ClassVotes, ...]:
    """Return the classes of answers, the largest first, samples without an answer last."""
    before: Counter[str | None] = Counter(change.before["classes"])
    after: Counter[str | None] = Counter(change.after["classes"])
    texts: dict[str | None, str] = {}
    right: dict[str | None, bool] = {}
    for line in (change.before, change.after):
        for place, (name, answer) in enumerate(zip(line["classes"], line["answers"], strict=False)):
            texts.setdefault(name, answer_text(answer) or str(name))
            if line["verdicts"] is not None and place < len(line["verdicts"]):
                right.setdefault(name, bool(line["verdicts"][place]["correct"]))
    order = sorted(texts, key=lambda name: (name is None, -before[name] - after[name], texts[name]))
    kept = order if len(order) <= CLASSES_SHOWN else order[: CLASSES_SHOWN - 1]
    rest = order[len(kept) :]
    votes = []
    for name in kept:
        if name is None:
            votes.append(ClassVotes("no answer", before[None], after[None], None))
        else:
            votes.append(ClassVotes(shortened(texts[name], 80, 40), before[name], after[name], right.get(name)))
    if rest:
        votes.append(ClassVotes(_name_of_rest(rest), _sum(before, rest), _sum(after, rest), None))
    return tuple(votes)


def _name_of_rest(rest: Sequence[str | None]) -> str:
    if None in rest:
        return f"{len(rest) - 1} other answers, and none"
    return f"{len(rest)} other answers"


def _sum(counts: Mapping[Any, int], names: Iterable[str | None]) -> int:
    return sum(counts[name] for name in names)
