"""The loop by itself: what it cannot know, what moves the weights, what it refuses, and which draw comes when."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapting import PLAIN, QUESTIONS, counting_forwards, moved, run, stopping_after, with_text
from small import digit_policy, small_config

from mm_spine import adapt as adapt_function
from mm_spine import distributed
from mm_spine.adapt import Adapted, Hooks, StepRecord, adapt
from mm_spine.config import ConfigError
from mm_spine.methods.method import Method
from mm_spine.methods.table import METHODS, configure
from mm_spine.policy.errors import FrozenError
from mm_spine.policy.model import Policy
from mm_spine.training.engine import Engine
from mm_spine.training.schedule import batch_of, further_questions
from mm_spine.types import AnswerSpec, Group, Question, Rollout

adapt_module = importlib.import_module("mm_spine.adapt")  # `mm_spine.adapt` is the function


def test_no_parameter_could_carry_a_label() -> None:
    """The whole signature and every field of what it takes: a new one must be looked at here."""
    blind = ["questions", "policy", "sampler", "method", "config", "hooks"]
    assert list(inspect.signature(adapt).parameters) == blind
    assert list(inspect.signature(adapt_function).parameters) == [*blind, "answers", "progress"]
    assert set(Question.__dataclass_fields__) == {"id", "images", "prompt", "spec", "benchmark"}
    assert set(AnswerSpec.__dataclass_fields__) == {
        "kind", "choices", "precision", "unit", "value_type", "ordered", "question", "iou",
    }  # fmt: skip
    assert set(Hooks.__dataclass_fields__) == {"on_step", "on_part", "should_stop", "checkpoints", "resume"}


def test_the_loop_does_not_import_the_code_that_sees_labels() -> None:
    """Also not through others, nor inside a function."""
    grimp = pytest.importorskip("grimp", reason="grimp comes with the dev extra")
    graph = grimp.build_graph("mm_spine", cache_dir=None)
    assert graph.find_shortest_chain("mm_spine.runs.run", "mm_spine.evaluation") is not None
    assert graph.find_shortest_chain("mm_spine.adapt", "mm_spine.evaluation") is None


def test_the_loss_is_the_sum_of_its_logged_terms_and_falls_with_its_own_weights() -> None:
    """After the first step the KL anchor, the band and the policy term are all there."""
    policy, start, records, ended = run({"engine": {"measure_update": True}})
    assert (ended.steps, ended.stopped_by) == (3, "steps")
    assert moved(policy, start)
    first, *later = [record.report for record in records]
    assert first.loss_kl == pytest.approx(0.0, abs=1e-9)
    for report in (first, *later):
        assert report.loss == pytest.approx(report.loss_policy + report.loss_band + report.loss_kl, rel=1e-12)
        assert report.loss_band > 0 and report.grad_norm > 0 and (report.update_norm or 0) > 0
        assert report.parity_max < 1e-4
    assert all(report.loss_kl > 1e-6 for report in later)


def test_without_weights_on_band_and_anchor_only_the_policy_term_is_left() -> None:
    _, _, records, _ = run({"method": {"band_low_weight": 0, "band_high_weight": 0, "kl_weight": 0}})
    for record in records:
        assert record.report.loss_band == record.report.loss_kl == 0.0
        assert record.report.loss == record.report.loss_policy != 0.0


def test_the_update_norm_is_the_distance_the_weights_went() -> None:
    policy, start, records, _ = run(PLAIN, {"optim": {"steps": 1}, "engine": {"measure_update": True}})
    squares = [float(((policy.trainable()[name] - w).double() ** 2).sum()) for name, w in start.items()]
    assert records[0].report.update_norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-6)


def test_an_unanimous_group_can_be_skipped() -> None:
    policy, start, records, _ = run({"method": {"unanimous": "skip"}}, change=with_text("7"))
    assert not moved(policy, start)
    for record in records:
        report = record.report
        assert report.unanimous == report.majority_share == 1.0
        assert report.tokens_trained == 0 and report.loss == report.grad_norm == 0.0


def test_an_unanimous_group_is_moved_by_band_and_anchor_alone() -> None:
    policy, start, records, _ = run(change=with_text("7"))
    assert moved(policy, start)
    report = records[0].report
    assert report.unanimous == 1.0
    assert report.loss_policy == 0.0 and report.loss_band > 0.0 and report.grad_norm > 0.0


def test_an_unanimous_group_cannot_move_a_method_without_regulariser() -> None:
    policy, start, records, _ = run(PLAIN, {"method": {"unanimous": "regularise"}}, change=with_text("7"))
    assert not moved(policy, start)
    assert records[0].report.tokens_trained == 0 and records[0].report.grad_norm == 0.0


@pytest.mark.parametrize(
    "options, forwards",
    [
        ({"unanimous": "skip"}, 0),
        ({"unanimous": "regularise"}, 1),
        ({"unanimous": "regularise", "kl": "none"}, 1),
        ({"unanimous": "regularise", "band_low_weight": 0, "band_high_weight": 0}, 1),
        ({"unanimous": "regularise", "kl": "none", "band_low_weight": 0, "band_high_weight": 0}, 0),
        ({"unanimous": "regularise", "kl_weight": 0, "band_low_weight": 0, "band_high_weight": 0}, 0),
    ],
)
def test_an_unanimous_group_is_run_only_for_a_term_that_has_a_weight(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], forwards: int
) -> None:
    """Counted where the trunk runs with gradient; four groups fit into one micro-batch."""
    count = counting_forwards(monkeypatch)
    run({"method": options, "optim": {"steps": 1}}, change=with_text("7"))
    assert len(count) == forwards


def test_nothing_parsed_is_no_update() -> None:
    policy, start, records, _ = run(PLAIN, change=with_text("no number here"))
    assert not moved(policy, start)
    for record in records:
        report = record.report
        assert report.unparsed == 1.0 and report.majority_share == report.margin == report.unanimous == 0.0
        assert all(group.vote.answer is None and not group.rewards.any() for group in record.groups)


def finished(reason: str, text: str) -> Callable[[Rollout], Rollout]:
    """Every second response ends for `reason` and reads as `text`, the others as an answer of their own index."""

    def change(rollout: Rollout) -> Rollout:
        if rollout.index % 2:
            return replace(rollout, text=text, finish_reason=reason)
        return replace(rollout, text=f"\\boxed{{{7 + rollout.index // 4}}}", finish_reason="stop")

    return change


def test_responses_that_were_cut_off_do_not_elect_and_are_logged() -> None:
    """Half of 8 responses are cut off within the same box; of the others two say 7 and two say 8."""
    cut = {"sampling": {"votes": {"max": 8, "cut_off": "abstain"}, "train_rollouts": 8}, "optim": {"steps": 1}}
    change = finished("length", "\\boxed{9 9")
    (record,) = run(PLAIN, cut, change=change)[2]
    assert {group.vote.answer for group in record.groups} <= {"7", "8"}
    assert (record.report.cut_off, record.report.ties, record.report.margin) == (0.5, 1.0, 0.0)
    assert all(group.rewards[1::2].sum() == 0 and group.advantages[1::2].max() < 0 for group in record.groups)
    (record,) = run(PLAIN, cut, {"sampling": {"votes": {"cut_off": "mask"}}}, change=change)[2]
    assert all(not group.advantages[1::2].any() and group.advantages.any() for group in record.groups)
    assert all(not t.any_T.any() for chosen in record.tokens for t in chosen[1::2])
    count = {"sampling": {"votes": {"cut_off": "count"}}}
    (record,) = run(PLAIN, cut, count, change=finished("length", "it is 9 so far"))[2]
    assert {group.vote.answer for group in record.groups} == {"9"} and record.report.cut_off == 0.5


def test_a_tied_question_can_leave_the_policy_term() -> None:
    change = finished("stop", "\\boxed{8}")
    layers = {"sampling": {"votes": {"max": 2, "ties": "drop"}, "train_rollouts": 2}, "optim": {"steps": 1}}
    policy, start, (record,), _ = run(PLAIN, layers, change=change)
    assert record.report.ties == 1.0 and not moved(policy, start)
    policy, start, (record,), _ = run(layers, change=change)
    assert moved(policy, start) and record.report.loss_policy == 0.0 and record.report.loss_band > 0.0


def test_nothing_is_scored_for_a_method_that_reads_no_entropies(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sampler that gives none, as vLLM: the same weights as with one that gives them."""
    calls: list[int] = []
    usual = adapt_module.score_on_all_ranks
    monkeypatch.setattr(adapt_module, "score_on_all_ranks", lambda *args: calls.append(1) or usual(*args))
    silent = run(PLAIN, change=lambda r: replace(r, entropy=None))
    assert not calls
    usual_policy = run(PLAIN)[0]
    assert all(torch.equal(w, usual_policy.trainable()[name]) for name, w in silent[0].trainable().items())
    for record in silent[2]:
        assert 0 < record.report.parity_max < 1e-4
        assert record.report.entropy_mean is not None and record.report.entropy_mean > 0
        assert record.report.entropy_mean == record.report.entropy_forks
        assert all(rollout.entropy is None for group in record.groups for rollout in group.rollouts)
    run({"optim": {"steps": 1}}, change=lambda r: replace(r, entropy=None))
    assert len(calls) == 1


