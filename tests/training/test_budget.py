"""Memory: how many packed tokens fit, and what a shortage costs."""

from __future__ import annotations

import logging
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapting import MIXED, PLAIN, run, stopping_after
from small import small_config
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mm_spine import distributed
from mm_spine.commands.estimate import Sizes, activation_bytes
from mm_spine.config import ConfigError
from mm_spine.policy.model import Policy
from mm_spine.policy.reference import Reference
from mm_spine.policy.text import TextPolicy
from mm_spine.training import budget, update
from mm_spine.training.budget import MemoryReading, MemoryShortage, TokenBudget, probe, tokens_that_fit
from mm_spine.training.engine import Engine
from mm_spine.training.update import Updater

STAGES = [0, 1, 2, 3]


# How many tokens fit.


def test_the_budget_is_where_the_line_through_two_readings_meets_the_share() -> None:
    """2,000 bytes and 3 a token: 0.85 of 10,000 bytes leave room for 2,166 tokens."""
    readings = [MemoryReading(1000, 5000), MemoryReading(2000, 8000)]
    assert tokens_that_fit(readings, 10_000) == tokens_that_fit(readings[::-1], 10_000) == 2166
    assert tokens_that_fit(readings, 10_000, share=0.5) == 1000


def test_one_reading_asks_for_less_than_would_fit() -> None:
    assert tokens_that_fit([MemoryReading(1000, 5000)], 10_000) == 1700
    assert tokens_that_fit([MemoryReading(1000, 5000), MemoryReading(2000, 5000)], 10_000) == 3400


def test_what_grows_faster_than_the_tokens_has_nothing_fixed() -> None:
    """The line would start below zero, and promise more than fits."""
    assert tokens_that_fit([MemoryReading(100, 100), MemoryReading(200, 400)], 1000) == 283


def test_a_card_that_is_full_still_takes_one_group_at_a_time() -> None:
    assert tokens_that_fit([MemoryReading(1000, 5000)], 0) == 1


