"""Which questions changed."""

from __future__ import annotations

import dataclasses

from saved_runs import AFTER, BEFORE, item, rows_of

from mm_spine.reporting import changes
from mm_spine.types import Answer


def test_changes_by_hand() -> None:
    found = changes.find_changes(rows_of(BEFORE), rows_of(AFTER))
    # The largest change first: of four samples, e gains three right ones and a two.
    assert [change.key for change in found.learnt] == [("held_out", "e"), ("adapted", "a")]
    assert [change.key for change in found.corrupted] == [("adapted", "b")]
    assert found.moved == ()


def test_equal_answers_written_otherwise_are_no_other_vote() -> None:
    before, after = item("a", None, "55"), item("a", None, "55")
    after = dataclasses.replace(after, vote=Answer("5.0", "5"))
    assert changes.find_changes(rows_of([before]), rows_of([after])).moved == ()
    after = dataclasses.replace(after, vote=Answer("5", "6"))
    assert len(changes.find_changes(rows_of([before]), rows_of([after])).moved) == 1


def test_without_a_gold_answer_another_greedy_answer_is_a_change_and_the_surest_comes_first() -> None:
    before = rows_of([item(name, None, "1122") for name in "abc"])
    after = rows_of([item("a", None, "1122"), item("b", None, "1112"), item("c", None, "2222")])
    greedy = {("adapted", "b"): {"changed": "yes"}}
    # Nothing changed in a. The vote's answer rose by one sample of b, and by two of c.
    assert [change.key[1] for change in changes.find_changes(before, after, greedy).moved] == ["c", "b"]
    assert [change.key[1] for change in changes.find_changes(before, after).moved] == ["c"]