def test_a_step_without_update_scores_one_question_for_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    usual = adapt_module.score_on_all_ranks
    counted = lambda policy, groups, *rest: scored.append(len(groups)) or usual(policy, groups, *rest)  # noqa: E731
    monkeypatch.setattr(adapt_module, "score_on_all_ranks", counted)
    records = run(PLAIN, change=lambda r: replace(r, text="\\boxed{7}", entropy=None))[2]
    assert scored == [1, 1, 1]
    assert all(0 < record.report.parity_max < 1e-4 and record.report.entropy_mean is None for record in records)


@pytest.mark.parametrize(
    "method", sorted(n for n, row in METHODS.items() if row.trains and row.label_free and not row.check)
)
@pytest.mark.parametrize("scope", ["response", "batch"])
def test_responses_of_no_tokens_are_no_update_whatever_they_say(method: str, scope: str) -> None:
    def emptied(rollout: Rollout) -> Rollout:
        nothing = np.zeros(0, np.float32)
        return replace(rollout, token_ids=(), logp=nothing, entropy=nothing)

    layers = {"method": {"name": method, "mask_scope": scope}, "optim": {"steps": 1}}
    policy, start, (record,), _ = run(layers, change=emptied)
    assert not moved(policy, start)
    report = record.report
    nested = {"loss_terms": None, "memory": None}
    figures = {**vars(report), **(report.loss_terms or {}), **(report.memory or {}), **nested}
    assert all(math.isfinite(value) for value in figures.values() if value is not None)


