"""The guard: what it measures and where its limits lie, by hand; and runs that it stops, resumed ones too."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lab import Interrupting, Lab, summary_of
from safetensors.torch import load_file
from saved_runs import group, item, rollout

from mm_spine import files
from mm_spine.config import GuardConfig
from mm_spine.methods.table import configure
from mm_spine.runs import guard as guarding
from mm_spine.runs.alarm import Alarm, sentence
from mm_spine.runs.greedy_check import greedy_fall
from mm_spine.runs.guard import (
    Signals,
    drawn_alike,
    is_good,
    judge,
    measure,
    share_of,
    starts,
    unbiased_share,
    window,
)
from mm_spine.runs.run import run
from mm_spine.types import Answer, Group, StepReport, Vote

LIMITS = GuardConfig(sure_votes=4)


def calm(step: int, **changed: Any) -> Signals:
    return Signals(
        **{"step": step, "questions": 32, "sure": 4, "kept": 4, "spread": 1.0, "unparsed": 0.0, "length": 1.0} | changed
    )


def voted(name: str, answers: str) -> Group:
    """A group whose rollouts gave these answers."""
    counts = {answer: answers.count(answer) for answer in sorted(set(answers), key=answers.count, reverse=True)}
    rollouts = [rollout(name, i) for i in range(len(answers))]
    found = group(name, rollouts, answers)
    vote = Vote(next(iter(counts)), max(counts.values()) / len(answers), counts, 0.0, len(answers))
    object.__setattr__(found, "vote", vote)
    object.__setattr__(found, "parsed", tuple(Answer(answer, answer) for answer in answers))
    return found


def record(groups: Sequence[Group], **report: Any) -> Any:
    return SimpleNamespace(groups=groups, report=StepReport(**{"step": 0, "length_mean": 3.0} | report))


def test_a_step_is_measured_against_the_start_on_its_own_questions() -> None:
    start = starts([item("a", None, "1" * 8), item("b", None, "2" * 8), item("c", None, "12121212")])
    assert [start[name].sure for name in "abc"] == [True, True, False]
    # a keeps its sure vote, b loses it to a's; the question d was not evaluated and counts nowhere.
    groups = [voted("a", "1" * 8), voted("b", "1" * 8), voted("d", "9" * 8)]
    found = measure(record(groups, unparsed=0.25, length_mean=6.0), start)
    assert (found.questions, found.sure, found.kept, found.unparsed, found.length) == (2, 2, 1, 0.25, 2.0)
    assert found.agreement == -0.5  # b's votes are all lost
    assert found.spread == 0.0  # one answer to both questions, where there were two
    assert measure(record([voted("c", "12121212")]), start).spread == pytest.approx(1.0)
    unknown = measure(record([voted("d", "9" * 8)]), start)
    assert (unknown.sure, unknown.spread, unknown.length) == (0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changed", "alike"),
    [
        ({}, True),
        ({"evaluation": {"temperature": 0.7}}, False),
        ({"evaluation": {"temperature": 0.7}, "sampling": {"temperature": 0.7}}, True),
        ({"evaluation": {"top_p": 0.95}}, False),
        ({"sampling": {"max_new_tokens": 16}}, False),
        ({"sampling": {"tree": {}}}, False),
        ({"sampling": {"votes": {"max": 8, "stop": "decided"}, "train_rollouts": 4}}, False),
    ],
)
def test_responses_that_are_drawn_otherwise_than_the_start_are_not_compared(
    changed: Mapping[str, Any], alike: bool
) -> None:
    config = configure({"sampling": {"max_new_tokens": 48}, "evaluation": {"max_new_tokens": 48}})
    merged = {name: section.model_dump() | dict(changed.get(name, {})) for name, section in
              (("sampling", config.sampling), ("evaluation", config.evaluation))}  # fmt: skip
    found = configure(merged)
    assert drawn_alike(found.evaluation, found.sampling) is alike


@pytest.mark.parametrize(("temperature", "known"), [(1.0, True), (0.5, False)])
def test_a_run_that_draws_otherwise_records_no_agreement(
    lab: Lab, tmp_path: Path, temperature: float, known: bool
) -> None:
    same = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
    changed = {"sampling": same, "evaluation": {**same, "temperature": temperature}}
    assert run(lab.config(GUARDED, changed, {"optim": {"steps": 1}}), tmp_path / "run") is not None
    (line,) = files.read_json_lines(tmp_path / "run/guard.jsonl")
    assert (line["agreement"] is not None) is known


@pytest.mark.parametrize(
    ("counts", "samples", "share"),
    [
        ({"a": 8}, 8, 1.0),
        ({"a": 5, "b": 3}, 10, 0.5),
        ({"a": 4, "b": 3}, 8, 0.25),  # without one of its voters there is a tie, which half of the times it loses
        ({"a": 4, "b": 4}, 8, 0.0),
    ],
)
def test_the_share_of_a_vote_does_not_count_the_voters_that_elected_it(
    counts: dict[str, int], samples: int, share: float
) -> None:
    assert unbiased_share(counts, samples) == share


def test_the_share_of_a_vote_among_further_samples_is_over_all_of_them() -> None:
    found = voted("a", "1112")
    assert share_of(found, Answer("1", "1")) == 0.75 and share_of(found, Answer("2", "2")) == 0.25
    assert share_of(found, Answer("3", "3")) == 0.0
    # Of eight rollouts four voted.
    object.__setattr__(found, "vote", replace(found.vote, share=3 / 8))
    assert share_of(found, Answer("2", "2")) == 1 / 8


def test_held_out_questions_and_questions_without_a_vote_are_no_start() -> None:
    silent = item("b", None, "1111")
    object.__setattr__(silent, "classes", (None,) * 4)
    object.__setattr__(silent, "vote", None)
    assert list(starts([item("a", None, "1111"), silent, item("c", None, "1111", "held_out")])) == ["a"]


@pytest.mark.parametrize(
    ("changed", "alarm"),
    [
        ({"kept": 3}, Alarm("kept", 0.75, 0.8)),
        ({"spread": 0.79}, Alarm("spread", 0.79, 0.8)),
        ({"questions": 96, "agreement": -0.041}, Alarm("agreement", 0.041, 0.04)),
        ({"questions": 96, "agreement": -0.039}, None),
        ({"questions": 95, "agreement": -0.5}, None),
        ({"questions": 96, "agreement": None}, None),
        ({"unparsed": 0.26}, Alarm("unparsed", 0.26, 0.25)),
        ({"length": 3.1}, Alarm("length", 3.1, 3.0)),
        ({"length": 0.3}, Alarm("length", 0.3, 3.0)),
        ({"spread": 0.81, "unparsed": 0.24, "length": 2.9}, None),
        ({"sure": 3, "kept": 0}, None),  # too few sure votes to judge `kept` by
        ({"sure": 0, "kept": 0, "spread": 0.5}, Alarm("spread", 0.5, 0.8)),  # the others need none
        ({"questions": 31, "spread": 0.5}, None),  # but they need questions
    ],
)
def test_a_limit_that_is_passed_is_named(changed: Mapping[str, Any], alarm: Alarm | None) -> None:
    assert judge([calm(0, **changed)], LIMITS) == alarm
    if alarm is not None:
        assert sentence({**guarding.CALM, "fired": True, "step": 1, **alarm._asdict()}).startswith(
            "guard: after step 1, "
        )


def test_half_way_to_a_limit_is_no_state_to_go_back_to() -> None:
    assert is_good([calm(0)], LIMITS) and is_good([calm(0, spread=0.9)], LIMITS)
    assert judge([calm(0, spread=0.85)], LIMITS) is None and not is_good([calm(0, spread=0.85)], LIMITS)
    # Fewer responses than at the start give its votes, over fewer questions than the limit is judged by.
    assert not is_good([calm(0, agreement=-0.001)], LIMITS) and is_good([calm(0, agreement=0.001)], LIMITS)
    # Of what cannot be judged nothing is known.
    assert not is_good([calm(0, sure=0, kept=0, questions=4)], LIMITS)


def test_a_judgement_is_over_two_steps_at_least_and_as_many_as_have_the_votes() -> None:
    history = [calm(step, sure=sure) for step, sure in enumerate((9, 1, 1, 1, 4))]
    assert [signals.step for signals in window(history, "sure", 4)] == [3, 4]
    assert [signals.step for signals in window(history, "sure", 7)] == [1, 2, 3, 4]
    assert len(window(history, "sure", 99)) == 5
    assert [signals.step for signals in window(history, "questions", 65)] == [2, 3, 4]
    # One bad step is diluted by the one before: 7 of 8 kept.
    assert judge([calm(0), calm(1, kept=3)], LIMITS) is None


@pytest.fixture
def bad_at(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Have the guard see lost votes from that step on."""
    place = {"step": 3}

    def seen(record: Any, start: Any) -> Signals:
        step = record.report.step
        return calm(step, kept=0 if step >= place["step"] else 4)

    monkeypatch.setattr(guarding, "measure", seen)
    return place


