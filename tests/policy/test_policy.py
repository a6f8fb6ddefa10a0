"""The packed forward, the KL anchor, freezing, LoRA and model folders, against plain transformers in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from exactness import InDouble, assert_exact, assert_exact_gradients, double_of
from plain import (
    LORA,
    OPTIONS,
    assert_gradients_equal,
    case_questions,
    gradients_of,
    make_step,
    perturb,
    plain_name,
    responses,
)
from tiny import (
    TEMPERATURE,
    entropy,
    inputs,
    plain_log_probs,
    tiny_model,
    tiny_policy,
    tiny_processor,
    tiny_questions,
)
from torch import Tensor

from mm_spine.config import EngineConfig, ModelConfig, OptimConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import FrozenError
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.training.batch import collate, trained_groups
from mm_spine.types import Question

Mask = Callable[[int], list[int]]
"""(response length) -> the positions that are selected."""

MASKS: dict[str, Mask] = {
    "all": lambda length: list(range(length)),
    "first": lambda length: [0],
    "last": lambda length: [length - 1],
    "few": lambda length: list(range(1, length, 3)),
}


class Case(NamedTuple):
    """What is asked: images of each question, lengths of its responses, which tokens are selected."""

    images: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    mask: str = "all"


CASES = {
    "one image": Case((1,), ((4, 9, 1),)),
    "three images": Case((3,), ((5, 2),)),
    "text only": Case((0,), ((3, 6),)),
    "padded together": Case((1, 3, 0, 1), ((1, 8), (5, 5, 2), (7,), (1,))),
    "few": Case((1, 3), ((9, 4), (6,)), "few"),
    "last": Case((3, 1), ((2, 5), (8,)), "last"),
    "first": Case((1, 0), ((1, 5), (6, 2)), "first"),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_packed_forward_is_the_plain_forward(case: Case, tied: bool) -> None:
    policy, plain = tiny_policy(3, tied=tied), tiny_model(3, tied)
    questions = case_questions(case.images)
    leaves = [responses(lengths, 7 + i) for i, lengths in enumerate(case.lengths)]
    selected = [[mask_of(len(t), case.mask) for t in row] for row in leaves]
    batch = pack(
        [
            Branches(policy.prompt(q), [torch.tensor(t) for t in row], masks)
            for q, row, masks in zip(questions, leaves, selected, strict=True)
        ]
    )
    stats, kl_NT, _ = policy.text(batch, Distribution(TEMPERATURE, policy.banned))
    weights = torch.randn(2, *stats.logp_NT.shape, generator=torch.Generator().manual_seed(5))
    flat = [
        (q, t, m) for q, row, ms in zip(questions, leaves, selected, strict=True) for t, m in zip(row, ms, strict=True)
    ]

    def backward(model: Any) -> list[Tensor]:
        values, loss = [], torch.zeros(())
        for n, (question, tokens, mask) in enumerate(flat):
            log_probs, there = plain_log_probs(model, question, tokens), mask.nonzero()[:, 0]
            values += [log_probs.gather(-1, torch.tensor(tokens)[:, None])[there, 0], entropy(log_probs)[there]]
            loss = loss + (weights[0, n, there] * values[-2] + weights[1, n, there] * values[-1]).sum()
        loss.backward()
        return values

    for n, (_, _, mask) in enumerate(flat):
        padded = torch.nn.functional.pad(mask, (0, stats.logp_NT.shape[1] - len(mask)))
        assert torch.equal(stats.selected_NT[n], padded)
        assert not stats.logp_NT[n, ~padded].any() and not stats.entropy_NT[n, ~padded].any()
    assert not kl_NT.any()
    its, exact = backward(plain), double_of(plain)
    with InDouble():
        double = backward(exact)
    places = [mask.nonzero()[:, 0] for _, _, mask in flat]
    assert_exact(
        [x[n, there] for n, there in enumerate(places) for x in (stats.logp_NT, stats.entropy_NT)], its, double
    )
    packed_loss = (weights[0] * stats.logp_NT + weights[1] * stats.entropy_NT).sum()
    gradients = gradients_of(policy, packed_loss)
    own, wanted = (dict(model.named_parameters()) for model in (plain, exact))
    assert {plain_name(name) for name in gradients} == {n for n, p in own.items() if "visual" not in n}
    names = {name: plain_name(name) for name in gradients}
    assert_exact_gradients((n, gradients[n], own[known].grad, wanted[known].grad) for n, known in names.items())


def mask_of(length: int, name: str) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[MASKS[name](length)] = True
    return mask


def test_packed_row_holds_the_prompt_once_and_no_last_tokens() -> None:
    policy = tiny_policy()
    prompt = policy.prompt(tiny_questions(1)[0])
    leaves = [torch.tensor(t) for t in responses((4, 1, 6), 0)]
    batch = pack([Branches(prompt, leaves, [torch.ones(len(t), dtype=torch.bool) for t in leaves])])
    assert batch.ids_1P.shape == (1, len(prompt.ids_L) + 3 + 0 + 5)
    assert batch.shape_NT == (3, 6)


def test_lora_gradients_are_those_of_the_plain_forward() -> None:
    policy, plain = tiny_policy(2, LORA), tiny_policy(2, LORA)
    for each in (policy, plain):
        perturb(each, 0.1, seed=4)
    plain.model.model.language_model.config._attn_implementation = "sdpa"
    (question,) = case_questions([1])
    leaves = responses((5, 3), 1)
    masks = [torch.ones(len(t), dtype=torch.bool) for t in leaves]
    batch = pack([Branches(policy.prompt(question), [torch.tensor(t) for t in leaves], masks)])
    stats = policy.text(batch, Distribution(TEMPERATURE, policy.banned)).stats
    loss = sum(plain_log_probs(plain.model, question, t).gather(-1, torch.tensor(t)[:, None]).sum() for t in leaves)
    loss.backward()
    assert_gradients_equal(policy, gradients_of(policy, stats.logp_NT.sum()), plain.model)


def test_the_adapted_model_itself_stays_a_causal_transformers_model() -> None:
    """Whoever calls `policy.model` or its `generate` gets transformers' own results, whatever attention we chose."""
    policy, plain = tiny_policy(1), tiny_model(1)
    question = tiny_questions(1, 3)[0]
    made = inputs(question, responses((6,), 0)[0])
    torch.testing.assert_close(policy.model(**made).logits, plain(**made).logits, rtol=1e-4, atol=1e-4)
    prompt = inputs(question, ())
    ours, theirs = (m.generate(**prompt, do_sample=False, max_new_tokens=8) for m in (policy.model, plain))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", [None, LORA], ids=["full", "lora"])
