"""What holds for every row of the table: a resumed run is an uninterrupted one, and the row says what it is."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import QUESTIONS, run, stopping_after
from small import digit_policy, small_config

from mm_spine.adapt import Adapted, Hooks, StepRecord, adapt
from mm_spine.methods.method import Batch, Method, Term
from mm_spine.methods.table import METHODS
from mm_spine.methods.tokens import Tokens
from mm_spine.training.checkpoint import checkpoints

TRAINING = [name for name, row in METHODS.items() if row.trains and row.label_free and row.check is None]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_a_resumed_run_of_every_method_is_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """To the byte, what the method remembers included."""
    layers = {"method": {"name": name}, "optim": {"steps": 2}, "checkpoint": {"every": 1}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(layers, checkpoints=whole)
    run(layers, checkpoints=parts, should_stop=stopping_after(1))
    run(layers, checkpoints=parts, resume=True)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*") if path.is_file())
    assert Path("step_000002", "weights.safetensors") in files
    assert all((whole / file).read_bytes() == (parts / file).read_bytes() for file in files)


# A row of a user's own.


def count_steps(batch: Batch, tokens: list[list[Tokens]]) -> Mapping[str, Any]:
    return {"steps": batch.memory.get("steps", 0) + 1}


def weigh_by_memory(batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """The term acts on all tokens, from the second step on, by the number of steps so far."""
    steps = float(batch.memory.get("steps", 0))

    def weigh(chosen: Tokens) -> Tokens:
        return chosen._replace(weights={"sharpen": torch.full(chosen.policy_T.shape, steps)})

    return [list(map(weigh, of_group)) for of_group in tokens]


COUNTING = Method(
    "majority reward and, from the second step on, lower entropy",
    "-",
    choice=lambda options: weigh_by_memory,
    terms=lambda options: [Term("sharpen", lambda view: view.entropy_NT, coefficient=0.1)],
    remember=lambda options: count_steps,
)


def adapted(folder: Path, **hooks: Any) -> tuple[list[StepRecord], Adapted]:
    config = small_config({"method": {"name": "ttrl"}, "checkpoint": {"every": 1}})
    records: list[StepRecord] = []
    given = Hooks(on_step=records.append, checkpoints=folder, **hooks)
    return records, adapt(QUESTIONS, digit_policy(), method=COUNTING, config=config, hooks=given)


def test_a_method_remembers_over_steps_and_over_a_resumed_run(tmp_path: Path) -> None:
    records, _ = adapted(tmp_path / "whole")
    terms = [record.report.loss_terms or {} for record in records]
    entropies = [record.report.entropy_mean for record in records]
    assert [term["sharpen"] for term in terms] == pytest.approx(
        [0.1 * step * float(entropy or 0) for step, entropy in enumerate(entropies)], rel=1e-4
    )
    for record in records:
        report, further = record.report, (record.report.loss_terms or {})["sharpen"]
        assert report.loss == pytest.approx(report.loss_policy + report.loss_kl + further, rel=1e-6)
    adapted(tmp_path / "parts", should_stop=stopping_after(1))
    resumed, ended = adapted(tmp_path / "parts", resume=True)
    assert [record.report.loss_terms for record in resumed] == terms[1:] and ended.steps == 3
    (last, other) = (checkpoints(tmp_path / name)[0] for name in ("whole", "parts"))
    assert '"memory": {"steps": 3}' in (last / "state.json").read_text()
    assert all(file.read_bytes() == (other / file.name).read_bytes() for file in last.iterdir())


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_it_computes_and_where_it_is_from(name: str) -> None:
    row = METHODS[name]
    assert row.summary and row.source and row.formula


def test_nothing_outside_of_the_rows_depends_on_the_name_of_a_method(repository: Path) -> None:
    """The default method and those that the demo compares are named, and no other. "none" is also a common word."""
    found = {
        (path.relative_to(repository).as_posix(), node.value)
        for folder in ("mm_spine", "processors", "benchmarks")
        for path in (repository / folder).rglob("*.py")
        if path.parent != repository / "mm_spine" / "methods"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in METHODS.keys() - {"none"}
    }
    defaults = ("config/method.py", "commands/ask.py", "commands/ask_session.py", "commands/serve.py")
    demo = {("mm_spine/commands/demo.py", name) for name in ("ttrl", "spine", "random-mask")}
    assert found == {(f"mm_spine/{module}", "spine") for module in defaults} | demo