GUARDED: Mapping[str, Any] = {"method": "ttrl", "optim": {"steps": 6}, "guard": {"sure_votes": 4, "every": 1}}


def test_a_run_that_gets_worse_stops_and_goes_back(lab: Lab, tmp_path: Path, bad_at: dict[str, int]) -> None:
    kept: dict[str, torch.Tensor] = {}

    def look() -> None:
        kept.update(load_file(tmp_path / "run/guard/step_000002.safetensors"))

    summary = run(lab.config(GUARDED), tmp_path / "run", listener=Interrupting(3, look))
    assert summary is not None and summary["stopped_by"] == "guard" and summary["steps"] == 4
    # Steps 2 and 3 are judged together: half of their sure votes are lost. State 2 was the last good one.
    assert summary["guard"] == {
        "fired": True, "step": 4, "signal": "kept", "value": 0.5, "limit": 0.8, "rolled_back_to": 2,
        "judged": True,
    }  # fmt: skip
    saved = load_file(tmp_path / "run/adapted/model.safetensors")
    assert kept and all(any(torch.equal(tensor, other) for other in saved.values()) for tensor in kept.values())
    assert not (tmp_path / "run/guard").exists()
    assert len(files.read_json_lines(tmp_path / "run/guard.jsonl")) == 4


