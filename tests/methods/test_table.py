"""Every row of the table, one step end to end, and what each control trains."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from small import digit_policy, small_config
from tiny import tiny_questions

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import ConfigError, MethodConfig, OptimConfig, RunConfig, TreeConfig
from mm_spine.draws import uniforms
from mm_spine.methods import rows_sampling
from mm_spine.methods.choices import random_draw
from mm_spine.methods.method import Method
from mm_spine.methods.sections import RentConfig
from mm_spine.methods.table import (
    METHODS,
    changed_lines,
    changed_options,
    configure,
    find,
    for_method,
    own_options,
    register_method,
)
from mm_spine.types import Rollout

TRAINING = [name for name, row in METHODS.items() if row.trains and row.label_free and row.check is None]
"""Those that need nothing beyond their defaults."""

NAMES = {
    "none", "ttrl", "ttrl-ear", "ettrl", "rent", "spine", "spine-v2",
    "forks-only", "band-only", "random-mask", "low-entropy-mask", "oracle", *rows_sampling.ROWS,
}  # fmt: skip


@cache
def one_step(name: str, share: float | None = None, ear: str | None = None) -> tuple[StepRecord, bool]:
    """The record of one step of method `name` on three questions, and whether the weights moved."""
    own = {key: value for key, value in {"share": share, "ear": ear}.items() if value is not None}
    config = small_config({"method": {"name": name, **own}, "optim": {"steps": 1, "questions_per_step": 3}})
    policy, records = digit_policy(), []
    start = policy.weights()
    adapt(tiny_questions(3), policy, config=config, hooks=Hooks(on_step=records.append))
    moved = any(not torch.equal(weight, start[key]) for key, weight in policy.trainable().items())
    return records[0], moved


def masks(record: StepRecord) -> Any:
    """(entropy, policy mask, band mask) of every rollout."""
    for group, chosen in zip(record.groups, record.tokens, strict=True):
        for rollout, tokens in zip(group.rollouts, chosen, strict=True):
            yield rollout.entropy, tokens.policy_T.numpy(), tokens.band_T.numpy()


def top_share(entropy: np.ndarray, share: float) -> np.ndarray:
    """The `share` of highest entropy by NumPy's linear quantile."""
    return entropy >= np.quantile(entropy.astype(np.float64), 1 - share) - 1e-7


def test_the_table_holds_the_methods_and_controls() -> None:
    assert METHODS.keys() > NAMES
    assert [name for name, row in METHODS.items() if not row.label_free] == ["oracle"]
    assert [name for name, row in METHODS.items() if not row.trains] == ["none"]
    assert all(row.summary and row.source for row in METHODS.values())


def test_the_table_is_read_without_torch() -> None:
    """Listing the methods takes a fraction of a second; importing torch takes several."""
    code = "import sys; from mm_spine.methods.table import METHODS; print(len(METHODS), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(METHODS)), "False"]


def test_every_row_has_valid_options() -> None:
    for name, row in METHODS.items():
        config = configure({"method": name})
        assert config.method.name == name
        assert {key: getattr(config.method, key) for key in row.options} == dict(row.options)


@pytest.mark.parametrize("name", TRAINING)
def test_a_step_of_every_method_is_finite_and_moves_the_weights(name: str) -> None:
    record, moved = one_step(name)
    figures = [value for value in vars(record.report).values() if isinstance(value, int | float)]
    assert len(figures) > 20 and all(np.isfinite(figures))
    assert moved and record.report.grad_norm > 0 and record.report.tokens_trained > 0
    assert record.report.parity_max < 1e-4
    assert all(np.isfinite(group.advantages.numpy()).all() for group in record.groups)


def test_no_method_samples_differently_unless_its_row_says_so() -> None:
    """One seed, one starting model: all rows but those of trees learn from the same rollouts."""
    assert [name for name, row in METHODS.items() if row.sampling] == ["ettrl", *rows_sampling.ROWS]
    flat = [name for name in TRAINING if not METHODS[name].sampling]
    drawn = {tuple(r.token_ids for g in one_step(name)[0].groups for r in g.rollouts) for name in flat}
    assert len(drawn) == 1