@pytest.mark.parametrize("available, tried", [(12_000, [1, 2]), (11_000, [1])])
def test_two_copies_are_tried_only_where_twice_the_first_fits(available: int, tried: list[int]) -> None:
    copies: list[int] = []

    def measure(count: int) -> int:
        copies.append(count)
        return 2000 + 3000 * count

    found = probe(measure, 1000, available)
    assert copies == tried
    assert found == (int(0.85 * 12_000 - 2000) // 3 if len(tried) == 2 else int(0.85 * 11_000) // 5)


def test_the_setting_is_a_number_or_auto() -> None:
    assert small_config({"engine": {"token_budget": "auto"}}).engine.token_budget == "auto"
    for wrong in (0, -5, True, "all", 1.5):
        with pytest.raises(ConfigError, match=r"engine\.token_budget=.*a number of tokens, 1 or more, or auto"):
            small_config({"engine": {"token_budget": wrong}})


def test_auto_on_a_cpu_is_the_usual_number() -> None:
    _, _, records, ended = run(PLAIN, {"engine": {"token_budget": "auto"}, "optim": {"steps": 1}})
    assert ended.token_budget == records[0].token_budget == budget.DEFAULT_TOKENS


# The probe, with a card's memory made up.


class Card:
    """A card with room for `available` bytes, on which a probe of n copies takes 500 + 1,000 n of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, available: int) -> None:
        self.copies: list[int] = []
        monkeypatch.setattr(budget, "can_probe", lambda device: True)
        monkeypatch.setattr(budget, "available_bytes", lambda device: available)
        monkeypatch.setattr(budget, "peak_bytes", self.peak)
        monkeypatch.setattr(Engine, "bytes_to_come", lambda engine: 0)

    def peak(self, work: Any, device: torch.device) -> int:
        work()
        self.copies.append(len(work.args[0]))
        return 500 + 1000 * self.copies[-1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_probe_finds_the_budget_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: int
) -> None:
    """Once for the run; its weights are to the bit those of a run whose budget was set to what the probe found."""
    card, engine = Card(monkeypatch, available=4000), {"zero_stage": stage}
    with caplog.at_level(logging.INFO, "mm_spine.training.budget"):
        policy, _, records, ended = run(MIXED, {"engine": {**engine, "token_budget": "auto"}})
    (message,) = caplog.messages
    largest = int(message.split()[-1])
    assert card.copies == [1, 2]
    assert ended.token_budget == records[0].token_budget == pytest.approx(2.9 * largest, abs=1)
    assert message.startswith(f"engine.token_budget=auto: {ended.token_budget} packed tokens")
    assert_equal(policy, run(MIXED, {"engine": {**engine, "token_budget": ended.token_budget}})[0])


def test_a_probe_waits_for_a_step_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, available=4000)
    skipping = {"engine": {"token_budget": "auto"}, "method": {"unanimous": "skip"}}
    _, _, records, ended = run(skipping, change=lambda r: replace(r, text="7"))
    assert card.copies == [] and ended.token_budget is None
    assert [record.token_budget for record in records] == [budget.DEFAULT_TOKENS] * 3


# Out of memory.


def assert_equal(found: Policy, expected: Policy) -> None:
    """The same trainable weights, to the bit."""
    weights = found.trainable()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.trainable().items())


def failing(monkeypatch: pytest.MonkeyPatch, step: int, micro: int, where: str = "forward", times: int = 1) -> None:
    """Run out of memory `times` times, in this micro-batch of this optimiser step: as its first layer runs forward,
    or when all but that layer has its gradient."""
    at = {"step": 0, "micro": -1, "left": times}
    layer_is_run, steps, accumulates = Engine.__init__, Engine.step, Updater._accumulate

    def run_out(*ignored: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. And so on")

    def spying(layer: Any, arguments: Any, output: Tensor) -> None:
        if not output.requires_grad:
            return
        at["micro"] += 1
        if (at["step"], at["micro"]) != (step, micro) or not at["left"]:
            return
        at["left"] -= 1
        if where == "forward":
            run_out()
        output.register_hook(run_out)

    def hooked(self: Engine, policy: Policy, *rest: Any) -> None:
        policy.text.language_model.layers[0].register_forward_hook(spying)
        layer_is_run(self, policy, *rest)

    def stepping(self: Engine, lr: float) -> Any:
        at["step"] += 1
        return steps(self, lr)

    def accumulating(self: Updater, *arguments: Any) -> Any:
        at["micro"] = -1
        return accumulates(self, *arguments)

    monkeypatch.setattr(Engine, "__init__", hooked)
    monkeypatch.setattr(Engine, "step", stepping)
    monkeypatch.setattr(Updater, "_accumulate", accumulating)


def narrowing(monkeypatch: pytest.MonkeyPatch, after: int, tokens: int) -> None:
    """Another budget, without a failure, from this many optimiser steps on."""
    starts, steps, done, budgets = TokenBudget.__init__, Engine.step, [], []

    def starting(self: TokenBudget, *arguments: Any) -> None:
        starts(self, *arguments)
        budgets.append(self)
        if not after:
            self.tokens = tokens

    def stepping(self: Engine, lr: float) -> Any:
        done.append(lr)
        if len(done) == after:
            budgets[0].tokens = tokens
        return steps(self, lr)

    monkeypatch.setattr(TokenBudget, "__init__", starting)
    monkeypatch.setattr(Engine, "step", stepping)


WIDE = {"engine": {"token_budget": 130}}
"""Five groups in two micro-batches."""


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step, micro", [(0, 1), (1, 0)])
def test_a_step_that_ran_out_of_memory_is_the_step_of_the_smaller_budget(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str, stage: int, step: int, micro: int
) -> None:
    """To the bit, also where an earlier optimiser step has left moments, and old log-probs of another partition."""
    layers = [MIXED, WIDE, {"engine": {"zero_stage": stage}, "optim": {"epochs": 2, "steps": 2}}]
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "mm_spine.training.budget"):
        failing(patch, step, micro, where)
        policy, _, records, ended = run(*layers)
    (message,) = caplog.messages
    half = ended.token_budget
    assert f"engine.token_budget={half}" in message and "130" in message
    assert half in (65, 32) and [record.token_budget for record in records] == [half, half]
    with monkeypatch.context() as patch:
        narrowing(patch, after=step, tokens=half)
        expected, _, _, same = run(*layers)
    assert same.token_budget == half
    assert_equal(policy, expected)


def test_the_budget_is_halved_until_the_batch_that_failed_is_split(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of a million would run the same batch again."""
    failing(monkeypatch, 0, 0, times=2)
    with caplog.at_level(logging.WARNING, "mm_spine.training.budget"):
        ended = run(MIXED, {"engine": {"token_budget": 1_000_000}})[3]
    first, second = [int(m.split("token_budget=")[1].split(",")[0]) for m in caplog.messages]
    assert first == 1_000_000 // 2 ** round(math.log2(1_000_000 / first)) and first < 400
    assert second == ended.token_budget == first // 2


def test_a_group_that_does_not_fit_alone_ends_the_run_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 0, 0)
    with pytest.raises(
        MemoryShortage, match=r"question 'q\d' with \d+ packed tokens does not fit .*CUDA out of memory"
    ) as e:
        run(MIXED, {"engine": {"token_budget": 1}})
    assert all(key in str(e.value) for key in ("max_new_tokens", "max_pixels", "checkpoint_activations"))


