"""An answer with all its votes as JSON and CSV."""

from __future__ import annotations

import base64
import csv
import io
import json

import pytest

from mm_spine.commands.ask_session import AskOptions, AskResult, VotedResponse, VoteOutcome, ask_settings, question_of
from mm_spine.commands.page_export import COLUMNS, as_csv, as_text, downloads
from mm_spine.commands.question_queue import Asked
from mm_spine.reporting.entropy_colours import Token
from mm_spine.types import Vote


def outcome(*pairs: tuple[str, str | None]) -> VoteOutcome:
    """The outcome of responses (text, answer); the first answer wins, its first response is shown."""
    responses = tuple(VotedResponse(text, answer, (Token(text, 0.5),)) for text, answer in pairs)
    answers = [answer for _, answer in pairs if answer is not None]
    counts = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
    vote = Vote(answers[0], counts[answers[0]] / len(pairs), counts, 0.0, len(answers))
    return VoteOutcome(vote, responses, responses[0], 0.1, 3)


@pytest.fixture
def asked() -> Asked:
    settings = ask_settings(AskOptions(votes=3))
    return Asked(question_of("How many, “ünïcode”?", [], settings), settings, ("scan é.png",), True)


def test_every_response_is_a_line_with_its_answer() -> None:
    result = AskResult(outcome(("It is 4,\nso 4", "4"), ("five", None)), after=outcome(("5", "5"), ("5!", "5")))
    assert list(csv.reader(io.StringIO(as_csv(result)))) == [
        list(COLUMNS),
        ["before", "1", "4", "yes", "It is 4,\nso 4"],
        ["before", "2", "", "no", "five"],
        ["after", "1", "5", "yes", "5"],
        ["after", "2", "5", "no", "5!"],
    ]


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_formula_that_a_model_wrote_is_text_to_a_spreadsheet(text: str) -> None:
    (_, row) = csv.reader(io.StringIO(as_csv(AskResult(outcome((text, text))))))
    assert row[2] == row[4] == f"'{text}"


@pytest.mark.parametrize("text", ["-3", "+1.5", "-1,000.25", "3-4", "a=b"])
def test_numbers_and_plain_texts_are_left_as_they_are(text: str) -> None:
    (_, row) = csv.reader(io.StringIO(as_csv(AskResult(outcome((text, text))))))
    assert row[2] == row[4] == text


def test_the_json_holds_question_settings_and_every_response(asked: Asked) -> None:
    content = json.loads(as_text(asked, AskResult(outcome(("4", "4"), ("5", "5")))))
    assert content["question"].startswith("How many, “ünïcode”?") and content["images"] == ["scan é.png"]
    assert (content["answer"], content["share"], content["votes"], content["kind"]) == ("4", 0.5, 3, "integer")
    assert [response["answer"] for response in content["before"]["responses"]] == ["4", "5"]


def test_the_links_hold_the_files_themselves(asked: Asked) -> None:
    result = AskResult(outcome(("4 °", "4")))
    files = downloads(asked, result)
    assert [file.name for file in files] == ["answer.json", "answer.csv"]
    for file, text in zip(files, (as_text(asked, result), as_csv(result)), strict=True):
        head, _, data = file.address.partition(",")
        assert head.startswith("data:") and head.endswith(";base64")
        assert base64.b64decode(data).decode() == text
