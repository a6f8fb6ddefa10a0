"""The alarm of the guard: the signal that passed its limit, what summary.json says of it, and the sentence."""

from __future__ import annotations

from typing import NamedTuple, TypedDict


class Alarm(NamedTuple):
    """The signal that passed its limit, its value, and the limit."""

    signal: str
    value: float
    limit: float


class GuardRecord(TypedDict):
    """The entry `guard` of summary.json: whether the guard fired, after how many steps, by which signal, and the steps
    of the weights that were restored; these are None where it has not fired. `judged` says whether it ever saw enough
    to judge by."""

    fired: bool
    step: int | None
    signal: str | None
    value: float | None
    limit: float | None
    rolled_back_to: int | None
    judged: bool


CALM = GuardRecord(fired=False, step=None, signal=None, value=None, limit=None, rolled_back_to=None, judged=False)
JUDGED = GuardRecord(fired=False, step=None, signal=None, value=None, limit=None, rolled_back_to=None, judged=True)
"""Records of a guard that has not fired: of one that never saw enough to judge by, and of one that did."""


def sentence(record: GuardRecord) -> str:
    """Say in words why the guard fired, and what it did."""
    assert record["value"] is not None and record["limit"] is not None
    value, limit = record["value"], record["limit"]
    found = {
        "kept": f"{value:.0%} of the votes that were sure at the start are still the same (limit {limit:.0%})",
        "spread": f"different questions get the same answers: {value:.0%} of their entropy is left (limit {limit:.0%})",
        "agreement": f"{value * 100:.1f} points fewer of the responses give the votes of the start "
        f"(limit {limit * 100:g})",
        "greedy": f"{value * 100:.1f} points fewer of the greedy answers are the votes of the start "
        f"(limit {limit * 100:g})",
        "unparsed": f"{value * 100:.0f} points more of the responses have no answer (limit {limit * 100:.0f})",
        "length": f"responses are {value:.2g} times as long as at the start (limit {limit:g} times, either way)",
    }[record["signal"] or ""]
    done, at_end = f"guard: after step {record['step']}, {found}", record["signal"] == "greedy"
    if record["rolled_back_to"] is None:
        return f"{done}; {'its weights are kept' if at_end else 'the run goes on'} (guard.act=warn)"
    where = f"those after step {record['rolled_back_to']}" if record["rolled_back_to"] else "the starting ones"
    return f"{done}; {'the run has ended' if at_end else 'the run stops'}, and its weights are {where} again"
