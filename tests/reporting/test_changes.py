"""Which questions changed."""

from __future__ import annotations

import dataclasses

from saved_runs import AFTER, BEFORE, item, rows_of

from mm_spine.reporting import changes
from mm_spine.types import Answer


def test_changes_by_hand() -> None:
    found = changes.find_changes(rows_of(BEFORE), rows_of(AFTER))
    assert [change.key for change in found.gained] == [("adapted", "a"), ("held_out", "e")]
    assert [change.key for change in found.lost] == [("adapted", "b")]
    assert found.moved == ()


def test_equal_answers_written_otherwise_are_no_other_vote() -> None:
    before, after = item("a", None, "55"), item("a", None, "55")
    after = dataclasses.replace(after, vote=Answer("5.0", "5"))
    assert changes.find_changes(rows_of([before]), rows_of([after])).moved == ()
    after = dataclasses.replace(after, vote=Answer("5", "6"))
    assert len(changes.find_changes(rows_of([before]), rows_of([after])).moved) == 1