def test_parameter_counts_say_what_may_train(config: ModelConfig | None) -> None:
    policy = tiny_policy(config=config)
    trainable, frozen = policy.count_parameters()
    assert trainable == sum(p.numel() for p in policy.trainable().values()) > 0
    tower = sum(p.numel() for p in policy.tower.parameters())
    base = sum(p.numel() for p in tiny_model().parameters())
    assert (trainable, frozen) == (base - tower, tower) if config is None else frozen == base


def test_tower_and_merger_are_frozen_and_absent_from_what_trains() -> None:
    policy = tiny_policy()
    tower = {id(p) for p in policy.tower.parameters()}
    assert any("merger" in name for name, _ in policy.tower.named_parameters())
    assert not any(p.requires_grad for p in policy.tower.parameters())
    assert not tower & {id(p) for p in policy.text.parameters()}
    policy.assert_frozen()


@pytest.mark.parametrize("part", ["merger.mlp.0.weight", "blocks.1.attn.qkv.bias"])
def test_unfreezing_behind_the_back_is_an_error_that_names_the_parameter(part: str) -> None:
    policy = tiny_policy()
    policy.tower.get_parameter(part).requires_grad_(True)
    with pytest.raises(FrozenError, match=part):
        policy.assert_frozen()
    with pytest.raises(FrozenError, match=part):
        engine_of(policy)


def test_a_tower_parameter_smuggled_into_the_optimizer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    policy.text.register_parameter("smuggled", policy.tower.get_parameter("merger.mlp.0.bias").requires_grad_(True))
    monkeypatch.setattr(policy, "assert_frozen", lambda: None)
    with pytest.raises(FrozenError, match=r"merger\.mlp\.0\.bias.*optimizer"):
        engine_of(policy)


