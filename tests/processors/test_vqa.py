"""The official VQA accuracy: the rules in their order, and what a vote and a raw response score."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import linear

from mm_spine.processors.answers import grade, parse
from mm_spine.processors.answers.vqa import CONTRACTIONS, accuracy, normalise
from mm_spine.types import Answer, AnswerSpec
from mm_spine.voting import vote

VQA = AnswerSpec("vqa")


def transcribed(text: str) -> str:
    """The order of the official rules, one statement for each, with nothing taken from the module but its table."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    source = text
    for mark in [*";/[]", '"', *"{}()=+", "\\", *"_-><@`,?!"]:
        if mark + " " in source or " " + mark in source or re.search(r"(\d)(\,)(\d)", source) is not None:
            text = text.replace(mark, "")
        else:
            text = text.replace(mark, " ")
    text = re.sub(r"(?!<=\d)(\.)(?!\d)", "", text)
    digits = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
    digits |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
    words = []
    for word in text.lower().split():
        word = digits.get(word, word)
        if word not in ("a", "an", "the"):
            words.append(word)
    for place, word in enumerate(words):
        if word in CONTRACTIONS:
            words[place] = CONTRACTIONS[word]
    return " ".join(words)


def transcribed_accuracy(prediction: str, annotators: list[str]) -> float:
    """The official loop over who is left out, with the clean-up of both sides before it."""
    golds = [text.replace("\n", " ").replace("\t", " ").strip() for text in annotators]
    given = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len(set(golds)) > 1:
        golds, given = [transcribed(text) for text in golds], transcribed(given)
    scores = []
    for left_out in range(len(golds)):
        others = [text for place, text in enumerate(golds) if place != left_out]
        scores.append(min(1, float(len([text for text in others if text == given])) / 3))
    return float(sum(scores)) / len(scores)


PIECES = [
    *list(";/[]\"{}()=+\\_-><@`,?!.':&$%* \t\n"),
    *("1", "2,000", "3.5", "1,2.", ".5", "٣,٣", "10"),
    *("a", "An", "THE", "none", "Zero", "two", "ten", "tent"),
    *("dont", "Im", "couldn'tve", "shed've", "somebody'd", "let's", "yall'd've", "'ow'sat", "its"),
    *("red", "É", "ß", "İ", "左", "\u00a0", "\u2003", "\x00", "\x1c", "\u200f", "’"),
]
texts = st.lists(st.sampled_from(PIECES), max_size=10).map("".join) | st.text(max_size=15)


@given(texts)
@settings(max_examples=500)
def test_normaliser_follows_the_order_of_the_rules(text: str) -> None:
    assert normalise(text) == transcribed(text)


@given(st.data())
@settings(max_examples=400)
def test_accuracy_follows_the_official_loop(data: st.DataObject) -> None:
    pool = [*data.draw(st.lists(texts, min_size=1, max_size=4)), "red"]
    annotators = [*data.draw(st.lists(st.sampled_from(pool), min_size=2, max_size=12)), "Red."]
    prediction = data.draw(st.sampled_from(pool))
    official = accuracy(prediction, annotators, official=True)
    assert official == pytest.approx(transcribed_accuracy(prediction, annotators))
    if len({" ".join(text.replace("\t", " ").split("\n")).strip() for text in annotators}) > 1:
        assert accuracy(prediction, annotators) == official


DIGEST = "3e5960526f62912d3b70896069c43c13d7c21be38d50ca28efbb9095b499454f"


def test_the_table_is_the_official_one() -> None:
    """120 entries; the digest is that of the table in GT-Vision-Lab/VQA (vqaEval.py, straight apostrophes)."""
    assert len(CONTRACTIONS) == 120
    table = json.dumps(sorted(CONTRACTIONS.items())).encode()
    assert hashlib.sha256(table).hexdigest() == DIGEST


