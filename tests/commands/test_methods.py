"""`mm-spine methods`: every row under what it changes, and all about one row."""

from __future__ import annotations

from dataclasses import fields

import pytest
from command_line import Command, refused
from rich.console import Console

from mm_spine.commands import printing
from mm_spine.commands.methods import changes, grouped
from mm_spine.config import MethodConfig
from mm_spine.methods.method import Method
from mm_spine.methods.table import METHODS


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "console", Console(width=800))


def table_lines(out: str) -> dict[str, str]:
    """First cell -> line, of the table that the command prints."""
    return {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") > 2}


def test_the_list_has_every_row_once_with_its_own_defaults_below_what_it_changes(command: Command) -> None:
    ended = command("methods")
    assert ended.code == 0
    lines = table_lines(ended.out)
    assert lines.keys() == {*METHODS, *map(changes, METHODS.values())}
    for name, row in METHODS.items():
        assert row.source in lines[name]
        assert all(f"{key}={value}" in lines[name] for key, value in row.options.items())
        assert ("(reads labels)" in lines[name]) is not row.label_free
    assert "ear=adv_res" in lines["ettrl"] and "sampling.tree={}" in lines["ettrl"] and "ear=" not in lines["spine"]
    assert "band_quantiles=(0.1, 0.5)" in ended.out and "clip_high=0.2" in ended.out


def test_rows_are_grouped_by_what_they_change_in_the_order_of_the_algorithm() -> None:
    assert {name: changes(METHODS[name]) for name in ("none", "ttrl", "ettrl", "rent", "ttrl-ear", "forks-only")} == {
        "none": "no training",
        "ttrl": "the common algorithm",
        "ettrl": "sampling, credit",
        "rent": "reward",
        "ttrl-ear": "credit",
        "forks-only": "tokens",
    }
    assert changes(METHODS["spine"]) == changes(METHODS["spine-v2"]) == "tokens, band"
    groups = grouped(METHODS)
    order = ["no training", "the common algorithm", "sampling, credit", "reward", "credit", "tokens, band", "loss"]
    assert [changed for changed in groups if changed in order] == order
    assert sorted(name for names in groups.values() for name in names) == sorted(METHODS)


def test_each_seam_of_a_row_is_something_that_it_changes() -> None:
    """Setting any one maker of a row moves it out of the group of the common algorithm."""
    seams = [field.name for field in fields(Method) if str(field.type).startswith(("Maker", "Callable[[Any, Any]"))]
    assert len(seams) >= 10 and "growth" in seams
    for name in seams:
        assert changes(Method("a", "b", **{name: lambda options: None})) != "the common algorithm", name


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_printed_with_formula_source_and_what_is_ours(name: str, command: Command) -> None:
    ended, row = command("methods", name), METHODS[name]
    assert ended.code == 0 and ended.out.startswith(f"{name}: {row.summary}")
    assert f"source: {row.source}" in ended.out and f"changes: {changes(row)}" in ended.out
    assert row.formula and all(f"  {line}" in ended.out for line in row.formula.splitlines())
    assert row.ours in ended.out and (row.ours or name == "none")
    assert row.reported in ended.out
    for key, value in row.options.items():
        usual = MethodConfig.model_fields[key].default
        assert (f"method.{key}={value} (usually {usual})" in ended.out) is (value != usual)


def test_options_of_a_methods_own_are_printed_with_their_meaning(command: Command) -> None:
    out = command("methods", "rent").out
    assert "unparsed_penalty=7.0  the reward of a response without an answer is minus this, in nats" in out
    assert "options of its own" not in command("methods", "spine").out


def test_an_unknown_method_is_refused(command: Command) -> None:
    refused(command("methods", "spien"), "did you mean 'spine'", "if a plugin adds it, give --plugin FILE")
