"""Random folders of odd rows, through a whole run: nothing is lost unseen, and nothing ends in a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small import write_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))
import fuzz_folders


@pytest.mark.slow
def test_every_row_of_an_odd_folder_is_accounted_for(tmp_path: Path) -> None:
    ended = fuzz_folders.fuzz(1, 5, tmp_path, write_model(tmp_path / "model"))
    assert ended["run"] + ended["refused"] == 5 and not ended["lost"] and not ended["traceback"], ended
    assert ended["run"] >= 3 and ended["rows"] == sum(ended[part] for part in ("asked", "skipped", "bad", "of_refused"))
