"""`adapt` and `evaluate` as Python calls them: frames, the same steps as the loop's, and no way in for a label."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import yaml
from small import digit_policy, golds_of, small_config
from tiny import tiny_questions

from mm_spine import Hooks, Question, adapt, evaluate
from mm_spine.adapt import adapt as take_steps
from mm_spine.config import ConfigError
from mm_spine.files.rollout_table import ROLLOUT_SCHEMA
from mm_spine.runs import python
from mm_spine.runs.listeners.listener import StepTiming
from mm_spine.runs.results import AdaptationResult, EvaluationResult
from mm_spine.types import StepReport

QUESTIONS = tiny_questions(5)
KEY = {question.id: golds_of("12"[i % 2]) for i, question in enumerate(QUESTIONS)}
CONFIG = small_config({"optim": {"steps": 2}})


@pytest.fixture(scope="module")
def adapted() -> tuple[Any, AdaptationResult]:
    """(policy, result) of one adaptation with everything that is on by default; only read."""
    policy = digit_policy()
    return policy, adapt(QUESTIONS, policy, config=CONFIG)


def test_the_steps_are_those_of_the_loop_to_the_bit(adapted: Any) -> None:
    policy, result = adapted
    other, records = digit_policy(), []
    take_steps(QUESTIONS, other, config=CONFIG, hooks=Hooks(on_step=records.append))
    assert [asdict(report) for report in result.reports] == [asdict(record.report) for record in records]
    assert all(weight.equal(other.trainable()[name]) for name, weight in policy.trainable().items())


def test_the_frame_of_steps_has_a_row_per_step_with_figures_and_seconds(adapted: Any) -> None:
    frame = adapted[1].steps
    assert set(frame) == {*StepReport.__dataclass_fields__, *StepTiming.__dataclass_fields__}
    assert list(frame["step"]) == [0, 1] and (frame["sample"] > 0).all()
    assert frame["loss"].tolist() == [report.loss for report in adapted[1].reports]


def test_the_frame_of_rollouts_has_a_row_per_response(adapted: Any) -> None:
    frame = adapted[1].rollouts
    assert list(frame) == ROLLOUT_SCHEMA.names
    assert len(frame) == sum(report.rollouts_sampled for report in adapted[1].reports)
    assert set(frame["question_id"]) <= {question.id for question in QUESTIONS}
    assert frame["parent"].isna().all() and str(frame["parent"].dtype) == "Int32"
    assert all(len(row.logp) == len(row.token_ids) == len(row.selected) for row in frame.itertuples())


def test_the_frame_of_answers_is_that_of_two_evaluations(adapted: Any) -> None:
    policy, result = adapted
    before = evaluate(QUESTIONS, digit_policy(), config=CONFIG)
    after = evaluate(QUESTIONS, policy, config=CONFIG)
    assert result.answers.equals(after.since(before))
    assert list(result.answers["id"]) == [question.id for question in QUESTIONS]
    assert result.answers["changed"].isin(["yes", "no"]).all() and "split" not in result.answers
    changed = int((result.answers["changed"] == "yes").sum())
    assert f"{changed} of 5 answers changed" in repr(result) and repr(result) in result._repr_html_()


def test_asking_changes_no_bit_of_the_steps_and_can_be_left_out() -> None:
    policies, results = [digit_policy(), digit_policy()], []
    for policy, answers in zip(policies, (True, False), strict=True):
        results.append(adapt(QUESTIONS, policy, config=CONFIG, answers=answers, progress=False))
    first, second = (policy.trainable() for policy in policies)
    assert all(weight.equal(second[name]) for name, weight in first.items())
    assert results[0].reports == results[1].reports
    with pytest.raises(ValueError, match="asked for no answers; leave answers out"):
        _ = results[1].answers
    assert results[1].before is results[1].after is None and "2 steps" in repr(results[1])


def test_an_evaluation_forecasts_from_four_samples_on() -> None:
    assert evaluate(QUESTIONS, digit_policy(), samples=4, config=CONFIG).forecast[-1].startswith("Forecast: ")
    assert evaluate(QUESTIONS, digit_policy(), samples=3, config=CONFIG).forecast == []


def test_a_key_gives_scores_and_intervals_and_changes_no_draw() -> None:
    policy = digit_policy()
    plain, graded = (evaluate(QUESTIONS, policy, key, config=CONFIG) for key in (None, KEY))
    with pytest.raises(ValueError, match="no scores without gold answers"):
        _ = plain.scores
    assert plain.graded(KEY).items == graded.items and graded.labelled and not plain.labelled
    scores = graded.scores
    assert list(scores.index) == ["greedy", "pass_at_1", "maj_at_n", "pass_at_n"] and set(scores["n"]) == {5}
    assert scores["score"]["pass_at_1"] == pytest.approx(graded.answers["pass_at_1"].mean())
    assert scores["low"]["greedy"] <= scores["score"]["greedy"] <= scores["high"]["greedy"]
    assert list(plain.answers) == [
        "id", "question", "answer", "vote", "vote_share", "answer_entropy", "distinct_answers",
    ]  # fmt: skip
    curve = graded.pass_at_k
    assert curve.index.name == "k" and curve.index[0] == 1 and len(curve) == len(graded.items[0].texts)
    assert curve[1] == pytest.approx(scores["score"]["pass_at_1"])
    assert curve.iloc[-1] == pytest.approx(scores["score"]["pass_at_n"])
    with pytest.raises(ValueError, match="no scores without gold answers"):
        _ = plain.pass_at_k
    same = graded.turned(graded)
    assert same["greedy"]["learnt"] == same["vote"]["corrupted"] == 0 and same["greedy"]["n"] == 5
    with pytest.raises(ValueError, match="no scores without gold answers"):
        plain.turned(graded)
    assert graded.answers["greedy"].tolist() == [item.greedy.score for item in graded.items if item.greedy]


def test_a_key_may_be_one_answer_numbers_or_a_part_of_the_questions() -> None:
    policy = digit_policy()
    result = evaluate(QUESTIONS, policy, {"q0": 1, "q3": "2", "another": "9"}, config=CONFIG)
    assert result.scores["n"].tolist() == [2] * 4
    assert result.answers["greedy"].isna().tolist() == [False, True, True, False, True]
    with pytest.raises(ValueError, match="the key has none of the 5 questions: .* such as 'q0'; found 'scan-1'"):
        evaluate(QUESTIONS, policy, {"scan-1": "1"}, config=CONFIG)
    with pytest.raises(ValueError, match="question 'q0': "):
        evaluate(QUESTIONS, policy, {"q0": "no number"}, config=CONFIG)


def test_the_frame_of_responses_has_every_sample_and_the_greedy_one() -> None:
    result = evaluate(QUESTIONS, digit_policy(), KEY, samples=3, config=CONFIG)
    frame = result.responses
    assert frame["sample"].tolist() == [-1, 0, 1, 2] * 5
    drawn = frame[frame["sample"] >= 0].reset_index()
    assert drawn["text"].tolist() == [text for item in result.items for text in item.texts]
    assert drawn["score"].groupby(drawn["id"]).mean()["q2"] == pytest.approx(result.answers["pass_at_1"][2])
    assert frame["score"].iloc[0] == result.answers["greedy"][0]


def test_hooks_of_the_caller_are_called_and_can_stop_the_steps() -> None:
    parts: list[str] = []
    records: list[Any] = []
    hooks = Hooks(on_step=records.append, on_part=parts.append, should_stop=lambda: "enough")
    result = adapt(QUESTIONS, digit_policy(), config=CONFIG, hooks=hooks, progress=False)
    assert (result.stopped_by, len(result.steps), len(records)) == ("enough", 1, 1)
    assert {"sample", "update"} <= set(parts) and result.after is None and result.before is not None
    with pytest.raises(ValueError, match=r"stopped by enough before the last evaluation; .*since\(result.before\)"):
        _ = result.answers


def test_an_interrupt_in_a_notebook_ends_with_the_step_and_the_result(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    # A process that was started in the background ignores the signal.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, earlier))
    handler = signal.getsignal(signal.SIGINT)
    hooks = Hooks(on_step=lambda record: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(python, "in_notebook", lambda: True)
    result = adapt(QUESTIONS, digit_policy(), config=CONFIG, hooks=hooks, answers=False, progress=False)
    assert (result.stopped_by, len(result.steps)) == ("SIGINT", 1)
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.setattr(python, "in_notebook", lambda: False)
    with pytest.raises(KeyboardInterrupt):
        adapt(QUESTIONS, digit_policy(), config=CONFIG, hooks=hooks, answers=False, progress=False)


def test_rollouts_are_kept_unless_the_configuration_says_no() -> None:
    config = small_config({"optim": {"steps": 1}, "reporting": {"rollouts": False}})
    result = adapt(QUESTIONS, digit_policy(), config=config, answers=False, progress=False)
    assert result.tables == [] and len(result.steps) == 1
    with pytest.raises(ConfigError, match=r"reporting\.rollouts=false: no responses were kept"):
        _ = result.rollouts


def test_a_method_that_does_not_train_asks_once() -> None:
    result = adapt(QUESTIONS, digit_policy(), method="none", config=CONFIG, progress=False)
    assert len(result.steps) == len(result.rollouts) == 0 and set(result.steps) >= {"loss"}
    assert result.after is result.before and set(result.answers["changed"]) == {"no"}


def test_what_is_wrong_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "evaluate_splits", lambda *arguments: pytest.fail("a question was asked"))
    policy = digit_policy()
    with pytest.raises(ConfigError, match="oracle"):
        adapt(QUESTIONS, policy, method="oracle", config=CONFIG)
    for call in (adapt, evaluate):
        with pytest.raises(ConfigError, match="'q0' occurs twice"):
            call([QUESTIONS[0], QUESTIONS[0]], policy, config=CONFIG)
        with pytest.raises(ValueError, match="question 'q': unknown answer kind 'interger'; did you mean 'integer'"):
            call([Question("q", (), "?", "interger")], policy, config=CONFIG)
        with pytest.raises(ConfigError, match="none of the 1 questions can be asked; the first, q: cannot read image"):
            call([Question("q", b"no image", "?", "integer")], policy, config=CONFIG)


def test_a_question_that_cannot_be_read_is_named_and_left_out() -> None:
    broken = Question("broken", b"no image", "?", "integer")
    result = evaluate([*QUESTIONS, broken], digit_policy(), config=CONFIG)
    assert len(result.answers) == 5 and list(result.skipped) == ["broken"]
    assert isinstance(result, EvaluationResult) and "5 questions" in repr(result)


def test_curves_are_a_figure_and_shown_in_a_notebook_only(adapted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = adapted[1]
    figure = result.figure("loss", "seconds")
    assert isinstance(figure, matplotlib.figure.Figure) and len(figure.axes) == 2
    with pytest.raises(RuntimeError, match=r"draws in a notebook; elsewhere save"):
        result.show()
    display = pytest.importorskip("IPython.display", reason="IPython comes with the dev extra")
    shown: list[Any] = []
    monkeypatch.setattr("mm_spine.runs.results.in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", shown.append)
    result.show("loss")
    assert shown[0].data.startswith(b"\x89PNG") and shown[0].width > 200


def test_the_policy_has_a_card_of_what_happened_and_saves_it(adapted: Any, tmp_path: Path) -> None:
    policy, result = adapted
    policy.save(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert text == policy.card
    front = yaml.safe_load(text.split("---")[1])
    assert front["tags"] == ["mm-spine", "test-time-adaptation", "spine"] and "base_model" not in front
    changed = int((result.answers["changed"] == "yes").sum())
    assert f"{changed} of 5 greedy answers changed" in text and "There were no labels" in text
    assert not [question for question in QUESTIONS if question.prompt in text]


def test_labels_that_come_later_put_scores_on_the_card(adapted: Any) -> None:
    result = adapted[1].graded(KEY)
    assert adapted[1].before is not None and not adapted[1].before.labelled
    greedy = result.after.scores["score"]["greedy"]
    assert f"| {100 * greedy:.1f} % [" in result.card and "5 of 5 with a right answer" in result.card
    assert result.card != adapted[1].card == adapted[0].card


def test_an_array_is_asked_as_the_image_it_holds() -> None:
    (picture,) = QUESTIONS[0].images
    pixels = np.asarray(picture)
    asked = [Question("q0", image, QUESTIONS[0].prompt, "integer") for image in (picture, pixels)]
    first, second = (evaluate([question], digit_policy(), config=CONFIG).items for question in asked)
    assert first == second


def test_a_key_is_no_argument_of_adapt() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'key'"):
        adapt(QUESTIONS, SimpleNamespace(), key=KEY)  # type: ignore[call-arg,arg-type]
