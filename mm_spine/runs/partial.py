"""The part of an evaluation that is done, so that one that was stopped goes on at the next block of questions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from mm_spine import evaluation, files
from mm_spine.files.fingerprint import digest

log = logging.getLogger(__name__)


class PartialEvaluation:
    """Blocks of items in a file that is appended to: one line a block, after a line that says what is evaluated.

    Questions are sampled a block at a time, so that a block sampled again has the same items to the bit.
    """

    def __init__(self, path: Path, what: object) -> None:
        """Read the blocks at `path`; those that are not of `what`, compared as JSON, are dropped with a warning."""
        self.path = path
        head = {"fingerprint": digest(json.dumps(what, sort_keys=True))}
        try:
            rows = files.read_json_lines(path) if path.is_file() else []
            blocks = {(row["split"], row["start"]): list(map(evaluation.from_json, row["items"])) for row in rows[1:]}
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: damaged (%s); evaluating from the start", path, error)
            rows, blocks = [], {}
        if rows and rows[0] != head:
            log.warning("%s: of another model, data or evaluation; evaluating from the start", path)
            rows, blocks = [], {}
        self._blocks = blocks
        # Without the rest of a line that a crash has left.
        files.write_json_lines(path, rows or [head])
        if blocks:
            log.info("%s: going on after %d questions", path, sum(map(len, blocks.values())))

    def block(self, split: str, start: int) -> list[evaluation.Item] | None:
        """Return the items of the block of `split` that begins at question `start`, None if it is not done."""
        return self._blocks.get((split, start))

    def add(self, split: str, start: int, items: Sequence[evaluation.Item]) -> None:
        """Keep the items of a block; they survive a crash once this has returned."""
        row = {"split": split, "start": start, "items": [evaluation.to_json(item) for item in items]}
        files.JsonLines(self.path).append(row)

    def remove(self) -> None:
        """Delete the file: the whole evaluation is written."""
        self.path.unlink(missing_ok=True)
