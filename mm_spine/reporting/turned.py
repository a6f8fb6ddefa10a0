"""Questions learnt and corrupted by a finished run, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mm_spine.measures import GREEDY, VOTE, Turn, Turned, turned
from mm_spine.reporting.finished_run import GREEDY_IS_RIGHT, VOTE_IS_RIGHT, VOTE_SHARE, Scores
from mm_spine.reporting.formats import NONE, percent

RIGHT = {GREEDY: GREEDY_IS_RIGHT, VOTE: VOTE_IS_RIGHT}
"""What turns -> the measure that says whether it is right."""

WORDS = {GREEDY: "greedy answers", VOTE: "votes"}
"""What turns, in words."""

Turns = Mapping[str, Sequence[Turn]]
"""`greedy` or `vote` -> the questions with a gold answer."""


def turns_of(before: Scores, after: Scores) -> Turns:
    """Return for each question with a gold answer whether it was right before and is right after."""
    return {by: _turns(before, after, measure) for by, measure in RIGHT.items()}


def _turns(before: Scores, after: Scores, measure: str) -> list[Turn]:
    found = []
    for name, was in before[measure].items():
        now, share = after[measure][name], before[VOTE_SHARE][name]
        if was is not None and now is not None and share is not None:
            found.append(Turn(bool(was), bool(now), share))
    return found


class BinRow(NamedTuple):
    """A row of the table by the vote's share at the start; `*_length` are bars, as shares of the longest."""

    name: str
    n: int
    wrong_before: int
    learnt: int
    corrupted: int
    learnt_length: float
    corrupted_length: float


class TurnedTable(NamedTuple):
    """What the page shows of one kind of answers."""

    title: str
    words: str
    rows: Sequence[BinRow]


def tables(turns: Turns) -> list[TurnedTable]:
    """Return a table for greedy answers and one for votes; none without gold answers."""
    return [_table(by, turned(found)) for by, found in turns.items() if found]


def _table(by: str, found: Turned) -> TurnedTable:
    longest = max((max(each["learnt"], each["corrupted"]) for each in found["bins"]), default=0) or 1
    rows = [
        BinRow(
            name=bin_name(each["low"], each["high"]),
            n=each["n"],
            wrong_before=each["n"] - each["right_before"],
            learnt=each["learnt"],
            corrupted=each["corrupted"],
            learnt_length=each["learnt"] / longest,
            corrupted_length=each["corrupted"] / longest,
        )
        for each in found["bins"]
    ]
    words = (
        f"{found['learnt']:,} learnt, mean vote share at the start {share_words(found['learnt_share'])}; "
        f"{found['corrupted']:,} corrupted, {share_words(found['corrupted_share'])}."
    )
    return TurnedTable(WORDS[by][0].upper() + WORDS[by][1:], words, rows)


def bin_name(low: float, high: float) -> str:
    """Return the name of a bin of the vote's share: "25-50 %", and "100 %" for the last."""
    return "100\u00a0%" if low == high else f"{100 * low:.0f}\u2013{100 * high:.0f}\u00a0%"


def share_words(share: float | None) -> str:
    """Return a mean share in percent, a dash where there is none."""
    return NONE if share is None else percent(share)


def sentence(turns: Turns) -> str:
    """Say how many greedy answers were learnt and corrupted, and how sure the start's votes were; "" without any."""
    found = turned(turns.get(GREEDY, ()))
    if not found["learnt"] and not found["corrupted"]:
        return ""
    learnt, corrupted = (
        "" if share is None else f"; mean vote share at the start {percent(share)}"
        for share in (found["learnt_share"], found["corrupted_share"])
    )
    return (
        f"Of {found['n']:,} greedy answers: {found['learnt']:,} learnt (wrong before, right after{learnt}), "
        f"{found['corrupted']:,} corrupted (right before, wrong after{corrupted})."
    )
