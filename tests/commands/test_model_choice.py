"""What a run without a model says: which public model fits on which card."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mm_spine.cli import app
from mm_spine.commands import model_choice
from mm_spine.commands.card import CARDS, Card, shortage
from mm_spine.commands.model_choice import Choice, choice_lines, choices, largest
from mm_spine.config import ConfigError


@pytest.fixture(scope="module")
def found() -> list[Choice]:
    return choices("mine")


def test_models_come_by_size_with_the_values_of_own_yaml(found: list[Choice]) -> None:
    sizes = [sum(choice.model.counts.values()) for choice in found]
    assert sizes == sorted(sizes)
    for choice in found:
        lora, full = choice.configs["lora"], choice.configs["full"]
        assert lora.model.path == choice.name and (lora.model.train, full.model.train) == ("lora", "full")
        assert lora.optim.lr == 1e-5 and full.optim.lr == 1e-6


def test_the_largest_is_the_last_that_fits(found: list[Choice]) -> None:
    for card in CARDS.values():
        name = largest(found, card, "lora")
        fitting = [c.name for c in found if shortage(c.configs["lora"], c.model, card) is None]
        assert name == fitting[-1]
    assert largest(found, Card(1, 1, 1), "lora") is None
    assert largest(found, CARDS["h100-80"], "full") == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_lines_name_every_card_and_the_one_of_this_machine(
    found: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_choice, "choices", lambda *given: found)
    lines = list(choice_lines("mine", (), ("Some Card", 24 * 10**9)))
    for name, card in CARDS.items():
        (line,) = (line for line in lines if line.strip().startswith(name))
        assert line.split()[1] == largest(found, card, "lora")
    assert any("72B" in line and "several cards" in line for line in lines)
    assert lines[-1].endswith(
        f"mm-spine adapt mine --output runs/mine model.path={largest(found, CARDS['l4-24'], 'lora')}"
    )
    assert "room for none" in list(choice_lines("mine", (), ("Old", 10**9)))[-1]
    assert list(choice_lines("mine"))[-1] == "This machine has no GPU that torch can use."


def test_a_wrong_override_is_refused() -> None:
    with pytest.raises(ConfigError, match="optim.rl"):
        choices("mine", ["optim.rl=1"])


def test_the_command_ends_with_the_advice_before_anything_loads(
    tmp_path: Path, found: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_choice, "choices", lambda *given: found)
    monkeypatch.setattr(model_choice, "card_here", lambda: None)
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Is it red?", "kind": "yes_no"}\n')
    ended = CliRunner().invoke(app, ["adapt", str(tmp_path), "--output", str(tmp_path / "run")])
    assert isinstance(ended.exception, ConfigError)
    assert "model.path is not set" in str(ended.exception) and "l4-24" in str(ended.exception)
    assert not (tmp_path / "run").exists()
