"""The questions that changed, as the page shows them: prompt, images, votes, and a few responses from training."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from mm_spine.reporting import tokens
from mm_spine.reporting.changed import SHOWN, Change, Changes, changes, text_of, thumbnails
from mm_spine.reporting.folder import Row, Saved, attempt

ROLLOUTS_EACH = 4
"""Responses from training that the page shows of a question."""

IMAGE_BYTES = 4_500_000
"""Of images in one page, before their base64; those of later questions stay in the run's folder."""

RESPONSE_BYTES = 6_000_000
"""Of responses from training, with their tokens, in one page."""


class Share(NamedTuple):
    """One class of equal answers: how many of the votes it has before and after, and whether it is right."""

    answer: str
    before: int
    after: int
    right: bool | None


@dataclass(frozen=True)
class Shown:
    """One question of the list of changes."""

    id: str
    split: str
    prompt: str
    images: tuple[str, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    shares: tuple[Share, ...]
    rollouts: Sequence[Mapping[str, Any]]


class Direction(NamedTuple):
    """The questions that changed one way: how many in all, and those that the page shows."""

    name: str
    mark: str
    turn: str
    title: str
    total: int
    shown: Sequence[Shown]


def directions(saved: Saved, tokenizer: Tokenizer | None, missing: list[str]) -> list[Direction]:
    """What changed each way; a damaged file costs its part, and says so in `missing`."""
    found = attempt(lambda: changes(saved.before, saved.after), missing) or Changes((), (), ())
    wanted = [change.place[1] for change in found.shown() if change.place[0] == "adapted"]
    rows = attempt(lambda: tokens.responses(saved.rollouts, wanted, ROLLOUTS_EACH), missing) or {}
    budgets = _Budget(IMAGE_BYTES), _Budget(RESPONSE_BYTES)

    def direction(name: str, mark: str, turn: str, title: str, part: Sequence[Change]) -> Direction:
        tried = [attempt(partial(_shown, change, saved, rows, tokenizer, budgets), missing) for change in part[:SHOWN]]
        return Direction(name, mark, turn, title, len(part), [each for each in tried if each is not None])

    parts = [
        direction("gained", "▲", "wrong → right", "Wrong before, right after", found.gained),
        direction("lost", "▼", "right → wrong", "Right before, wrong after", found.lost),
        direction("moved", "◆", "another vote", "Another vote, no gold answer", found.moved),
    ]
    for what, budget in zip(("Images", "Responses"), budgets, strict=True):
        if budget.refused:
            missing.append(f"{what} of {budget.refused} questions are left out to keep this page below 15 MB.")
    return parts


class _Budget:
    """Bytes that the page may still take of one kind, and how many questions had to go without."""

    def __init__(self, left: int) -> None:
        self.left, self.refused = left, 0

    def allows(self, size: int) -> bool:
        """Whether `size` bytes still fit; they are then taken."""
        fits = size <= self.left
        self.left -= size if fits else 0
        self.refused += not fits
        return fits


def _shown(
    change: Change,
    saved: Saved,
    rows: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    budgets: tuple[_Budget, _Budget],
) -> Shown:
    split, name = change.place
    sampled = rows.get(name, ()) if split == "adapted" else ()
    responses = [tokens.token_row(row, tokenizer) for row in sampled]
    images = list(thumbnails(saved.path, name))
    of_images, of_responses = budgets
    return Shown(
        id=name,
        split=split,
        prompt=tokens.shortened(saved.questions.get((split, name), "")),
        images=_embedded(images) if of_images.allows(sum(len(data) for _, data in images)) else (),
        before=_side(change.before),
        after=_side(change.after),
        shares=_shares(change),
        rollouts=responses if of_responses.allows(len(json.dumps(responses))) else (),
    )


def _embedded(images: Sequence[tuple[str, bytes]]) -> tuple[str, ...]:
    return tuple(f"data:{media};base64,{base64.b64encode(data).decode()}" for media, data in images)


def _side(row: Row) -> dict[str, Any]:
    """What one evaluation says of a question: greedy text and verdict, the vote, and the votes that it has."""
    greedy = row["greedy"] if isinstance(row["greedy"], Mapping) else {}
    classes = [name for name in row["classes"] if name is not None]
    votes = Counter(classes).most_common(1)
    return {
        "text": tokens.shortened(str(row["greedy_text"])),
        "why": tokens.shortened(str(greedy.get("why", "")), 300, 100),
        "correct": greedy.get("correct"),
        "vote": text_of(row["vote"]),
        "votes": votes[0][1] if votes else 0,
        "samples": len(row["classes"]),
    }


def _shares(change: Change, most: int = 6) -> tuple[Share, ...]:
    """The classes of answers with their votes before and after, the largest first, no answer last."""
    counts: list[Counter[str | None]] = [Counter(row["classes"]) for row in change]
    texts, right = dict[str | None, str](), dict[str | None, bool]()
    for row in change:
        for place, (name, answer) in enumerate(zip(row["classes"], row["answers"], strict=False)):
            texts.setdefault(name, text_of(answer) or str(name))
            if row["verdicts"] is not None and place < len(row["verdicts"]):
                right.setdefault(name, bool(row["verdicts"][place]["correct"]))
    order = sorted(texts, key=lambda name: (name is None, -counts[0][name] - counts[1][name], texts[name]))
    kept, rest = (order, []) if len(order) <= most else (order[: most - 1], order[most - 1 :])
    shares = [
        Share("no answer" if name is None else tokens.shortened(texts[name], 80, 40), counts[0][name], counts[1][name],
              None if name is None else right.get(name))
        for name in kept
    ]  # fmt: skip
    if rest:
        others = f"{len(rest) - (None in rest)} other answers" + (", and none" if None in rest else "")
        old, new = (sum(count[name] for name in rest) for count in counts)
        shares.append(Share(others, old, new, None))
    return tuple(shares)
