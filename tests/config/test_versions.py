"""A configuration that an older version saved is read as it was meant; one of a newer version is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mm_spine.config import ConfigError, RunConfig
from mm_spine.config.versions import MIGRATIONS, VERSION, upgraded
from mm_spine.methods.table import configure
from mm_spine.runs.folder import changed_keys, check_same_config, in_todays_form
from mm_spine.runs.plan import load_config

SAVED = Path(__file__).with_name("config_0.1.yaml")
GIVEN = (
    *("optim.steps=24", "sampling.votes=32", "prompt=short", "model.train=lora", "reporting.trackers=tensorboard"),
    "evaluation.samples=8",
)
"""The overrides of the run, with method ttrl-ear and seed 3, whose config.yaml mm-spine 0.1.0 saved as `SAVED`."""


def test_a_configuration_saved_by_the_first_version_is_the_same_run_today() -> None:
    assert "version" not in yaml.safe_load(SAVED.read_text())
    assert load_config(str(SAVED)) == load_config("digits", GIVEN, "ttrl-ear", 3)


def test_a_saved_configuration_states_its_form_and_is_read_again(tmp_path: Path) -> None:
    config = load_config("digits", ["optim.steps=3"])
    saved = config.model_dump(mode="json")
    assert next(iter(saved.items())) == ("version", VERSION) == ("version", RunConfig().version)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_a_run_of_the_first_version_may_be_resumed_with_the_same_settings() -> None:
    saved = in_todays_form(yaml.safe_load(SAVED.read_text()), SAVED)
    check_same_config(saved, load_config("digits", GIVEN, "ttrl-ear", 3).model_dump(mode="json"), SAVED)
    other = load_config("digits", [*GIVEN, "optim.steps=25"], "ttrl-ear", 3).model_dump(mode="json")
    assert list(changed_keys(saved, other)) == [("optim.steps", 24, 25)]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (VERSION + 1, f"run.yaml: version={VERSION + 1} is of a newer mm-spine, this one reads up to {VERSION}"),
        (0, "run.yaml: version=0 is no form"),
        ("0.1", "run.yaml: version='0.1' is no form"),
        (True, "run.yaml: version=True is no form"),
    ],
)
def test_a_form_that_is_not_known_is_refused_by_name(version: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"version": version, "seed": 1}))
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


@pytest.mark.parametrize("name", ["spine", "rent", "ettrl"])
def test_options_that_every_method_had_in_the_first_form_are_left_out_at_their_defaults(name: str) -> None:
    """`ear` and `unparsed_penalty` stood in the config.yaml of every method, and only some have them now."""
    first = {"method": {"name": name, "share": 0.3, "ear": "adv_res", "unparsed_penalty": 7}}
    assert upgraded(first, "x") == {"method": {"name": name, "share": 0.3}}
    saved = in_todays_form({**first, "version": 1}, Path("config.yaml"))
    assert saved == configure({"method": {"name": name, "share": 0.3}}).model_dump(mode="json")


def test_options_of_the_first_form_that_were_set_are_kept_and_not_lost_in_silence() -> None:
    first = {"method": {"name": "ettrl", "ear": "adv_clip", "unparsed_penalty": 7.0}}
    assert in_todays_form(first, Path("x"))["method"]["ear"] == "adv_clip"
    assert upgraded({"method": {"ear": "adv_clip"}}, "x") == {"method": {"ear": "adv_clip"}}
    assert upgraded({"method": "spine", "seed": 1}, "x") == {"method": "spine", "seed": 1}
    with pytest.raises(
        ConfigError, match=r"x: method\.ear: not an option of this method; these have it: ttrl-ear, ettrl"
    ):
        in_todays_form({"method": {"name": "spine", "ear": "adv_clip"}}, Path("x"))
    with pytest.raises(ConfigError, match=r"x: method\.ear: not an option"):
        in_todays_form({"version": 2, "method": {"name": "spine", "ear": "adv_res"}}, Path("x"))


def test_an_unknown_key_of_a_saved_run_names_the_file() -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: sed: no such key"):
        in_todays_form({"sed": 1}, Path("config.yaml"))


def test_every_form_between_is_passed_through_once_and_in_order() -> None:
    def rename(old: str, new: str) -> Any:
        return lambda tree: {new if key == old else key: value for key, value in tree.items()}

    steps = {1: rename("a", "b"), 2: rename("b", "c")}
    assert upgraded({"a": 5}, "x", 3, steps) == {"c": 5}
    assert upgraded({"version": 2, "a": 5, "b": 6}, "x", 3, steps) == {"a": 5, "c": 6}
    assert upgraded({"version": 3, "b": 5}, "x", 3, steps) == {"b": 5}
    assert sorted(MIGRATIONS) == list(range(1, VERSION))
