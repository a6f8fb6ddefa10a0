"""A few of a step's responses, for people to read while the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from PIL import Image

from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import Group, Question, Rollout

log = logging.getLogger(__name__)

IMAGES_EACH = 4
SIDE = 256
"""Longest side in pixels of an image that is shown."""


@dataclass(frozen=True)
class ShownResponse:
    """One response with its vote class, the winner's, and its reward; None where there is none."""

    question: Question
    index: int
    text: str
    answer: str | None
    vote: str | None
    reward: float | None


def first_responses(groups: Sequence[Group], count: int) -> list[ShownResponse]:
    """The first `count` responses: the first of each question, then the second of each, and so on. Nothing is drawn,
    so the run does not notice."""
    columns = [
        [_shown_response(group, place, rollout) for place, rollout in enumerate(group.rollouts)] for group in groups
    ]
    by_turns = chain.from_iterable(zip_longest(*columns))
    return list(islice((completion for completion in by_turns if completion is not None), count))


def _shown_response(group: Group, place: int, rollout: Rollout) -> ShownResponse:
    reward = None if group.rewards is None else float(group.rewards[place])
    return ShownResponse(group.question, rollout.index, rollout.text, group.answers[place], group.vote.answer, reward)


def pictures(question: Question) -> list[Image.Image]:
    """The first `IMAGES_EACH` images of a question, longest side at most `SIDE`; an unreadable one is left out."""
    found = []
    for image in question.images[:IMAGES_EACH]:
        try:
            opened = open_image(image, question.id).copy()
        except BadQuestion as error:
            log.debug("not shown: %s", error)
            continue
        opened.thumbnail((SIDE, SIDE))
        found.append(opened)
    return found


def sizes(question: Question) -> list[str]:
    """ "640x480" for each image of a question, "?" for an unreadable one."""
    found = []
    for image in question.images:
        try:
            width, height = open_image(image, question.id).size
            found.append(f"{width}x{height}")
        except BadQuestion:
            found.append("?")
    return found
