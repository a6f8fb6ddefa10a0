"""The configuration of a folder: own.yaml, by the size of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.config.layers import parse_overrides
from mm_spine.policy.public_models import PUBLIC_MODELS
from mm_spine.runs import own
from mm_spine.runs.own import find_parameters, own_values, used_lines
from mm_spine.runs.plan import load_config

SMALL, LARGE = "model.path=Qwen/Qwen2.5-VL-3B-Instruct", "model.path=Qwen/Qwen2.5-VL-32B-Instruct"


def test_values_go_by_the_size_of_the_model() -> None:
    toy, small, large = (load_config("mine", [path]) for path in (f"model.path={MODEL_DIR}", SMALL, LARGE))
    assert (toy.model.dtype, toy.model.train, toy.engine.checkpoint_activations) == ("float32", "full", False)
    assert (small.model.dtype, small.model.train, small.engine.checkpoint_activations) == ("bfloat16", "lora", True)
    assert toy.sampling.max_new_tokens == toy.evaluation.max_new_tokens < small.sampling.max_new_tokens
    assert large.model.max_pixels is not None and small.model.max_pixels is not None
    assert large.model.max_pixels < small.model.max_pixels
    for config in (toy, small, large):
        assert (config.benchmark, config.sampling.votes.max, config.evaluation.samples) == ("mine", 8, 8)


def test_the_learning_rate_goes_by_what_trains() -> None:
    assert load_config("mine", [SMALL]).optim.lr == 1e-5
    assert load_config("mine", [SMALL, "model.train=full"]).optim.lr == 1e-6
    assert load_config("mine", [SMALL, "model.train=full", "optim.lr=3e-6"]).optim.lr == 3e-6


def test_what_is_set_wins_and_is_not_listed() -> None:
    given = [SMALL, "sampling.votes=4", "sampling.train_rollouts=4", "model.dtype=float32"]
    config = load_config("mine", given, "ttrl", 5)
    assert (config.sampling.votes.max, config.model.dtype, config.method.name, config.seed) == (4, "float32", "ttrl", 5)
    common, sized = used_lines(config, parse_overrides(given))
    assert "votes" not in common and "method" not in common and "optim.steps=24" in common.split()
    assert "dtype" not in sized and "3.1 billion parameters" in sized and "model.train=lora" in sized.split()
    assert list(used_lines(config, parse_overrides(given), ["evaluation"]))[1].split()[-1].startswith("evaluation.")


def test_every_listed_value_is_that_of_the_configuration() -> None:
    config = load_config("mine", [SMALL])
    for line in used_lines(config, parse_overrides([SMALL])):
        for pair in line.partition(": ")[2].split():
            key, _, value = pair.partition("=")
            found = config
            for part in key.split("."):
                found = getattr(found, part)
            assert yaml.safe_load(value) == found or float(value) == found, pair


def test_a_saved_configuration_gives_the_run_again(tmp_path: Path) -> None:
    config = load_config("mine", [LARGE, "optim.steps=3"])
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(str(saved)) == config


def test_yaml_files_and_benchmarks_take_nothing_from_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"benchmark: {tmp_path}")
    assert load_config(str(tmp_path / "mine.yaml")).sampling.votes.max == 16
    assert not own.applies_to("digits") and not own.applies_to("mine.yaml") and own.applies_to("./digits")


def test_a_local_config_counts_and_an_unknown_size_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC_MODELS["Qwen/Qwen2.5-VL-72B-Instruct"]))
    count = find_parameters(str(tmp_path))
    assert count is not None and count > 7e10
    monkeypatch.setattr(own, "_fetched", lambda model: None)
    given = {"model": {"path": "some/model"}}
    assert own_values(given).parameters is None
    assert own_values(given).sized == own_values({"model": {"path": "Qwen/Qwen2.5-VL-7B-Instruct"}}).sized
    assert "not known" in list(used_lines(load_config("mine", ["model.path=some/model"]), given))[1]


def test_a_wrong_section_is_left_to_the_validation() -> None:
    for given in ({"model": "x"}, {"model": {"train": ["lora"]}}, {}):
        assert own_values(given).layer["optim"]["steps"] == 24