@pytest.mark.parametrize(
    ("text", "normal"),
    [  # benchmarks' rules, and vqaEval.py for what they leave open
        ("dont", "don't"),
        ("Two dogs.", "2 dogs"),
        ("none", "0"),
        ("a cat and the dog", "cat and dog"),
        ("2,000", "2000"),  # digit-comma-digit: marks go
        ("2,000 red/blue", "2000 redblue"),  # ... all of them
        ("red/blue", "red blue"),  # between letters: a space
        ("red/ blue/green", "red bluegreen"),  # beside a space anywhere: all of that mark go
        ("3.5.", "3.5"),
        (".5", ".5"),
        ("p.m.", "pm"),
        ("yes!", "yes"),
        ("it's", "it's"),  # apostrophes and colons stay
        ("10:30", "10:30"),
        ("somebody'd", "somebodyd"),  # as the official table has it
        ("Im", "im"),  # its capitals never match: case goes first
        ("A", ""),
        ("." * 40, ""),  # vqaEval.py's count=re.UNICODE would leave 8
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_score_is_the_mean_over_who_is_left_out(matches: int, score: float) -> None:
    annotators = ["red"] * matches + [f"other {place}" for place in range(10 - matches)]
    verdict = grade(parse("Red.", VQA), annotators, VQA)
    assert verdict.score == pytest.approx(score)
    assert verdict.correct is (matches >= 2)


def test_texts_are_always_normalised_and_the_official_figure_stands_beside() -> None:
    for official, score in ((False, 1.0), (True, 0.0)):
        assert accuracy("Red", ["red"] * 10, official) == score
    for official in (False, True):
        assert accuracy("the end", ["the end"] * 10, official) == 1.0
        assert accuracy("the\nend ", ["the end "] * 10, official) == 1.0
        assert accuracy("Red", ["red"] * 9 + ["blue"], official) == 1.0
    assert accuracy("a", ["a"] * 10) == 1.0 and accuracy("the", ["a"] * 10) == 0.0
    verdict = grade(parse("Yes", VQA), ["yes"] * 10, VQA)
    assert verdict.score == 1.0 and "0.00 by the official script" in verdict.why
    assert "official" not in grade(parse("yes", VQA), ["yes"] * 10, VQA).why


def test_one_gold_is_compared_normalised() -> None:
    assert accuracy("Two.", ["2"]) == 1.0 and accuracy("three", ["2"]) == 0.0
    assert accuracy("A", ["a"]) == 1.0 and accuracy("the", ["a"]) == 0.0
    assert accuracy("red", ["red", "crimson"]) == pytest.approx(1 / 6)


def test_no_annotator_is_a_fault_of_the_data() -> None:
    for golds in ([], [" "] * 10):
        with pytest.raises(ValueError, match="gold answer"):
            grade(None, golds, VQA)


@pytest.mark.parametrize(
    ("response", "text", "key"),
    [
        ("Two", "Two", "2"),
        (r"It shows \boxed{\text{Two dogs}}", "Two dogs", "2 dogs"),
        (r"\boxed{\$5}", "$5", "$5"),
        (r"\boxed{50\%}", "50%", "50%"),
        ("$5", "$5", "$5"),
        ("I see a wall. The answer is red.", "red", "red"),
        ("**Answer:** red", "red", "red"),
        (r"\boxed{The answer is red}", "red", "red"),
        ("**red**", "red", "red"),
        ("red\nand blue", "red and blue", "red and blue"),
        ("a", "a", "a"),  # nothing but articles: a vote needs a class, the official grade takes the text
    ],
)
def test_parse_keeps_the_text_beside_its_key(response: str, text: str, key: str) -> None:
    assert parse(response, VQA) == Answer(text, key)


@pytest.mark.parametrize("response", ["", " \n", "?", r"\boxed{}", r"blue \boxed{ }", "\x00\u200f"])
def test_nothing_to_read_is_unparsed(response: str) -> None:
    assert parse(response, VQA) is None
    assert grade(None, ["red"] * 10, VQA)[:2] == (0.0, False)


def test_a_vote_merges_what_is_normalised_alike_and_its_name_is_graded_officially() -> None:
    outcome, classes = vote([parse(text, VQA) for text in ("Two", "two.", "2", "red", "red")], VQA, "q")
    assert classes == ("2", "2", "2", "red", "red") and outcome.answer == "2"
    outcome, _ = vote([parse("the end", VQA)] * 3, VQA, "q")
    assert outcome.answer == "the end"  # normalised it would be "end", which all ten contradict
    assert grade(Answer(outcome.answer, outcome.answer), ["the end"] * 10, VQA).score == 1.0


def test_option_letters_never_come_here() -> None:
    """ "A" is an article: normalised it is nothing. A choice is read and graded by its own kind."""
    letters = AnswerSpec("choice", ("red", "blue"))
    assert normalise("A") == ""
    assert parse("A", letters) == Answer("A", "A") and grade(parse("A", letters), "A", letters).correct


MEGABYTES = {
    "a" * 2**20: 0.3,
    "a. " * 2**18: 0.3,
    "," * 2**20: None,
    "\x00\u202e\u200f" * 2**18: None,
    "\\boxed{" * 2**17: None,
    "\\boxed{" + "\\text{" * 2**16 + "}" * 2**16 + "}": None,
    "The answer is " * 2**16: 0.0,
}
"""Response -> its score where one of ten annotators gave the same; None where no answer is read of it."""


@pytest.mark.slow
@pytest.mark.parametrize("text", MEGABYTES, ids=lambda text: text[:12].encode("unicode_escape").decode())
def test_a_megabyte_is_read_in_linear_time(text: str) -> None:
    score = MEGABYTES[text]
    with linear(VQA):
        answer = parse(text, VQA)
        verdict = grade(answer, ["red"] * 9 + [text], VQA)
    assert ((answer is None), verdict.score) == (score is None, pytest.approx(score or 0.0))
