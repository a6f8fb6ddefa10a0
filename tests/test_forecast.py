"""The forecast: worked by hand on small sets of samples, and as a run and a command give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from saved_runs import item

from mm_spine.evaluation import Item
from mm_spine.evaluation.forecast import Forecast, forecast, saved, sentences
from mm_spine.types import Answer, AnswerSpec, Question

INTEGERS = AnswerSpec("integer")


def asked(greedy: str, votes: str, name: str, lengths: Sequence[int] | None = None) -> Item:
    """One question: the greedy answer, and the answers of its samples, "." for none."""
    answers = tuple(None if vote == "." else Answer(vote, vote) for vote in votes)
    found = replace(
        item(name, None, votes, text=f"The answer is \\boxed{{{greedy}}}."),
        answers=answers,
        classes=tuple(None if answer is None else answer.text for answer in answers),
        unparsed=tuple(answer is None for answer in answers),
    )
    return found if lengths is None else replace(found, lengths=tuple(lengths))


def forecast_of(*items: Item) -> Forecast:
    found = forecast([Question(item.id, (), "?", INTEGERS) for item in items], items)
    assert found is not None
    return found


def many(greedy: str, votes: str, n: int = 40) -> list[Item]:
    """`n` questions of this form; their answers differ, so that no answer wins on many of them."""
    shift = [{"1": str(10 * i + 1), "2": str(10 * i + 2)} for i in range(n)]
    return [
        replace(
            asked(of.get(greedy, greedy), votes, f"q{i}"),
            answers=tuple(Answer(of[vote], of[vote]) for vote in votes),
            classes=tuple(of[vote] for vote in votes),
        )
        for i, of in enumerate(shift)
    ]


def test_a_unanimous_vote_that_the_greedy_answer_contradicts_is_worth_adapting_to() -> None:
    found = forecast_of(*many("2", "11111111"))
    assert (found.halves_agree, found.greedy_agrees, found.differs, found.vote_share) == (1.0, 0.0, 1.0, 1.0)
    assert found.gain == (1.0, 1.0, 1.0)
    assert found.verdict == "adapt" and not found.signs


def test_a_greedy_answer_that_is_the_votes_already_has_nothing_to_gain() -> None:
    found = forecast_of(*many("1", "11111111"))
    assert found.gain == (0.0, 0.0, 0.0)
    assert (found.differs, found.differs_narrow, found.verdict) == (0.0, None, "keep")


def test_a_vote_that_is_no_steadier_than_the_greedy_answer_is_not_to_be_adapted_to() -> None:
    # 6 against 2: halves may tie, and elect the same answer less often than the greedy answer is that of a half.
    found = forecast_of(*many("1", "11111122", 36), *many("2", "11111122", 4))
    assert found.narrow == 1.0 and found.differs == 0.1
    assert found.gain.value < 0.0
    assert found.verdict == "vote"
    assert "use the vote instead (8 responses of 3 tokens for each question)" in sentences(found)[-1]


def test_halves_by_hand() -> None:
    # One dissenter among four: in each split one half is 1 1, the other a tie of 1 and 2, which a hash decides.
    found = forecast_of(asked("1", "1112", "a"))
    assert found.halves_agree == found.greedy_agrees * 2 - 1
    assert found.greedy_agrees in (0.5, 1.0)


@pytest.mark.parametrize(
    ("items", "sign"),
    [
        ([asked("7", "77777777", f"a{i}") for i in range(6)] + many("1", "11111111", 4), "'7', wins on 60%"),
        ([asked("1", "1.......", f"a{i}") for i in range(4)], "88% of the responses have no answer"),
        (
            [asked("5", "12345678", f"a{i}") for i in range(8)],
            "two halves of the samples elect the same answer on only",
        ),
    ],
)
def test_signs_of_a_majority_that_is_not_to_be_trusted(items: list[Item], sign: str) -> None:
    found = forecast_of(*items)
    assert found.verdict == "neither"
    assert any(sign in said for said in found.signs), found.signs
    assert sentences(found)[-1].startswith("Forecast: trust neither")


def test_one_of_two_answers_may_win_often() -> None:
    few = [asked("1", "11111111", f"a{i}") for i in range(9)] + [asked("2", "22222222", "b")]
    assert forecast_of(*few).verdict == "keep"
    assert forecast_of(*(few[0:1] * 39), few[-1]).verdict == "neither"


def test_where_form_decides_the_vote_short_and_long_responses_disagree() -> None:
    mixed = [replace(each, lengths=(9, 9, 9, 9, 9, 2, 2, 2)) for each in many("1", "11111222")]
    alike = forecast_of(*many("1", "11111111"))
    assert alike.form_decides == 0.0
    found = forecast_of(*mixed)
    # The four shortest are 2 2 2 and the first 1, the four longest 1 1 1 1.
    assert found.form_decides == found.halves_agree > 0
    assert any("form of a response" in said for said in sentences(found))


def test_it_reads_no_verdict_and_needs_four_samples() -> None:
    items = many("2", "11111122")
    graded = [replace(each, vote_score=1.0, greedy=None, verdicts=None) for each in items]
    assert forecast_of(*items) == forecast_of(*graded)
    assert forecast([], []) is None
    assert forecast([Question("a", (), "?", INTEGERS)], [asked("1", "111", "a")]) is None
    assert saved(None) is None


def test_what_is_saved_is_plain_data() -> None:
    found = forecast_of(*many("2", "11111111"))
    entry = saved(found)
    assert entry is not None
    assert (entry["gain"], entry["gain_ci95"], entry["verdict"]) == (1.0, [1.0, 1.0], "adapt")
    assert entry["sentences"] == sentences(found)


def test_an_answer_equal_in_meaning_to_a_sample_is_of_its_class() -> None:
    spec = AnswerSpec("math")
    halves = replace(asked("0.5", "....", "a"), answers=(Answer(r"\frac12", None),) * 4, classes=(r"\frac12",) * 4)
    found = forecast([Question("a", (), "?", spec)], [halves])
    assert found is not None and found.differs == 0.0
