"""The questions that changed, as the page shows them: prompt, images, votes, and a few responses from training."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from mm_spine.reporting.changes import MAX_SHOWN, Change, Changes, answer_text, find_changes
from mm_spine.reporting.formats import shortened
from mm_spine.reporting.saved_run import Json, SavedRun, attempt
from mm_spine.reporting.thumbnails import read_thumbnails
from mm_spine.reporting.training_responses import read_responses, response_for_page

RESPONSES_EACH = 4
"""Responses from training that the page shows of one question."""

IMAGE_BYTES = 4_500_000
"""Bytes of images in one page, before base64; further images stay in the run's folder."""

RESPONSE_BYTES = 6_000_000
"""Bytes of responses from training, with their tokens, in one page."""

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
    """One question that changed. `images` are data URLs, `responses` the JSON that page.js shows."""

    id: str
    split: str
    prompt: str
    images: tuple[str, ...]
    before: QuestionSide
    after: QuestionSide
    classes: tuple[ClassVotes, ...]
    responses: Sequence[Json]


class Direction(NamedTuple):
    """The questions that changed in one way: `total` in all, and those that the page shows."""

    name: str
    mark: str
    turn: str
    title: str
    total: int
    shown: Sequence[ShownQuestion]


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


def shown_directions(saved: SavedRun, tokenizer: Tokenizer | None, missing: list[str]) -> list[Direction]:
    """Return what changed in each way; add a sentence to `missing` for what is damaged or does not fit."""
    changes = attempt(lambda: find_changes(saved.before, saved.after), missing) or Changes((), (), ())
    wanted = [change.key[1] for change in changes.shown() if change.key[0] == "adapted"]
    rollouts = attempt(lambda: read_responses(saved.rollouts, wanted, RESPONSES_EACH), missing) or {}
    images, responses = _Budget(IMAGE_BYTES), _Budget(RESPONSE_BYTES)

    def direction(name: str, mark: str, turn: str, title: str, changed: Sequence[Change]) -> Direction:
        shown = []
        for change in changed[:MAX_SHOWN]:
            show = partial(_shown_question, change, saved, rollouts, tokenizer, images, responses)
            if (question := attempt(show, missing)) is not None:
                shown.append(question)
        return Direction(name, mark, turn, title, len(changed), shown)

    directions = [
        direction("gained", "▲", "wrong → right", "Wrong before, right after", changes.gained),
        direction("lost", "▼", "right → wrong", "Right before, wrong after", changes.lost),
        direction("moved", "◆", "another vote", "Another vote, no gold answer", changes.moved),
    ]
    for kind, budget in (("Images", images), ("Responses", responses)):
        if budget.refused:
            missing.append(f"{kind} of {budget.refused} questions are left out to keep this page below 15 MB.")
    return directions


def _shown_question(
    change: Change,
    saved: SavedRun,
    rollouts: Mapping[str, Sequence[Json]],
    tokenizer: Tokenizer | None,
    image_budget: _Budget,
    response_budget: _Budget,
) -> ShownQuestion:
    split, name = change.key
    # Held-out questions are not trained on. A rollout of the same id is of another question.
    trained = rollouts.get(name, ()) if split == "adapted" else ()
    responses = [response_for_page(rollout, tokenizer) for rollout in trained]
    images = list(read_thumbnails(saved.path, name))
    images_fit = image_budget.takes(sum(len(data) for _, data in images))
    before, after = _side(change.before), _side(change.after)
    classes = _class_votes(change)
    return ShownQuestion(
        id=name,
        split=split,
        prompt=shortened(saved.questions.get((split, name), "")),
        images=tuple(map(_data_url, images)) if images_fit else (),
        before=before,
        after=after,
        classes=classes,
        responses=responses if response_budget.takes(len(json.dumps(responses))) else (),
    )


def _data_url(image: tuple[str, bytes]) -> str:
    media_type, data = image
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


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
    for line in change:
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