def test_a_bad_image_and_an_empty_question_cost_only_themselves() -> None:
    bad = [replace(QUESTIONS[0], id="torn", images=(b"no image",)), replace(QUESTIONS[1], id="empty", prompt=" ")]
    policy, start, records, _ = run(PLAIN, {"optim": {"questions_per_step": 7}}, questions=[*QUESTIONS, *bad])
    assert set(policy.skipped) == {"torn", "empty"}
    assert "cannot read image" in policy.skipped["torn"] and "empty" in policy.skipped["empty"]
    assert moved(policy, start)
    for record in records:
        assert {group.question.id for group in record.groups} == {question.id for question in QUESTIONS}


def test_a_step_of_bad_questions_alone_is_an_empty_step() -> None:
    bad = [replace(q, images=(b"no image",)) if q.id != "q0" else q for q in QUESTIONS]
    policy, _, records, ended = run({"optim": {"questions_per_step": 1, "steps": 5}}, questions=bad)
    assert ended.steps == 5 and set(policy.skipped) == {question.id for question in QUESTIONS[1:]}
    assert sorted(len(record.groups) for record in records) == [0, 0, 0, 0, 1]
    assert all(record.report.tokens_sampled == 0 for record in records if not record.groups)


def test_questions_of_which_none_can_be_asked_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"none of the 5 questions can be asked; the first, q0: cannot read image"):
        run(questions=[replace(q, images=(b"no image",)) for q in QUESTIONS])


def options_used(monkeypatch: pytest.MonkeyPatch, **given: Any) -> Any:
    """The configuration that the loop of `adapt(..., **given)` is made with; no step is taken."""
    used: list[Any] = []

    class Seen:
        def __init__(self, *arguments: Any) -> None:
            used.append(arguments[4])
            raise InterruptedError

    # `mm_spine.adapt` is the function; the module is where its definition stands.
    monkeypatch.setattr(sys.modules[adapt.__module__], "_Loop", Seen)
    with pytest.raises(InterruptedError):
        adapt(QUESTIONS, digit_policy(), **given)
    return used[0]