def test_a_group_that_does_not_fit_is_divided(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit the step of the budget that it is divided by."""
    alone = [MIXED, {"optim": {"steps": 1, "questions_per_step": 1}}]
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "mm_spine.training.budget"):
        failing(patch, 0, 0)
        policy, _, _, ended = run(*alone, {"engine": {"token_budget": 60}})
    assert len(caplog.messages) == 1 and ended.token_budget in (30, 15)
    assert_equal(policy, run(*alone, {"engine": {"token_budget": ended.token_budget}})[0])


def test_a_probe_goes_on_with_a_part_of_the_group_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds more than one response runs out of memory: the budget is 2.9 times what one response takes."""
    card, leaves, probed = Card(monkeypatch, available=4000), [], []

    def peak(work: Any, device: torch.device) -> int:
        leaves.append(sum(len(group.leaves) for group in work.args[0]))
        if len(work.args[0][0].leaves) > 1:
            run_out_of_memory()
        probed.append(work.args[0][0])
        return card.peak(work, device)

    monkeypatch.setattr(budget, "peak_bytes", peak)
    policy, _, _, ended = run(MIXED, {"engine": {"token_budget": "auto"}, "optim": {"steps": 1}})
    assert leaves[0] > 1 and leaves[-2:] == [1, 2] and card.copies == [1, 2]
    assert ended.token_budget == pytest.approx(2.9 * budget.packed_length(policy, probed[0]), abs=1)


def test_an_optimiser_step_without_memory_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "step", run_out_of_memory)
    with pytest.raises(MemoryShortage, match=r"^step 0: the optimiser's step does not fit .*CUDA out of memory") as e:
        run(PLAIN)
    keys = ("offload_while_sampling=true", "memory_share", "model.train=lora", "zero_stage=2", "--resume")
    assert all(key in str(e.value) for key in keys)


# Optimiser state and anchor on the host.


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_states_that_wait_on_the_host_change_nothing(
    monkeypatch: pytest.MonkeyPatch, stage: int, tmp_path: Path
) -> None:
    """To the bit, over two epochs, an anchor, and a checkpoint taken while they are there."""
    layers = [MIXED, {"engine": {"zero_stage": stage}, "optim": {"epochs": 2, "steps": 2}, "method": {"kl": "exact"}}]
    expected = run(*layers)[0]
    moves: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(update, "can_offload", lambda device: True)
        for owner in (Engine, Reference):
            for name in ("to_host", "to_card"):
                record_calls(patch, owner, name, moves)
        offloading = [*layers, {"engine": {"offload_while_sampling": True}}]
        assert_equal(run(*offloading)[0], expected)
        engine, anchor = ["Engine.to_card", "Reference.to_card"], ["Reference.to_host", "Reference.to_card"]
        host = ["Engine.to_host", "Reference.to_host"]
        # Of each step: back to the card, away for the first optimiser step, back, away for the second.
        step = [*engine, *anchor, "Reference.to_host", *host]
        assert moves == [*host, *step, *step]
        run(*offloading, checkpoints=tmp_path, should_stop=stopping_after(1))
        assert_equal(run(*offloading, checkpoints=tmp_path, resume=True)[0], expected)


def record_calls(patch: pytest.MonkeyPatch, owner: type, name: str, calls: list[str]) -> None:
    usual = getattr(owner, name)

    def recorded(self: Any) -> None:
        calls.append(f"{owner.__name__}.{name}")
        usual(self)

    patch.setattr(owner, name, recorded)


def test_states_wait_on_the_host_where_vllm_samples_beside_them() -> None:
    vllm = {"sampling": {"backend": "vllm"}}
    assert not small_config().offloads and small_config(vllm).offloads
    assert not small_config(vllm, {"engine": {"zero_stage": 3}}).offloads
    assert not small_config(vllm, {"engine": {"offload_while_sampling": False}}).offloads
    assert small_config({"engine": {"offload_while_sampling": True}}).offloads
    with pytest.raises(ConfigError, match=r"offload_while_sampling=true: with zero_stage=3 .*engine\.zero_stage=2"):
        small_config({"engine": {"offload_while_sampling": True, "zero_stage": 3}})


def test_a_probe_that_does_not_fit_ends_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, available=4000)
    monkeypatch.setattr(budget, "peak_bytes", run_out_of_memory)
    with pytest.raises(MemoryShortage, match="does not fit into memory"):
        run(MIXED, {"engine": {"token_budget": "auto"}})


