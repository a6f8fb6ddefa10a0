"""The rules that join readings, by numbers worked out by hand; the study's reward, cells and page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mm_spine.benchmarks import digits
from mm_spine.files import write_json
from mm_spine.methods.table import METHODS
from mm_spine.policy.model import Policy
from mm_spine.types import AnswerSpec, Question, Rollout
from mm_spine.voting import make_group

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))

import joint_votes as rules
import past_vote
import past_vote_labels as labels
import past_vote_page
from joint_votes import Cells, Drawn, Joint


def drawn(*responses: tuple[str | None, tuple[int, ...] | None], logp: float = 0.0) -> Drawn:
    answers, readings = zip(*responses, strict=True)
    zeros = [0.0] * len(responses)
    return Drawn(answers, readings, [logp] * len(responses), zeros, zeros)


@pytest.mark.parametrize(
    ("text", "cells", "reading"),
    [
        ("I see 8 4. Smallest 4. So \\boxed{4}.", 2, (8, 4)),
        ("Digits 8 4 0. Sum 12. Thus \\boxed{12}.", 3, (8, 4, 0)),
        ("I see 8 4. Smallest 4. So \\boxed{4}.", 3, None),
        ("I see 12 4. Sum 16. So \\boxed{16}.", 2, None),
        ("The answer is \\boxed{4}.", 1, None),
        ("I see 8 4. Smallest 4.", 2, None),
    ],
)
def test_a_reading_is_one_digit_for_each_cell_before_the_first_full_stop(
    text: str, cells: int, reading: tuple[int, ...] | None
) -> None:
    assert rules.reading_of(text, cells) == reading


def test_a_weighted_vote_adds_the_weights_of_an_answer() -> None:
    own = drawn(("3", None), ("3", None), ("5", None), (None, None))
    assert rules.weighted_vote(own, "q", [1, 1, 1, 9]) == "3"
    assert rules.weighted_vote(own, "q", [1, 1, 2.5, 9]) == "5"
    assert rules.weighted_vote(drawn((None, None)), "q", [1]) is None


def test_weights_of_one_question() -> None:
    own = Drawn(["1", "1", "2"], [(4,), None, (4,)], np.log([0.5, 0.25, 0.125]), np.log([0.5, 1, 0.1]), [0.0, 1.0, 2.0])
    found = {name: np.array(weigh(own)) for name, weigh in rules.WEIGHTS.items()}
    expected = {
        "the vote": [1, 1, 1],
        "only responses that name their reading": [1, 0, 1],
        "weighed by sequence probability": [0.5, 0.25, 0.125],
        "weighed by mean log-prob": [0.125, 1, 0.001],
        "weighed by certainty (mean entropy)": [1, np.exp(-3), np.exp(-6)],
        "weighed by the share of the reading": [2, 0, 2],
    }
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        np.testing.assert_allclose(found[name], weights, atol=2e-6, err_msg=name)


def test_shares_are_pooled_over_the_questions_of_an_image() -> None:
    cells = Cells({"a": range(2), "b": range(2, 3)}, np.zeros((3, 4)))
    shares_CV = rules.pooled_shares(
        cells, ["a", "a", "b"], [drawn(("1", (1, 2)), ("1", (1, 3))), drawn(("7", (1, 2))), drawn(("0", None))]
    )
    assert shares_CV[0, 1] == 1
    assert shares_CV[1, 2] == pytest.approx(2 / 3)
    assert shares_CV[1, 3] == pytest.approx(1 / 3)
    np.testing.assert_allclose(shares_CV[2], 0.1)


PAIRS = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])


def test_neighbours_are_the_most_alike_and_opposites_are_none() -> None:
    swap = np.kron(np.eye(2), [[0, 1], [1, 0]])
    np.testing.assert_allclose(rules.neighbours(PAIRS, 1), swap, atol=1e-9)
    np.testing.assert_allclose(rules.neighbours(PAIRS, 3), swap, atol=1e-9)


def test_smoothing_solves_its_equation() -> None:
    # Of the pair of cells 0 and 1, x = 1/2 + y/2 and y = x/2: x = 2/3, y = 1/3.
    shares_CV = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]])
    found = rules.smoothed(shares_CV, rules.neighbours(PAIRS, 1), 0.5, rounds=60)
    np.testing.assert_allclose(found[:, 0], [2 / 3, 1 / 3, 1, 1], atol=1e-6)


def test_balance_reads_each_value_equally_often() -> None:
    # A scaled 2 x 2 table keeps its odds ratio r = 0.901 x 0.401 / (0.101 x 0.601): x / (1 - x) = sqrt(r).
    root = np.sqrt(0.901 * 0.401 / (0.101 * 0.601))
    found = rules.balanced(np.array([[0.9, 0.1], [0.6, 0.4]]), 1.0)
    np.testing.assert_allclose(found[:, 0], [root / (1 + root), 1 / (1 + root)], atol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    assert rules.balanced(np.array([[0.9, 0.1], [0.6, 0.4]]), 2.0)[1, 0] < found[1, 0]


def test_responses_are_weighed_by_the_joint_share_of_their_reading() -> None:
    shares_CV = np.zeros((2, rules.VALUES))
    shares_CV[0, [1, 7]] = 0.75, 0.25
    shares_CV[1, 2] = 1
    cells = Cells({"a": range(2)}, np.zeros((2, 1)))
    own = drawn(("3", (1, 2)), ("9", (7, 2)), ("9", None), ("5", (1, 5)))
    assert rules.by_joint_reading(own, [0, 1], shares_CV) == pytest.approx([0.5625, 0.0625, 0, 0], abs=1e-8)
    assert rules.joint_readings(cells, ["a"], shares_CV) == [(1, 2)]


def test_a_joint_without_neighbours_and_balance_is_the_pool() -> None:
    cells = Cells({"a": range(1), "b": range(1, 2)}, np.eye(2))
    own = [drawn(("1", (1,)), ("2", (2,))), drawn(("1", (1,)))]
    plain = rules.joint_shares(cells, ["a", "b"], own, Joint(weight=0, power=0))
    assert plain[0, [1, 2]].tolist() == [0.5, 0.5]
    assert plain[1, 1] == 1
    assert rules.joint_shares(cells, ["a", "b"], own, Joint(weight=0, power=1)).argmax(1).tolist() == [2, 1]


# --- The study ----------------------------------------------------------------------------------------------------


@pytest.fixture
def row() -> Iterator[None]:
    before = dict(METHODS)
    labels.register()
    yield
    METHODS.clear()
    METHODS.update(before)


def rollout(index: int, text: str) -> Rollout:
    return Rollout("q", index, (1,), text, np.zeros(1), None, "stop")


def test_the_reward_is_the_labels_answer_and_its_reading(tmp_path: Path) -> None:
    write_json(tmp_path / "labels.json", {"q": {"answer": "4", "share": 1.0, "reading": [8, 4]}})
    texts = (
        "I see 8 4. Smallest 4. So \\boxed{4}.",
        "I see 3 4. Smallest 4. So \\boxed{4}.",
        "The answer is \\boxed{4}.",
        "I see 8 4. Smallest 8. So \\boxed{8}.",
        "nothing",
    )
    group = make_group(Question("q", None, "?", AnswerSpec("integer")), [rollout(i, t) for i, t in enumerate(texts)])
    for weight, expected in ((0.0, [1, 1, 1, 0, 0]), (0.5, [1.5, 1, 1, 0.5, 0])):
        options = labels.PseudoConfig(name="pseudo", labels=tmp_path, reading_weight=weight)
        assert labels.pseudo_reward(options)(group).tolist() == expected


@pytest.mark.usefixtures("row")
def test_cells_of_tune_see_tune_alone_and_take_their_labels(tmp_path: Path) -> None:
    cell = past_vote.tune_cell("joint", 3, 36)
    config = cell.config(tmp_path)
    assert cell.name == "tune-36/joint/seed_3"
    assert (config.split, config.limit, config.seed, config.optim.steps) == ("tune", 256, 3, 36)
    assert config.method.name == "pseudo"
    assert config.method.labels == tmp_path / "labels/tune/joint-16/seed_3"


@pytest.mark.usefixtures("row")
def test_the_one_table_uses_its_references_from_the_study(tmp_path: Path) -> None:
    default = past_vote.table_cell("spine", 2)
    assert (default.name, default.config(tmp_path).split) == ("main/spine/seed_2", None)
    for label in past_vote.CHOSEN:
        cell = past_vote.table_cell(label, 0)
        assert cell.config(tmp_path).split is None
        assert cell.name == f"past/{label}/seed_0"


def test_arms_name_rules_that_exist_and_the_chosen_were_tried() -> None:
    assert {arm.rule for arm in past_vote.ARMS.values()} <= {None, *past_vote.RULES}
    assert set(past_vote.CHOSEN.values()) <= set(past_vote.TRIALS)
    assert len(past_vote.CHOSEN) <= 2


@pytest.mark.usefixtures("row")
def test_the_page_without_a_cell_says_what_is_missing(tmp_path: Path) -> None:
    text = past_vote_page.write_page(tmp_path / "none", tmp_path).read_text()
    assert "main/spine/seed_0: not run to its end" in text
    assert "No seed is finished." in text


def test_labels_of_one_image_share_a_reading_and_name_no_gold() -> None:
    # The first image of tune has four questions.
    policy, whole = Policy.load(digits.MODEL_DIR), digits.load("tune")
    found = labels.make_labels(labels.Rule(4, Joint(k=1)), [policy], whole.questions[:4], seed=0)
    assert list(found) == [question.id for question in whole.questions[:4]]
    readings = {label["reading"] for label in found.values()}
    assert len(readings) == 1
    assert len(readings.pop()) == len(policy.prompt(whole.questions[0]).features_ID)
    assert all(label["answer"] is not None and 0 < label["share"] <= 1 for label in found.values())
    plain = labels.make_labels(labels.Rule(4), [policy], whole.questions[:4], seed=0)
    assert {label["reading"] for label in plain.values()} == {None}


def test_completions_that_are_known_are_not_drawn_again() -> None:
    policy, question = Policy.load(digits.MODEL_DIR), digits.load("tune").questions[0]
    reading = tuple(range(len(policy.prompt(question).features_ID)))
    known = labels.Known({(question.id, reading): Counter({"77": 3})})
    assert labels.answered(policy, [question], [reading], 0, known) == [Counter({"77": 3})]


def test_images_that_show_a_digit_are_found_by_the_labels() -> None:
    planned, targets = digits.plan("tune"), load_digits().target
    shown = labels.showing((3,))
    assert all((3 in {int(targets[i]) for i in question.digits}) == (question.id in shown) for question in planned)
    assert 0 < len(shown) < len(planned)