def test_a_method_brings_its_own_options_under_those_that_the_caller_set(monkeypatch: pytest.MonkeyPatch) -> None:
    used = options_used(monkeypatch, method="ttrl", config=configure({"optim": {"steps": 3}}))
    assert (used.method.name, used.method.kl, used.method.kl_weight) == ("ttrl", "k3", 0.001)
    assert used.optim.steps == 3
    mine = configure({"method": {"kl": "exact"}})
    assert options_used(monkeypatch, method="ttrl", config=mine).method.kl == "exact", "also where spine has the same"
    assert options_used(monkeypatch, method="ettrl", config=configure()).sampling.tree is not None
    assert options_used(monkeypatch, config=mine).method == mine.method


def test_the_options_of_a_row_passed_in_count(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Method("mine", "-", options={"kl": "k3", "kl_weight": 0.5})
    assert options_used(monkeypatch, method=row).method.kl_weight == 0.5
    used = options_used(monkeypatch, method=row, config=configure({"method": {"kl_weight": 0.25}}))
    assert (used.method.kl, used.method.kl_weight) == ("k3", 0.25)
    with pytest.raises(ConfigError, match=r"method\.lk: no such key; did you mean 'kl'"):
        adapt(QUESTIONS, digit_policy(), method=Method("odd", "-", options={"lk": "k3"}))


def test_a_tower_parameter_unfrozen_behind_the_back_is_refused() -> None:
    policy = digit_policy()
    name, parameter = list(policy.tower.named_parameters())[7]
    parameter.requires_grad_(True)
    with pytest.raises(FrozenError, match=f"visual.{name} has requires_grad set"):
        adapt(QUESTIONS, policy, config=small_config(PLAIN))


def test_a_tower_parameter_smuggled_into_the_optimizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose requires_grad is off when the check of the flags passes."""
    policy = digit_policy()
    policy.text.smuggled = next(policy.tower.parameters())
    policy.text.smuggled.requires_grad_(True)
    monkeypatch.setattr(Policy, "assert_frozen", lambda self: None)
    with pytest.raises(FrozenError, match="is in the optimizer"):
        adapt(QUESTIONS, policy, config=small_config(PLAIN))


def test_the_tower_and_the_trainable_count_stay_as_they_were() -> None:
    policy = digit_policy()
    checksum, counts = policy.tower_checksum(), policy.count_parameters()
    frozen = sum(p.numel() for p in policy.tower.parameters())
    assert counts[1] == frozen and counts[0] == sum(p.numel() for p in policy.trainable().values())
    adapt(QUESTIONS, policy, config=small_config(PLAIN, {"optim": {"weight_decay": 0.1}}))
    assert policy.tower_checksum() == checksum and policy.count_parameters() == counts


def test_an_anchored_band_keeps_the_bounds_of_the_starting_model() -> None:
    anchored = run({"method": {"band_anchor": "initial"}, "optim": {"lr": 0.003}})[2]
    running = run({"optim": {"lr": 0.003}})[2]
    assert len({(record.report.band_low, record.report.band_high) for record in anchored}) == 1
    assert len({(record.report.band_low, record.report.band_high) for record in running}) == 3


def test_an_anchored_band_is_that_of_the_first_batch_that_can_be_asked() -> None:
    """One question a step, the first one's image no image."""
    config = small_config({"method": {"band_anchor": "initial"}, "optim": {"questions_per_step": 1, "steps": 2}})
    order = [batch_of(QUESTIONS[:2], config, step)[0].id for step in range(2)]
    bad = [replace(q, images=(b"no image",)) if q.id in order[:1] else q for q in QUESTIONS[:2]]
    seen: list[StepRecord] = []
    assert adapt(bad, digit_policy(), config=config, hooks=Hooks(on_step=seen.append)).steps == 2
    assert [len(record.groups) for record in seen] == [0, 1]
    assert [record.report.band_low is None for record in seen] == [True, False]


def test_a_method_without_a_band_reports_none() -> None:
    report = run(PLAIN, {"optim": {"steps": 1}})[2][0].report
    assert report.band_low is report.band_high is report.share_below is report.share_above is None


def test_an_image_is_encoded_once_and_the_step_says_what_that_saved() -> None:
    """Each question has an image of its own: all its rollouts but one would have encoded it again."""
    policy, _, records, _ = run(PLAIN)
    assert policy.images.misses == len(QUESTIONS)
    for record in records:
        assert record.report.cache_hits == sum(len(group.rollouts) - 1 for group in record.groups) > 0


def test_groups_stand_in_the_order_of_the_batch_whatever_order_ranks_return_them_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where one rank has a question that cannot be asked, and its others move up among the other ranks'."""
    monkeypatch.setattr(distributed, "gather", lambda share: list(share)[::-1])
    config = small_config(PLAIN)
    for step, record in enumerate(run(PLAIN)[2]):
        assert [group.question for group in record.groups] == batch_of(QUESTIONS, config, step)


def test_groups_from_other_ranks_bring_no_image_and_no_second_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a collective returns are copies: of the questions, each is read once all the same."""
    read: list[str] = []
    usual = Policy._read

    def copied(share: Sequence[Any]) -> list[Any]:
        assert not any(isinstance(item, Group) and item.question.images for item in share)
        return copy.deepcopy(list(share))

    monkeypatch.setattr(distributed, "gather", copied)
    monkeypatch.setattr(Policy, "_read", lambda self, question: read.append(question.id) or usual(self, question))
    _, _, records, _ = run(PLAIN, change=lambda r: replace(r, entropy=None))
    assert sorted(read) == sorted({question.id for question in QUESTIONS})
    assert all(group.question.images for record in records for group in record.groups)


def test_the_learning_rate_reaches_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = Engine.step

    def spying(self: Engine, lr: float) -> Any:
        result = step(self, lr)
        seen.extend(group["lr"] for group in self._adamw.param_groups)
        return result

    monkeypatch.setattr(Engine, "step", spying)
    records = run(PLAIN, {"optim": {"lr": 0.0004}})[2]
    assert seen == [record.report.lr for record in records] == pytest.approx([0.0004, 0.0008 / 3, 0.0004 / 3])


def test_questions_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match="'q0' occurs twice"):
        adapt([QUESTIONS[0], QUESTIONS[0]], digit_policy(), config=small_config())
    with pytest.raises(ConfigError, match="no questions"):
        adapt([], digit_policy(), config=small_config())


def test_votes_are_over_all_rollouts_and_training_over_the_first() -> None:
    _, _, records, _ = run(PLAIN, {"sampling": {"votes": 6, "train_rollouts": 3}, "optim": {"steps": 1}})
    for group in records[0].groups:
        assert [rollout.index for rollout in group.rollouts] == [0, 1, 2]
        assert len(group.rewards) == len(group.advantages) == 3
        assert group.vote.n_parsed <= 6 and sum(group.vote.counts.values()) == group.vote.n_parsed
    sampled = records[0].report.tokens_sampled
    assert sampled > sum(len(r.token_ids) for group in records[0].groups for r in group.rollouts)


def test_a_stop_ends_the_step_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    _, _, records, ended = run(PLAIN, checkpoints=tmp_path, should_stop=stopping_after(2))
    assert ended == Adapted(2, "SIGTERM", 8192) and len(records) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


def test_a_step_is_told_after_its_weights_are_there() -> None:
    """on_step sees the step's own record, in order, once."""
    seen: list[StepRecord] = run(PLAIN)[2]
    assert [record.report.step for record in seen] == [0, 1, 2]
    for record in seen:
        assert set(record.seconds) == {"sample", "update"}
        assert [len(masks) for masks in record.tokens] == [len(group.rollouts) for group in record.groups]


def test_a_run_leaves_no_rank_behind_for_processes_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other libraries leave theirs in the process of the tests.
    launched = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in launched:
        monkeypatch.delenv(name, raising=False)
    engine = Engine(digit_policy(), small_config().optim, small_config().engine)
    engine.close()
    assert not set(launched) & set(os.environ)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_moves_the_weights_as_fp32_does_under_every_zero_stage(stage: int) -> None:
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        policy = digit_policy()
        policy.model.to(dtype)
        start = {name: weight.float() for name, weight in policy.weights().items()}
        layers = {"engine": {"zero_stage": stage}, "optim": {"steps": 2, "lr": 3e-3, "schedule": "constant"}}
        adapt(QUESTIONS, policy, config=small_config(PLAIN, layers))
        moved[dtype] = math.sqrt(sum(float(((w.float() - start[n]) ** 2).sum()) for n, w in policy.weights().items()))
    assert moved[torch.bfloat16] == pytest.approx(moved[torch.float32], rel=0.05)


def test_a_prompt_that_does_not_fit_the_context_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    long = replace(QUESTIONS[0], id="long", prompt="Which digit? " * 200)
    with caplog.at_level("WARNING"):
        policy, start, records, _ = run(PLAIN, {"optim": {"questions_per_step": 6}}, questions=[*QUESTIONS, long])
    assert list(policy.skipped) == ["long"]
    assert re.search(
        r"long: its prompt of \d+ tokens and 6 new ones do not fit in the model's context of 512", caplog.text
    )
    assert moved(policy, start)
    assert all(len(record.groups) == len(QUESTIONS) for record in records)


def test_a_prompt_fits_up_to_the_last_token_of_the_context() -> None:
    policy, question = digit_policy(), QUESTIONS[0]
    room = policy.context - len(policy.prompt(question).ids_L)
    assert policy.can_ask(question, room) and not policy.can_ask(question, room + 1)


# --- only questions whose vote share is within bounds -----------------------------------------------------------------


def kept_run(keep: Sequence[float], refill: int, **more: Any) -> list[StepRecord]:
    """Two questions a step; the answers of the sampler are set so that shares differ between questions."""
    votes = {"sampling": {"votes": {"max": 4, "keep": list(keep), "refill": refill}, "train_rollouts": 4}}
    return run(votes, {"optim": {"questions_per_step": 2, **more}}, change=with_shares)[2]


def with_shares(rollout: Rollout) -> Rollout:
    """Question qK: the first K % 4 + 1 of its four rollouts answer 7, each other one something else."""
    agree = int(rollout.question_id.removeprefix("q")) % 4 + 1
    return replace(rollout, text="7" if rollout.index < agree else str(10 + rollout.index))


def share_of(question: Question) -> float:
    return (int(question.id.removeprefix("q")) % 4 + 1) / 4


def test_questions_outside_the_bounds_are_replaced_until_enough_are_within() -> None:
    config = small_config({"optim": {"questions_per_step": 2}})
    for step, record in enumerate(kept_run((0.5, 0.75), refill=9)):
        batch = batch_of(QUESTIONS, config, step)
        wanted = [
            q for q in (*batch, *further_questions(QUESTIONS, batch, config.seed, step)) if 0.5 <= share_of(q) < 1
        ]
        assert [group.question.id for group in record.groups] == [q.id for q in wanted[:2]]
        assert record.report.questions_kept == 2 <= (record.report.questions_sampled or 0)
        assert record.report.rollouts_sampled == 4 * (record.report.questions_sampled or 0)
        assert record.report.row()["questions_kept"] == 2


def test_a_step_samples_at_most_refill_times_its_questions_and_may_train_on_none() -> None:
    for refill in (1, 2):
        for record in kept_run((0.3, 0.4), refill=refill):
            report = record.report
            assert (report.questions_kept, report.questions_sampled) == (0, min(2 * refill, len(QUESTIONS)))
            assert list(record.groups) == [] and report.tokens_trained == 0 and report.loss == report.grad_norm == 0
            assert report.parity_max < 1e-4 and report.majority_share > 0


def test_bounds_that_hold_every_share_change_nothing_but_the_counts() -> None:
    plain = run({"optim": {"questions_per_step": 2}})[2]
    kept = run({"optim": {"questions_per_step": 2}, "sampling": {"votes": {"keep": [0, 1]}}})[2]
    for one, other in zip(plain, kept, strict=True):
        counts = {"questions_sampled": 2, "questions_kept": 2}
        assert other.report.row() == one.report.row() | counts
        assert not counts.keys() & one.report.row().keys()


def test_bounds_in_the_wrong_order_are_named() -> None:
    with pytest.raises(ConfigError, match=r"keep=\[0.9, 0.2\]: the first bound is above the second; swap them"):
        configure({"sampling": {"votes": {"keep": [0.9, 0.2]}}})