def run_out_of_memory(*ignored: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def some_budget(tokens: int = 100) -> TokenBudget:
    """A budget whose engine has no gradients."""
    engine = SimpleNamespace(discard=lambda: None)
    return TokenBudget(tokens, SimpleNamespace(device=torch.device("cpu")), engine)  # type: ignore[arg-type]


def test_several_processes_stop_with_the_value_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(MemoryShortage, match=r"rank 0: CUDA out of memory; set engine\.token_budget=50"):
        some_budget().within(run_out_of_memory)


def test_a_failed_attempt_keeps_nothing_alive() -> None:
    """Its traceback would hold every activation while there is still no room for them."""
    refs: list[Any] = []

    def work() -> bool:
        activation = torch.zeros(3)
        if refs:
            return refs[0]() is None
        refs.append(weakref.ref(activation))
        run_out_of_memory()
        return False

    assert some_budget().within(work)


def test_scoring_halves_until_nothing_is_left_to_halve(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MemoryShortage, match="a single response does not fit"):
        some_budget(8).within(run_out_of_memory)
    assert [re.findall(r"\d+", message) for message in caplog.messages] == [["4", "8"], ["2", "4"], ["1", "2"]]


def test_other_errors_pass_through() -> None:
    def work() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        some_budget().within(work)


def test_a_resumed_run_goes_on_with_the_halved_budget(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Its configuration is the same, so nothing is warned of, and the weights are those of the run without a break."""
    with monkeypatch.context() as patch:
        failing(patch, 0, 0)
        whole = run(MIXED, WIDE)[0]
    with monkeypatch.context() as patch:
        failing(patch, 0, 0)
        run(MIXED, WIDE, checkpoints=tmp_path, should_stop=stopping_after(1))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mm_spine"):
        resumed, _, records, ended = run(MIXED, WIDE, checkpoints=tmp_path, resume=True)
    assert not caplog.messages and ended.token_budget == records[0].token_budget == 65
    assert_equal(resumed, whole)


def test_a_resumed_run_does_not_probe_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card, auto = Card(monkeypatch, available=4000), {"engine": {"token_budget": "auto"}}
    found = run(MIXED, auto, checkpoints=tmp_path, should_stop=stopping_after(1))[3].token_budget
    monkeypatch.setattr(budget, "available_bytes", lambda device: 40_000)
    assert run(MIXED, auto, checkpoints=tmp_path, resume=True)[3].token_budget == found
    assert card.copies == [1, 2]


def test_out_of_memory_with_recomputed_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure falls into the recomputation, which must not leave a layer half-way either."""
    layers = [MIXED, WIDE, {"engine": {"checkpoint_activations": True}, "optim": {"steps": 2}}]
    with monkeypatch.context() as patch:
        failing(patch, 0, 1, "backward")
        policy, _, _, ended = run(*layers)
    assert_equal(policy, run(*layers, {"engine": {"token_budget": ended.token_budget}})[0])


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_activations_of_the_dry_run_are_those_that_are_kept(
    monkeypatch: pytest.MonkeyPatch, recomputed: bool
) -> None:
    """Within a fifth, on the smallest of models, where the masks of attention count most."""
    kept: dict[int, int] = {}
    tokens: list[int] = []
    trunk, backward = TextPolicy.trunk, Updater._backward

    def keeping(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def watched(self: TextPolicy, batch: Any) -> Any:
        with saved_tensors_hooks(keeping, lambda tensor: tensor):
            hidden = trunk(self, batch)
        for weight in self.parameters():
            kept.pop(weight.untyped_storage().data_ptr(), None)
        return hidden

    def counted(self: Updater, rows: Any, *rest: Any, **options: Any) -> Any:
        tokens.append(sum(budget.packed_length(self.policy, row) for row in rows))
        return backward(self, rows, *rest, **options)

    monkeypatch.setattr(TextPolicy, "trunk", watched)
    monkeypatch.setattr(Updater, "_backward", counted)
    alone = {"optim": {"steps": 1, "questions_per_step": 1}, "engine": {"checkpoint_activations": recomputed}}
    text = run(MIXED, alone)[0].text.language_model.config
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    width, layers = text.hidden_size, text.num_hidden_layers
    sizes = Sizes(layers, width, width, heads, text.intermediate_size, text.vocab_size)
    # While it runs forward no layer is recomputed yet: the difference of one layer and of none.
    one, two = (activation_bytes(sizes._replace(layers=n), 4, False) for n in (1, 2))
    expected = activation_bytes(sizes, 4, recomputed) - (two - one if recomputed else 0)
    assert sum(kept.values()) / tokens[0] == pytest.approx(expected, rel=0.2)
