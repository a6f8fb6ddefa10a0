"""The count of vLLM's forwards: whole phases take few enough, and draw what blocking calls drew."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

import vllm_schedule
from vllm_schedule import PLANS, Blocking, Counting, Plan, count
from vllm_standin import Response, StandIn

from mm_spine.config import TreeConfig
from mm_spine.types import Group


def test_a_phase_of_256_requests_takes_as_long_as_its_longest_response() -> None:
    before, after = (count(kind, PLANS["256 requests"], seed=1)[0] for kind in (Blocking, Counting))
    assert before.steps > 7000
    assert after.steps <= 2100
    assert before.drawn == after.drawn and after.sleeps == 1


def test_a_phase_of_2048_requests_keeps_its_rows_filled() -> None:
    after, groups = count(Counting, PLANS["2,048 requests"], seed=1)
    assert after.steps <= 4600
    at_limit = [len(rollout.token_ids) == 2048 for group in groups for rollout in group.rollouts]
    assert len(at_limit) == 2048 and sum(at_limit) / 2048 == pytest.approx(0.03, abs=0.012)


SMALL = {
    "flat": Plan(4, 9),
    "decided": Plan(4, 24, "decided"),
    "trees": Plan(3, 12, "never", TreeConfig()),
    "trees, decided": Plan(3, 23, "decided", TreeConfig()),
    "distinct trees": Plan(3, 12, "never", TreeConfig(distinct=True, branches=3)),
}


def outline(groups: list[Group]) -> list[Any]:
    names = ("question_id", "index", "token_ids", "text", "finish_reason", "parent", "fork_at")
    rollouts = chain(*(group.rollouts for group in groups))
    return [[getattr(rollout, name) for name in names] for rollout in rollouts] + [group.vote for group in groups]


@pytest.mark.parametrize("plan", SMALL)
def test_one_phase_draws_what_calls_in_turn_drew_and_wakes_the_engine_once(plan: str) -> None:
    """The same rollouts in the same order and the same votes, from fewer forwards, with each prompt computed once."""
    before, old = count(Blocking, SMALL[plan], seed=2, rows=8)
    after, new = count(Counting, SMALL[plan], seed=2, rows=8)
    assert outline(old) == outline(new)
    assert after.sleeps == 1 and after.steps <= before.steps
    if plan != "flat":
        assert before.sleeps > 1 and after.prompt_tokens < before.prompt_tokens


def test_a_question_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next round is submitted while the longest responses of the others are still drawn."""
    running: list[int] = []
    usual = StandIn.enqueue

    def spy(standin: StandIn, prompts: Any, params: Any, use_tqdm: bool = True) -> list[str]:
        running.append(len(standin.running))
        return usual(standin, prompts, params, use_tqdm)

    monkeypatch.setattr(StandIn, "enqueue", spy)
    count(Counting, SMALL["decided"], seed=2, rows=256)
    assert max(running) > 2


def prompt(*ids: int) -> dict[str, Any]:
    return {"prompt_token_ids": list(ids)}


def test_the_stand_in_counts_forwards_by_hand() -> None:
    """2 rows, 4 tokens a forward, blocks of 2. Two requests of 3 tokens, of which the second finds the first block."""
    standin = StandIn(max_num_seqs=2, max_num_batched_tokens=4, block_size=2)
    two, three = Response((5, 6), False), Response((7, 8, 9), True)
    standin.enqueue([prompt(1, 2, 3), prompt(1, 2, 4), prompt(9, 9)], [two, three, two])
    forwards = []
    while standin.has_unfinished_requests():
        forwards.append([output.request_id for output in standin.step()])
    # 1: all of the first and what the second lacks. 2: a token each; the first is done. 3: the third joins and the
    # second ends. 4: the third ends.
    assert forwards == [[], ["0"], ["1"], ["2"]]
    assert standin.prompt_tokens == 3 + 1 + 2


def test_the_command_prints_a_row_for_each_phase(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(vllm_schedule, "PLANS", {"a": SMALL["flat"], "b": SMALL["trees"]})
    monkeypatch.setattr(sys, "argv", ["vllm_schedule.py", "--seeds", "1"])
    vllm_schedule.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip() for row in rows] == ["phase", "---", "a", "b"] and all(len(row) == 8 for row in rows)