def engine_of(policy: Policy) -> Any:
    from mm_spine.training.engine import Engine

    before = torch.are_deterministic_algorithms_enabled()
    try:
        return Engine(policy, OptimConfig(), EngineConfig())
    finally:
        torch.use_deterministic_algorithms(before)


def test_checksum_is_stable_and_sees_one_changed_element() -> None:
    policy = tiny_policy()
    before = policy.tower_checksum()
    assert before == tiny_policy().tower_checksum() != tiny_policy(1).tower_checksum()
    micro = collate(policy, trained_groups(*make_step(), OPTIONS))
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=0.1)
    policy.text(micro.packed, Distribution(1.0, policy.banned)).stats.logp_NT.sum().backward()
    optimizer.step()
    assert policy.tower_checksum() == before
    with torch.no_grad():
        policy.tower.get_parameter("merger.mlp.2.weight")[3, 5] += 1e-6
    assert policy.tower_checksum() != before


def test_lora_trains_adapters_of_every_projection_of_the_language_model_only() -> None:
    policy = tiny_policy(config=LORA)
    names = set(policy.trainable())
    parts = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
    assert names == {
        f"language_model.layers.{layer}.{part}_proj.lora_{side}.default.weight"
        for layer in range(2)
        for part in parts
        for side in "AB"
    }
    assert [n for n, p in policy.model.named_parameters() if p.requires_grad and "visual" in n] == []


def test_lora_starts_from_its_seed_alone_and_from_the_base_model() -> None:
    torch.manual_seed(0)
    first, state = tiny_policy(1, LORA), torch.get_rng_state()
    torch.manual_seed(12345)
    again = Policy(tiny_model(1), tiny_processor(), LORA, seed=1)
    other = Policy(tiny_model(1), tiny_processor(), LORA, seed=2)
    weights = [policy.weights() for policy in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert state is not None and torch.equal(torch.manual_seed(12345).get_state(), torch.get_rng_state())
    question, tokens = tiny_questions(1)[0], responses((4,), 0)[0]
    torch.testing.assert_close(
        plain_log_probs(first.model, question, tokens), plain_log_probs(tiny_model(1), question, tokens)
    )


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def folder_log_probs(folder: Path, question: Question, tokens: Sequence[int]) -> Tensor:
    """log pi from a saved folder alone: its model and its own processor."""
    from mm_spine.processors.chat import encode

    model, processor = loaded(folder)
    assert torch.equal(encode(question, processor).ids_L, encode(question, tiny_processor()).ids_L)
    return plain_log_probs(model, question, tokens)


@pytest.mark.parametrize("config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_folder_loads_alone_and_is_the_adapted_policy(
    config: ModelConfig | None, tied: bool, tmp_path: Path
) -> None:
    policy = tiny_policy(4, config, tied)
    perturb(policy, 0.1, seed=2)
    question, tokens = tiny_questions(2, 3)[1], responses((5,), 3)[0]
    before, adapted = policy.weights(), plain_log_probs(policy.model, question, tokens)
    policy.save(tmp_path / "adapted")
    found = folder_log_probs(tmp_path / "adapted", question, tokens)
    torch.testing.assert_close(found, adapted, rtol=1e-5, atol=1e-5)
    start = plain_log_probs(tiny_model(4, tied), question, tokens)
    assert (found - start)[start > -torch.inf].abs().max() > 0.1
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable().items())
    again = Policy.load(tmp_path / "adapted")
    assert again.tower_checksum() == policy.tower_checksum()
    assert (tmp_path / "adapted" / "adapter").is_dir() == (config is not None)
    # Whoever may read the folder may read its weights.
    files = [path for path in (tmp_path / "adapted").iterdir() if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1 and len(files) > 3


def test_saved_adapter_on_the_base_model_is_the_adapted_policy(tmp_path: Path) -> None:
    import peft

    policy = tiny_policy(4, LORA)
    perturb(policy, 0.1, seed=2)
    policy.save(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(4), tmp_path / "adapter")
    question, tokens = tiny_questions(1)[0], responses((5,), 3)[0]
    torch.testing.assert_close(
        plain_log_probs(again, question, tokens), plain_log_probs(policy.model, question, tokens), rtol=1e-5, atol=1e-5
    )
