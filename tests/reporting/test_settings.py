"""A run's settings as a LaTeX paragraph."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from saved_runs import EVIL, step_report

from mm_spine.config.layers import build
from mm_spine.files import write_json, write_json_lines
from mm_spine.reporting.saved_run import read_run
from mm_spine.reporting.settings import figure, settings_paragraph


@pytest.mark.parametrize(
    ("value", "latex"),
    [(0.0002, r"$2 \times 10^{-4}$"), (1e-6, r"$10^{-6}$"), (0.1, "0.1"), (64, "64"), (12845056, "12{,}845{,}056"),
     (200704, "200{,}704"), (0, "0"), ("a_b", r"a\_b")],
)  # fmt: skip
def test_numbers(value: object, latex: str) -> None:
    assert figure(value) == latex


def paragraph(run: Path, **config: object) -> str:
    given = build({"benchmark": "digits", "optim": {"lr": 2e-4, "steps": 7}, **config}).model_dump(mode="json")
    (run / "config.yaml").write_text(yaml.safe_dump(given))
    return settings_paragraph(read_run(run)).replace("\n", " ")


def test_every_number_is_that_of_the_configuration(copy: Path) -> None:
    text = paragraph(copy, sampling={"votes": 24, "train_rollouts": 12, "max_new_tokens": 96}, seed=3)
    assert r"learning rate $2 \times 10^{-4}$ (cosine schedule" in text and "We take 7 steps of 32 questions" in text
    assert "For each question 24 responses of at most 96 tokens" in text and "the first 12 are trained on" in text
    assert "The seed is 3" in text and r"The policy term acts on 20.0\,\%" in text
    assert "The entropy band has weights 0.01 below and 0.01 above it." in text and "The KL term" not in text
    assert (copy / "figures" / "settings.tex").read_text().startswith("% Settings of this run")


def test_what_the_method_does_not_use_is_not_stated(copy: Path) -> None:
    rows = [{**vars(step_report(i)), "selected_share": 1.0, "band_low": None, "band_high": None} for i in range(2)]
    write_json_lines(copy / "steps.jsonl", rows)
    text = paragraph(copy, method={"name": "ttrl", "kl": "k3", "kl_weight": 0.001}, model={"train": "lora"})
    assert "band" not in text and "policy term" not in text
    assert "The KL term (k3) to the starting model has weight 0.001." in text
    assert r"low-rank adapters (rank 16, $\alpha = 32$) of the language model" in text


def test_a_damaged_configuration_costs_its_sentences_alone(copy: Path) -> None:
    hostile = {"benchmark": EVIL, "seed": r"\input{/etc/passwd}", "optim": [], "sampling": {"votes": EVIL}}
    (copy / "config.yaml").write_text(yaml.safe_dump(hostile))
    write_json(copy / "environment.json", {"packages": {"torch": r"2 \evil"}})
    text = settings_paragraph(read_run(copy))
    assert r"\input{" not in text and r"\evil" not in text and r"\textbackslash{}input" in text
    assert "AdamW" not in text and "vote" not in text
