"""An answer of the page with all its votes, as files to download: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from mm_spine.commands.ask_output import as_json
from mm_spine.commands.ask_session import AskResult, VoteOutcome
from mm_spine.commands.question_queue import Asked
from mm_spine.reporting.thumbnails import data_address

COLUMNS = ("outcome", "response", "answer", "shown", "text")

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*\Z")


class Download(NamedTuple):
    """A file within the page: its name, the words of its link, and its content as a `data:` address."""

    name: str
    words: str
    address: str


def downloads(asked: Asked, result: AskResult) -> tuple[Download, ...]:
    """Return both files of a finished answer."""
    return (
        Download("answer.json", "JSON", _address("application/json", as_text(asked, result))),
        Download("answer.csv", "CSV", _address("text/csv", as_csv(result))),
    )


def as_text(asked: Asked, result: AskResult) -> str:
    """Return the object that `mm-spine ask --json` prints, indented."""
    content = as_json(asked.question, asked.settings, result, list(asked.names))
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_csv(result: AskResult) -> str:
    """Return a line per response, in the order of sampling: outcome, number from 1, answer, whether it is the response
    shown for the winning answer, text.

    Without adaptation all are of the outcome `before`. A response without an answer has an empty cell.
    """
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(COLUMNS)
    for name, outcome in (("before", result.before), ("after", result.after)):
        if outcome is not None:
            table.writerows([name, *row] for row in _rows(outcome))
    return out.getvalue()


def _rows(outcome: VoteOutcome) -> Iterator[list[object]]:
    for number, response in enumerate(outcome.responses, start=1):
        shown = "yes" if response is outcome.winner else "no"
        yield [number, _cell(response.answer or ""), shown, _cell(response.text)]


def _cell(text: str) -> str:
    """Return the text of a cell, with an apostrophe before what a spreadsheet would take for a formula."""
    # A picture can make a model write one, and a spreadsheet would run it when the file is opened.
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text


def _address(media_type: str, text: str) -> str:
    return data_address(f"{media_type};charset=utf-8", text.encode("utf-8", "replace"))
