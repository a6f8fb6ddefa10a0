"""Scripts in a phase: what is resumed when, in which order requests are submitted, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_spine.sampling.phase import Script, Waves, drive


class OneByOne:
    """A phase that finishes the request whose name sorts last, one at a time; notes what happened."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.heard: list[str] = []

    def submit(self, requests: Sequence[str]) -> None:
        self.open += requests
        self.heard.append("+" + " ".join(requests))

    def drain(self) -> list[tuple[str, str]]:
        last = max(self.open)
        self.open.remove(last)
        self.heard.append(f"-{last}")
        return [(last, last.upper())]


def asks(*names: str) -> Script[list[str]]:
    """Ask for all names, then for one that is made of them."""
    drawn = yield list(names)
    (more,) = yield ["then " + names[0]]
    return [*drawn, more]


def test_a_script_goes_on_as_soon_as_its_own_requests_are_drawn() -> None:
    phase = OneByOne()
    assert drive([asks("a", "b"), asks("y", "z")], phase) == [["A", "B", "THEN A"], ["Y", "Z", "THEN Y"]]
    assert phase.heard == ["+a b y z", "-z", "-y", "+then y", "-then y", "-b", "-a", "+then a", "-then a"]


def test_a_wave_draws_all_that_was_submitted_in_one_call() -> None:
    calls: list[list[str]] = []

    def complete(requests: Sequence[str]) -> list[str]:
        calls.append(list(requests))
        return [request.upper() for request in requests]

    drive([asks("a", "b"), asks("y")], Waves(complete))
    assert calls == [["a", "b", "y"], ["then a", "then y"]]


def test_scripts_run_beside_requests_and_hand_their_results_up() -> None:
    def outer() -> Script[Any]:
        first = yield [asks("m"), "n", asks("o", "p")]
        second = yield []
        return [*first, second]

    phase = OneByOne()
    assert drive([outer()], phase) == [[["M", "THEN M"], "N", ["O", "P", "THEN O"], []]]
    assert phase.heard[:4] == ["+m n o p", "-p", "-o", "+then o"]


def nothing(result: int) -> Script[int]:
    """End without asking for anything."""
    yield from ()
    return result


def test_scripts_that_ask_for_nothing_end_at_once() -> None:
    def outer() -> Script[Any]:
        return [(yield [nothing(1), nothing(2)]), (yield [nothing(3)])]

    assert drive([outer(), nothing(4)], OneByOne()) == [[[1, 2], [3]], 4]
    assert drive([], OneByOne()) == []


Tree = st.recursive(st.integers(0, 3), lambda inner: st.lists(inner, max_size=4), max_leaves=25)


@given(st.lists(Tree, max_size=4), st.randoms())
@settings(max_examples=100, deadline=None)
def test_any_nesting_gives_each_script_its_own_results_in_order(trees: list[Any], order: Any) -> None:
    """A script for each list, so many requests for each number, drained in any order and number."""
    count = iter(range(10**6))

    def grow(tree: Any) -> Script[Any]:
        jobs = [grow(part) if isinstance(part, list) else f"{part}:{next(count)}" for part in tree]
        once = yield jobs
        assert [got.split("!")[0] if isinstance(got, str) else "" for got in once] == [
            job if isinstance(job, str) else "" for job in jobs
        ]
        (again,) = yield ["last:" + str(next(count))]
        assert again.startswith("last:")
        return [shape(got) for got in once]

    def shape(got: Any) -> Any:
        return got if isinstance(got, list) else int(got.split(":")[0])

    class Any_:
        def __init__(self) -> None:
            self.open: list[str] = []

        def submit(self, requests: Sequence[str]) -> None:
            self.open += requests

        def drain(self) -> list[tuple[str, str]]:
            assert self.open, "a drain with nothing to draw"
            chosen = order.sample(self.open, order.randint(1, len(self.open)))
            self.open = [request for request in self.open if request not in chosen]
            return [(request, f"{request}!") for request in chosen]

    wanted = [tree if isinstance(tree, list) else [tree] for tree in trees]
    assert drive([grow(tree) for tree in wanted], Any_()) == wanted


def test_an_error_in_a_script_is_not_lost() -> None:
    def broken() -> Script[None]:
        yield ["a"]
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        drive([broken(), asks("b")], OneByOne())