def test_ettrl_trains_on_trees_and_other_methods_do_so_when_asked() -> None:
    assert configure({"method": "ettrl"}).sampling.tree == TreeConfig()
    assert configure({"method": "ettrl", "sampling": {"tree": None}}).sampling.tree is None
    assert configure({"method": "ttrl-ear"}).sampling.tree is None
    config = small_config({"method": "ettrl", "sampling": {"votes": 5, "train_rollouts": 5}, "optim": {"steps": 1}})
    records: list[StepRecord] = []
    adapt(tiny_questions(3), digit_policy(), config=config, hooks=Hooks(on_step=records.append))
    leaves = [rollout for group in records[0].groups for rollout in group.rollouts]
    assert len(leaves) == 15 and all(rollout.parent in (None, 0) for rollout in leaves)
    shared = sum(rollout.fork_at or 0 for rollout in leaves)
    assert any(rollout.parent == 0 for rollout in leaves) and records[0].report.tokens_saved == shared


def test_none_trains_nothing() -> None:
    policy = digit_policy()
    start = policy.weights()
    ended = adapt(tiny_questions(2), policy, config=small_config({"method": {"name": "none"}}))
    assert ended.steps == 0
    assert all(torch.equal(weight, start[name]) for name, weight in policy.trainable().items())


@pytest.mark.parametrize("name", ["ttrl", "ttrl-ear", "rent", "band-only"])
def test_methods_of_all_tokens_select_all(name: str) -> None:
    record, _ = one_step(name)
    assert record.report.selected_share == 1.0
    assert all(policy.all() for _, policy, _ in masks(record))


@pytest.mark.parametrize("name", ["spine", "forks-only"])
def test_forks_are_the_top_share_of_each_response(name: str) -> None:
    record, _ = one_step(name, share=0.4)
    for entropy, policy, _ in masks(record):
        np.testing.assert_array_equal(policy, top_share(entropy, 0.4))
    assert 0.3 < record.report.selected_share < 0.7


def test_spine_bounds_the_tokens_that_it_trains_and_band_only_the_forks_alone() -> None:
    assert all((policy == band).all() for _, policy, band in masks(one_step("spine", share=0.4)[0]))
    for entropy, policy, band in masks(one_step("band-only", share=0.4)[0]):
        assert policy.all()
        np.testing.assert_array_equal(band, top_share(entropy, 0.4))
    assert not any(band.any() for _, _, band in masks(one_step("forks-only", share=0.4)[0]))


def test_spine_v2_keeps_the_upper_side_of_a_threshold() -> None:
    record, _ = one_step("spine-v2")
    for entropy, policy, band in masks(record):
        assert (policy == band).all() and policy.any()
        if not policy.all():
            assert entropy[policy].min() > entropy[~policy].max()
    assert record.report.selected_share < 1.0


def test_low_entropy_mask_keeps_the_lowest() -> None:
    record, _ = one_step("low-entropy-mask", share=0.6)
    for entropy, policy, _ in masks(record):
        if not policy.all():
            assert entropy[policy].max() <= entropy[~policy].min()
    assert 0.5 < record.report.selected_share < 0.9


def test_random_mask_has_the_share_and_falls_alike_on_equal_responses() -> None:
    record, _ = one_step("random-mask", share=0.4)
    seen: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
    repeats = 0
    for group, chosen in zip(record.groups, record.tokens, strict=True):
        for rollout, tokens in zip(group.rollouts, chosen, strict=True):
            mask = tokens.policy_T.numpy()
            assert mask.sum() == int(np.ceil(0.4 * len(mask) - 1e-9))
            first = seen.setdefault((group.question.id, rollout.token_ids), mask)
            repeats += first is not mask
            np.testing.assert_array_equal(mask, first)
    ranked = [(mask == top_share(entropy, 0.4)).all() for entropy, mask, _ in masks(record)]
    assert not all(ranked), "a random mask is not the entropy mask"


