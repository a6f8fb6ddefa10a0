"""The check of fairness, on fewer questions than it is run with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

import fair_votes


@pytest.mark.parametrize("kind, options", fair_votes.OPTIONS.items())
def test_no_option_wins_more_than_its_share(kind: str, options: tuple[str, ...]) -> None:
    found = fair_votes.shares(kind, options, questions=8000, votes=8)
    assert sum(found.values()) == pytest.approx(1)
    assert all(share == pytest.approx(1 / len(options), abs=0.02) for share in found.values())
