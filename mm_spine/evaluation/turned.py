"""Questions learnt (wrong before, right after) and corrupted (right before, wrong after), for summary.json."""

from __future__ import annotations

from collections.abc import Sequence

from mm_spine.evaluation import Item
from mm_spine.measures import GREEDY, VOTE, Turn, Turned, turned, vote_is_right, vote_share

TurnedAnswers = dict[str, Turned]
"""The counts by greedy answer (`greedy`) and by the vote's (`vote`)."""


def turned_by_split(before: Sequence[Item], after: Sequence[Item]) -> dict[str, TurnedAnswers]:
    """Return the counts of each split by greedy answer and by vote.

    They are over the questions with a gold answer that are in both evaluations; a split without any is left out.
    """
    old = {(item.split, item.id): item for item in before}
    pairs: dict[str, list[tuple[Item, Item]]] = {}
    for item in after:
        was = old.get((item.split, item.id))
        if was is not None and was.verdicts is not None and item.verdicts is not None:
            pairs.setdefault(item.split, []).append((was, item))
    return {
        split: {
            by: turned([Turn(is_right(was, by), is_right(now, by), vote_share(was.classes)) for was, now in of_split])
            for by in (GREEDY, VOTE)
        }
        for split, of_split in pairs.items()
    }


def is_right(item: Item, by: str) -> bool:
    """Whether the greedy answer, or the vote's, of a question with a gold answer is right."""
    if by == GREEDY:
        return item.greedy is not None and item.greedy.correct
    return vote_is_right(item.vote, item.answers, [verdict.correct for verdict in item.verdicts or ()])