def test_a_random_draw_depends_on_seed_step_question_and_index_only() -> None:
    values = np.zeros(4, np.float32)
    rollout = Rollout("q", 3, (1, 2, 3, 4), "text", values, values, "stop")
    drawn = random_draw(rollout, 5, 6).numpy()
    np.testing.assert_array_equal(drawn, uniforms(4, 5, "mask", 6, "q", 3))
    assert not np.array_equal(drawn, random_draw(rollout, 5, 7).numpy())
    assert not np.array_equal(drawn, random_draw(rollout, 4, 6).numpy())


def test_rent_rewards_low_entropy_and_penalises_no_answer() -> None:
    for group in one_step("rent")[0].groups:
        for rollout, answer, reward in zip(group.rollouts, group.answers, group.rewards.tolist(), strict=True):
            assert reward == pytest.approx(-7.0 if answer is None else -float(rollout.entropy.mean()), rel=1e-5)


def test_entropy_shaped_advantages_keep_their_sign_and_differ_from_ttrl() -> None:
    """Adv-Res scales by at most 0.8 to 1.2 (arXiv 2508.11356); the std differs in its denominator."""
    plain, shaped, clipped = one_step("ttrl")[0], one_step("ttrl-ear")[0], one_step("ttrl-ear", ear="adv_clip")[0]
    different = False
    for a, b, c in zip(plain.groups, shaped.groups, clipped.groups, strict=True):
        wide = a.advantages * (4 / 3) ** 0.5
        assert ((b.advantages / wide).nan_to_num(1.0) > 0.799).all() and (
            b.advantages.abs() <= 1.201 * wide.abs()
        ).all()
        torch.testing.assert_close(c.advantages, wide.clamp(-2, 2), atol=1e-4, rtol=1e-4)
        different |= not torch.allclose(b.advantages, wide, atol=1e-3)
    assert different


def test_majority_rewards_and_group_advantages() -> None:
    """r = 1[answer is the vote], A = (r - mean)/(std + eps) with the sample std (arXiv 2504.16084)."""
    taught = 0
    for group in one_step("ttrl")[0].groups:
        rewards = np.array([float(a is not None and a == group.vote.answer) for a in group.answers])
        np.testing.assert_array_equal(group.rewards.numpy(), rewards)
        spread = rewards.std(ddof=1)
        expected = (rewards - rewards.mean()) / (spread + 1e-6) if spread else np.zeros(4)
        np.testing.assert_allclose(group.advantages.numpy(), expected, atol=1e-5)
        taught += bool(spread)
    assert taught


def test_the_oracle_has_no_reward_of_its_own() -> None:
    with pytest.raises(ConfigError, match="--allow-labels"):
        adapt(tiny_questions(2), digit_policy(), config=small_config({"method": {"name": "oracle"}}))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'spine-v2'.*valid: .*ttrl-ear"):
        find("spine_v2")


# Options of a method's own


