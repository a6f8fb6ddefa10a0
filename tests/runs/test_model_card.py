"""The model card says what a run found, as the hub reads it, and nothing of the data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import Lab
from small import small_config

from mm_spine.evaluation import metrics
from mm_spine.files import fingerprint
from mm_spine.runs import model_card
from mm_spine.runs.folder import RunFolder
from mm_spine.runs.model_card import Base, Licence, base_of, card, front_matter, licence_of
from mm_spine.types import Question

CONFIG = small_config({"seed": 7})
DIGESTS = {"adapted": fingerprint.of_questions([Question(f"patient-{i}", (), "Mrs Smith?", "text") for i in range(3)])}
CHANGES = {"n": 3, "changed": 2, "vote_share_before": 0.5, "vote_share_after": 0.75}
BASE = Base("Qwen/Qwen2.5-VL-3B-Instruct", None, True)


def block(n_labelled: int, greedy: float | None) -> dict[str, Any]:
    bounds = None if greedy is None else [greedy - 0.1, greedy + 0.1]
    scores = {
        name: value
        for key in ("greedy", "pass_at_1", "maj_at_n")
        for name, value in ((key, greedy), (f"{key}_ci95", bounds))
    }
    return {**scores, "pass_at_n": greedy, "n": 3, "n_labelled": n_labelled}


def summary(**more: Any) -> dict[str, Any]:
    blocks = {"before": block(0, None), "after": block(0, None), "held_out": None}
    return {"steps": 12, "label_free": True, **blocks, "answers": {"adapted": CHANGES}, "method_changes": [], **more}


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_reads_base_library_tags_and_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n")
    text = card(summary(), CONFIG, DIGESTS, BASE._replace(folder=tmp_path), "slake")
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mm-spine", "test-time-adaptation", "spine"],
        "base_model": "Qwen/Qwen2.5-VL-3B-Instruct",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
    }
    from huggingface_hub import ModelCard

    data = ModelCard(text).data
    assert (data.base_model, data.license) == ("Qwen/Qwen2.5-VL-3B-Instruct", "apache-2.0")


def test_a_base_in_a_folder_is_named_without_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "my-model"
    folder.mkdir(parents=True)
    base = base_of(str(folder), sees=False)
    assert base == Base("my-model", folder, False)
    text = card(summary(), CONFIG, DIGESTS, base, "own")
    assert "base_model" not in front(text) and front(text)["pipeline_tag"] == "text-generation"
    assert "secret" not in text and "`my-model` after 12 steps" in text
    assert base_of("someone/not-on-this-machine", sees=True) == Base("someone/not-on-this-machine", None, True)


def test_without_labels_the_card_says_what_changed_and_that_nothing_more_is_known() -> None:
    text = card(summary(), CONFIG, DIGESTS, BASE, "own")
    assert "2 of 3 greedy answers changed" in text and "from 50.0 % to 75.0 %" in text
    assert "There were no labels: whether the answers became better is not known." in text
    assert "| before | after |" not in text and "## Guard" not in text and "## Forecast" not in text


def test_with_labels_it_has_scores_and_intervals_of_both_splits() -> None:
    held_out = {"before": block(2, 0.2), "after": block(2, 0.4)}
    text = card(summary(before=block(3, 0.25), after=block(3, 0.5), held_out=held_out), CONFIG, DIGESTS, BASE, "own")
    assert "| one greedy answer | 25.0 % [15.0, 35.0] | 50.0 % [40.0, 60.0] |" in text
    assert "Scores on held-out questions, 2 of 3 with a right answer" in text
    assert "| the vote over the samples (maj@N) | 20.0 % [10.0, 30.0] | 40.0 % [30.0, 50.0] |" in text
    assert "no labels" not in text


def test_a_run_with_labels_as_its_reward_says_so() -> None:
    text = card(summary(label_free=False), CONFIG, DIGESTS, BASE, "own")
    assert "WITH the true labels as its reward" in text and "without labels" not in text


def test_guard_and_forecast_stand_in_it_where_the_run_has_them() -> None:
    guard = {"verdict": "kept", "best_step": 8, "drift": 0.123456, "questions": ["patient-1"], "note": "Mr Smith"}
    forecast = {"verdict": "keep", "n": 3, "gain": 0.25, "top_answer": "pneumonia", "gain_ci95": [0.1, 0.4]}
    text = card(summary(guard=guard, forecast=forecast), CONFIG, DIGESTS, BASE, "own")
    assert "## Guard\n\n- verdict: kept\n- best step: 8\n- drift: 0.1235\n\n" in text
    assert "## Forecast\n\n- verdict: keep\n- n: 3\n- gain: 0.25\n\n## Data" in text
    assert "patient-1" not in text and "Smith" not in text and "pneumonia" not in text


def test_no_text_of_the_data_is_in_it() -> None:
    text = card(summary(), small_config({"benchmark": "cases/of-smith"}), DIGESTS, BASE, "cases/of-smith")
    assert "Smith" not in text and "smith" not in text and "patient" not in text
    assert "Questions of the user's own" in text
    assert f": 3, digest `{model_card.digest(DIGESTS['adapted'])}`" in text
    assert "The benchmark `slake`" in card(summary(), CONFIG, DIGESTS, BASE, "slake")


def test_settings_are_yaml_and_changes_of_the_method_are_named() -> None:
    text = card(summary(method_changes=["method.share=0.5 (the method's own: 0.2)"]), CONFIG, DIGESTS, BASE, "own")
    settings = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    assert settings["method"]["share"] == 0.5 and settings["optim"]["lr"] == 0.0005 and settings["seed"] == 7
    assert "- method.share=0.5 (the method's own: 0.2)" in text


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: 'x\n  y'\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("no front matter", None),
        (None, None),
    ],
)
def test_a_licence_is_taken_only_where_it_is_a_plain_name(
    tmp_path: Path, content: str | None, name: str | None
) -> None:
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    (tmp_path / "LICENSE.txt").write_text("terms")
    assert licence_of(tmp_path) == Licence(name, "LICENSE.txt")
    assert licence_of(None) == Licence(None, None)


def test_a_card_that_is_no_text_has_no_front_matter(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert front_matter(tmp_path / "README.md") == {}


def test_a_run_writes_the_card_with_the_figures_of_its_summary(lab: Lab) -> None:
    run = lab.run("spine", {"optim": {"steps": 1}})
    text = (run / "adapted" / "README.md").read_text()
    found = json.loads((run / "summary.json").read_text())
    before, after = found["before"], found["after"]
    assert before == metrics([item for item in RunFolder(run).read_items("before") if item.split == "adapted"])
    was, now = (
        f"{100 * block['greedy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        for block, (low, high) in ((before, before["greedy_ci95"]), (after, after["greedy_ci95"]))
    )
    assert f"| one greedy answer | {was} | {now} |" in text and str(run.parent) not in text
    assert text == model_card.of_run(run)