def test_a_guard_that_only_warns_changes_nothing(
    lab: Lab, tmp_path: Path, bad_at: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warned = run(lab.config(GUARDED, {"guard": {"act": "warn"}}), tmp_path / "warned")
    off = run(lab.config(GUARDED, {"guard": {"act": "off"}}), tmp_path / "off")
    assert warned is not None and off is not None
    assert warned["stopped_by"] == off["stopped_by"] == "steps" and off["guard"] is None
    assert warned["guard"] is not None and warned["guard"]["step"] == 4 and warned["guard"]["rolled_back_to"] is None
    assert caplog.text.count("the run goes on (guard.act=warn)") == 1
    for name in ("steps.jsonl", "evaluation/after.jsonl"):
        assert (tmp_path / "warned" / name).read_bytes() == (tmp_path / "off" / name).read_bytes()


@pytest.mark.parametrize("interrupted", [1, 3])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(
    lab: Lab, tmp_path: Path, bad_at: dict[str, int], interrupted: int
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    config = lab.config(GUARDED, {"checkpoint": {"every": 1}})
    whole = run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", listener=Interrupting(interrupted, interrupt))
    resumed = run(config, tmp_path / "cut", resume=True)
    assert whole is not None and resumed is not None and whole["guard"] == resumed["guard"]
    for name in ("steps.jsonl", "guard.jsonl", "evaluation/after.jsonl", "adapted/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_run_that_the_guard_stopped_is_resumed_at_its_last_evaluation(
    lab: Lab, tmp_path: Path, bad_at: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lab.config(GUARDED)
    whole = run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(guarding.Guard, "roll_back", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "cut")
    resumed = run(config, tmp_path / "cut", resume=True)
    assert whole is not None and resumed is not None and resumed["guard"] == whole["guard"]
    assert summary_of(tmp_path / "cut")["stopped_by"] == "guard"
    for name in ("steps.jsonl", "evaluation/after.jsonl", "adapted/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


# --- Greedy answers at the end -------------------------------------------------------------------------------------


def asked_greedily(count: int, start_says: str, now_says: str, **limits: Any) -> tuple[float | None, list[str]]:
    """The fall over `count` questions whose start voted 1 and answered `start_says`; and the questions asked."""
    questions = [group(f"q{i}", [rollout(f"q{i}", 0)], "1").question for i in range(count)]
    items = [replace(item(question.id, None, "1111"), greedy_text=boxed(start_says)) for question in questions]
    seen: list[str] = []

    def ask(chosen: Sequence[Any]) -> dict[str, str]:
        seen.extend(question.id for question in chosen)
        return {question.id: boxed(now_says) for question in chosen}

    return greedy_fall(questions, starts(items), GuardConfig(**({"questions": 2} | limits)), ask), seen


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def test_the_fall_of_greedy_answers_is_counted_on_questions_with_a_vote() -> None:
    assert asked_greedily(4, "1", "1")[0] == 0.0
    assert asked_greedily(4, "1", "2")[0] == 1.0
    assert asked_greedily(4, "2", "1")[0] == -1.0
    assert asked_greedily(4, "2", "")[0] == 0.0
    assert asked_greedily(1, "1", "2") == (None, [])


def test_no_more_than_the_most_are_asked_evenly_over_their_order() -> None:
    fall, seen = asked_greedily(10, "1", "2", greedy_over=4)
    assert fall == 1.0 and seen == ["q0", "q2", "q5", "q7"]


def falls(monkeypatch: pytest.MonkeyPatch, *values: float | None) -> list[float | None]:
    """Have the guard's looks at greedy answers find these falls, one after the other. Returns those still to come."""
    left = list(values)
    monkeypatch.setattr("mm_spine.runs.run.greedy_fall", lambda *given: left.pop(0))
    return left


QUIET: Mapping[str, Any] = {"method": "ttrl", "optim": {"steps": 4}, "guard": {"sure_votes": 4, "every": 1}}


@pytest.mark.parametrize(("found", "back"), [((0.2, 0.0), 3), ((0.2, 0.2), 0), ((0.09,), None), ((None,), None)])
def test_weights_whose_greedy_answers_leave_the_votes_are_taken_back(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Sequence[float | None], back: int | None
) -> None:
    monkeypatch.setattr(guarding, "measure", lambda record, start: calm(record.report.step))
    left = falls(monkeypatch, *found)
    summary = run(lab.config(QUIET), tmp_path / "run")
    assert summary is not None and not left and summary["stopped_by"] == "steps" and summary["steps"] == 4
    guard = summary["guard"]
    assert guard is not None and guard["fired"] is (back is not None) and guard["rolled_back_to"] == back
    assert (guard["signal"], guard["step"]) == (("greedy", 4) if back is not None else (None, None))
    if back == 0:
        before, after = (
            files.read_json_lines(tmp_path / f"run/evaluation/{when}.jsonl") for when in ("before", "after")
        )
        assert list(before) == list(after)


def test_a_run_that_the_guard_stopped_goes_back_to_the_start_where_its_good_weights_have_lost_as_much(
    lab: Lab, tmp_path: Path, bad_at: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = falls(monkeypatch, 0.5)
    summary = run(lab.config(GUARDED), tmp_path / "run")
    assert summary is not None and not left and summary["stopped_by"] == "guard"
    assert summary["guard"] is not None and summary["guard"]["signal"] == "kept"
    assert summary["guard"]["rolled_back_to"] == 0 and "the starting ones again" in caplog.text


def test_a_guard_that_only_warns_keeps_the_weights_of_worse_greedy_answers(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guarding, "measure", lambda record, start: calm(record.report.step))
    falls(monkeypatch, 0.2)
    summary = run(lab.config(QUIET, {"guard": {"act": "warn"}}), tmp_path / "run")
    assert summary is not None and summary["guard"] is not None and summary["guard"]["rolled_back_to"] is None
    said = "20.0 points fewer of the greedy answers are the votes of the start (limit 9); its weights are kept"
    assert said in caplog.text


def test_the_guard_asks_the_adapted_questions_greedily_once(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr("mm_spine.runs.run.greedy_fall", lambda *given: found.append(greedy_fall(*given)) or found[-1])
    unchanged = {"optim": {"steps": 1, "lr": 1e-12}, "guard": {"questions": 1}}
    assert run(lab.config(QUIET, unchanged), tmp_path / "run") is not None
    assert found == [0.0]