def test_an_option_of_a_methods_own_is_set_and_written_out_like_any_other() -> None:
    config = configure({"method": "rent"}, {"method": {"unparsed_penalty": 3}})
    assert isinstance(config.method, RentConfig) and config.method.unparsed_penalty == 3.0
    assert changed_lines(config) == ["method.unparsed_penalty=3.0 (the method's own: 7.0)"]
    saved = config.model_dump(mode="json")
    assert saved["method"]["unparsed_penalty"] == 3.0
    assert configure(saved) == config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)
    assert config != configure(saved, {"method": {"unparsed_penalty": 4}})
    assert "unparsed_penalty" not in configure({"method": "ttrl"}).model_dump()["method"]
    assert config.model_dump(exclude_unset=True)["method"] == {"name": "rent", "unparsed_penalty": 3.0}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            {"method": {"ear": "adv_clip"}},
            r"^method\.ear: not an option of this method; these have it: ttrl-ear, ettrl$",
        ),
        (
            {"method": {"name": "rent", "ear": 1}},
            r"^method\.ear: not an option of this method; these have it: ttrl-ear",
        ),
        (
            {"method": {"name": "ettrl", "ear": "clip"}},
            r"^method\.ear='clip': Input should be 'adv_res' or 'adv_clip'$",
        ),
        ({"method": {"name": "ettrl", "eer": "clip"}}, r"^method\.eer: no such key; did you mean 'ear'\?"),
        ({"method": "ettrl", "ear": "adv_clip"}, r"^ear: no such key; did you mean 'method\.ear'\?$"),
        (
            {"method": {"name": "ettrl", "ear": 1, "std": 2}, "seed": "x"},
            r"method\.std=2: .*\nmethod\.ear=1: .*\nseed='x'",
        ),
    ],
)
def test_a_wrong_option_of_a_methods_own_is_named(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(layer)


def test_a_section_made_by_hand_gets_the_options_of_its_method() -> None:
    given = RunConfig(method=MethodConfig(name="rent", share=0.5))
    config, row = for_method(given, None)
    assert row is METHODS["rent"]
    assert config.method == RentConfig(name="rent", share=0.5)
    assert for_method(config, None)[0] is config
    with pytest.raises(ConfigError, match=r"^optim\.epochs=2: the loss of method pacs is of a whole step"):
        for_method(RunConfig(method=MethodConfig(name="pacs"), optim=OptimConfig(epochs=2)), None)


def test_a_row_of_the_users_own_brings_its_section() -> None:
    class Weighed(MethodConfig):
        leaning: float = Field(default=0.5, description="weight")

    row = Method("mine", "me", section=Weighed, options={"leaning": 0.25, "kl": "k3"})
    config, found = for_method(configure({"seed": 3}), row)
    assert found is row and config.seed == 3
    assert (config.method.leaning, config.method.kl) == (0.25, "k3")  # type: ignore[attr-defined]
    assert changed_options(config, row) == {}
    changed, _ = for_method(config.model_copy(update={"method": Weighed(leaning=1.0)}), row)
    assert changed_options(changed, row) == {"method.leaning": (0.25, 1.0)}
    assert own_options(row) == ["leaning"] and own_options(METHODS["spine"]) == []


def test_a_registered_method_is_found_and_configured_by_its_name(tables: None) -> None:
    class Weighed(MethodConfig):
        leaning: float = Field(default=0.5, description="weight")

    row = Method("mine", "me", section=Weighed)
    register_method("mine", row)
    assert find("mine") is row
    assert for_method(configure({"seed": 3}), row)[0] == configure({"seed": 3, "method": "mine"})
    assert configure({"method": {"name": "mine", "leaning": 2}}).method == Weighed(name="mine", leaning=2.0)
    with pytest.raises(ConfigError, match=r"^method\.leaning: not an option of this method; these have it: mine$"):
        configure({"method": {"name": "spine", "leaning": 2}})


def test_a_name_that_is_taken_and_a_row_with_wrong_options_are_refused(tables: None) -> None:
    with pytest.raises(ConfigError, match="^method 'ttrl' exists already; choose another name$"):
        register_method("ttrl", Method("mine", "me"))
    with pytest.raises(ConfigError, match=r"^method\.leaning: no such key"):
        register_method("mine", Method("mine", "me", options={"leaning": 1}))
    with pytest.raises(TypeError, match="takes a Method, found function"):
        register_method("mine", find)  # type: ignore[arg-type]
    assert "mine" not in METHODS
    with pytest.raises(
        ConfigError, match="method='mine': no such method; .*; if a plugin adds it, give --plugin FILE$"
    ):
        find("mine")


def test_every_option_of_a_methods_own_is_described_and_has_one_meaning() -> None:
    """Methods that share an option share its section, so that docs/config.md says one thing of it."""
    sections: dict[str, set[type[MethodConfig]]] = {}
    for row in METHODS.values():
        for key in own_options(row):
            assert row.section.model_fields[key].description, key
            sections.setdefault(key, set()).add(row.section)
    assert all(
        len({section.model_fields[key].description for section in found}) == 1 for key, found in sections.items()
    )
