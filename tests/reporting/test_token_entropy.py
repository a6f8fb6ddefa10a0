"""Tokens by entropy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from saved_runs import IDS, group, rollout, text_of, write_step

from mm_spine.files.rollout_table import write_rollouts
from mm_spine.reporting import token_entropy
from mm_spine.types import Rollout


def test_entropy_is_counted_by_selection(tmp_path: Path) -> None:
    one = group("a", [rollout("a", 0, (7, 8, 7), (0.5, 0.125, 0.25)), rollout("a", 1, (8, 9), (2.0, 0.0))], ["1", "1"])
    write_step(tmp_path, 0, [one], [[np.array([1, 0, 1], bool), np.array([1, 0], bool)]])
    found = token_entropy.count_by_entropy(sorted((tmp_path / "rollouts").iterdir()))
    assert found is not None and (found.selected_B.sum(), found.others_B.sum()) == (3, 2)
    assert np.flatnonzero(found.selected_B).tolist() == [25, 50, 200]
    assert found.threshold == pytest.approx((0.425, 1.125, 1.825))  # of the lowest selected, 0.25 and 2.0
    assert found.tokens == (token_entropy.SelectedToken(7, 2, 0.375, 1.0), token_entropy.SelectedToken(8, 1, 2.0, 0.5))


def test_a_selection_that_does_not_go_by_entropy_has_no_threshold(tmp_path: Path) -> None:
    groups = [group("a", [rollout("a", i) for i in range(4)], ["1"] * 4)]
    write_step(tmp_path, 0, groups, [[np.arange(6) % 2 == 1] * 4])
    found = token_entropy.count_by_entropy([tmp_path / "rollouts" / "step_000000.parquet"])
    assert found is not None and found.threshold is None
    write_step(tmp_path, 0, groups, [[np.ones(6, bool)] * 4])
    found = token_entropy.count_by_entropy([tmp_path / "rollouts" / "step_000000.parquet"])
    assert found is not None and found.threshold is None and found.selected_B.sum() == 24


def test_rollouts_without_entropies_have_no_histogram(copy: Path) -> None:
    bare = Rollout("a", 0, IDS, "I see 5.", np.zeros(6, np.float32), None, "stop")
    shutil.rmtree(copy / "rollouts")
    write_rollouts(copy / "rollouts" / "step_000000.parquet", [group("a", [bare], ["1"])], 0)
    text = text_of(copy)
    assert "no histogram and no table of tokens" in text and "Responses from training" in text
