"""One row of token trees against a plain forward of transformers for every (prompt, leaf): whatever the trees share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flash_stand_in
import pytest
import torch
from exactness import InDouble, assert_exact, assert_exact_gradients, double_of
from tiny import END, TEMPERATURE, entropy, plain_log_probs, tiny_model, tiny_policy, tiny_questions
from torch import Tensor

from mm_spine.policy import tree_attention
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, PackedBatch, pack, row_length
from mm_spine.policy.tree_attention import AttentionPlan
from mm_spine.types import Question, TokenStats

TOLERANCE = 1e-5
SIDE = {"qwen3_vl": 32}


class Leaf(NamedTuple):
    """A response and its selected positions; a negative one counts from the end."""

    tokens: tuple[int, ...]
    selected: tuple[int, ...]

    @property
    def mask(self) -> Tensor:
        mask = torch.zeros(len(self.tokens), dtype=torch.bool)
        mask[list(self.selected)] = True
        return mask


STEM, BRANCH = (11, 12, 13, 14, 15), (21, 22, 23)
DEEP = (
    Leaf((*STEM, *BRANCH, 31, 32, END), (0, 4, 6, 8, -1)),
    Leaf((*STEM, *BRANCH, 33, END), (2, 5, 8, 9)),
    Leaf((*STEM, 41, 42, 43, 44, END), (5, 6, 9)),
    Leaf((51, 52, END), (0, 1, 2)),
)
"""Forks two levels deep, selected tokens on every level."""

CASES: dict[str, tuple[tuple[int, tuple[Leaf, ...]], ...]] = {
    "two levels": ((1, DEEP),),
    "identical leaves": ((1, (DEEP[0], DEEP[0], Leaf(DEEP[0].tokens, (1, 6)), DEEP[3])),),
    "cut leaves": ((3, (Leaf((*range(60, 80), END), (3, 7)), Leaf((*range(60, 70), 5, END), (0, 4)))),),
    "a leaf that ends inside another": ((1, (Leaf((*STEM, END), (1, -1)), Leaf((*STEM, *BRANCH), (6,)))),),
    "nothing selected in some": ((1, (Leaf(STEM, ()), DEEP[1], Leaf((7, 8), ()))), (1, (Leaf(STEM, ()),))),
    "single tokens": ((1, (Leaf((END,), (0,)), Leaf((5,), (0,)), Leaf((6,), ()))), (1, (Leaf((END,), (0,)),))),
    "first tokens only": ((1, tuple(Leaf(leaf.tokens, (0,)) for leaf in DEEP)),),
    "questions side by side": ((1, DEEP), (0, DEEP[1:3]), (3, (Leaf((END,), (0,)),)), (1, DEEP[2:])),
}
"""Per question: its number of images, its leaves."""


def questions_of(case: Sequence[tuple[int, Any]], kind: str) -> list[Question]:
    seeing = kind.endswith("vl")
    sides = SIDE.get(kind, 28)
    return [tiny_questions(i + 1, images if seeing else 0, sides)[i] for i, (images, _) in enumerate(case)]


def batch_of(policy: Policy, case: Sequence[tuple[int, Sequence[Leaf]]], kind: str, least: int = 1) -> PackedBatch:
    rows = [
        Branches(policy.prompt(question), [torch.tensor(x.tokens) for x in leaves], [x.mask for x in leaves])
        for question, (_, leaves) in zip(questions_of(case, kind), case, strict=True)
    ]
    return pack(rows, least)


def weights_of(stats: TokenStats) -> Tensor:
    """Random factors of log-probs and entropies in the loss, equal for equal shapes."""
    return torch.randn(2, *stats.logp_NT.shape, generator=torch.Generator().manual_seed(1))


def packed_gradients(policy: Policy, batch: PackedBatch) -> tuple[TokenStats, dict[str, Tensor]]:
    stats = policy.text(batch, Distribution(TEMPERATURE, policy.banned)).stats
    weights = weights_of(stats)
    loss = (weights[0] * stats.logp_NT + weights[1] * stats.entropy_NT).sum()
    named = policy.trainable()
    return stats, dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", CASES)
def test_a_row_of_trees_is_a_plain_forward_for_every_leaf(name: str, kind: str) -> None:
    assert_packed_is_plain(name, kind)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", ["two levels", "questions side by side"])
def test_so_it_is_through_flash_attns_calls(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which takes fp32, as the real one does not."""
    flash_stand_in.install(monkeypatch)
    monkeypatch.setattr(tree_attention, "backend_name", lambda *_: "flash_attn")
    assert_packed_is_plain(name, kind)
    assert len({causal for *_, causal in flash_stand_in.calls}) == 2


def assert_packed_is_plain(name: str, kind: str) -> None:
    """Log-probs, entropies and gradients of a case, by the rule of `exactness`."""
    case, policy, plain = CASES[name], tiny_policy(3, kind=kind, tied=False), tiny_model(3, False, kind)
    stats, gradients = packed_gradients(policy, batch_of(policy, case, kind))
    flat = [
        (question, leaf)
        for question, (_, leaves) in zip(questions_of(case, kind), case, strict=True)
        for leaf in leaves
    ]
    weights, places = weights_of(stats), [leaf.mask.nonzero()[:, 0] for _, leaf in flat]
    assert [row.nonzero()[:, 0].tolist() for row in stats.selected_NT] == [there.tolist() for there in places]

    def values_and_gradients(model: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        values, loss = [], torch.zeros(())
        for n, ((question, leaf), there) in enumerate(zip(flat, places, strict=True)):
            log_probs = plain_log_probs(model, question, leaf.tokens)
            logp = log_probs.gather(-1, torch.tensor(leaf.tokens)[:, None])[there, 0]
            values += [logp, entropy(log_probs)[there]]
            loss = loss + (weights[0, n, there] * values[-2] + weights[1, n, there] * values[-1]).sum()
        loss.backward()
        return values, {known: p.grad for known, p in model.named_parameters()}

    (its, its_gradients), exact = values_and_gradients(plain), double_of(plain)
    with InDouble():
        double, double_gradients = values_and_gradients(exact)
    ours = [x[n, there] for n, there in enumerate(places) for x in (stats.logp_NT, stats.entropy_NT)]
    assert_exact(ours, its, double)
    reference = {id(p): known for known, p in policy.model.named_parameters()}
    names = {known: reference[id(parameter)] for known, parameter in policy.trainable().items()}
    assert_exact_gradients((k, gradients[k], its_gradients[n], double_gradients[n]) for k, n in names.items())


def test_a_tree_is_flat_training_on_its_leaves() -> None:
    """Shared to the last token, or (with a threshold that no prefix reaches) not at all."""
    policy = tiny_policy(2)
    (tree, g_tree), (flat, g_flat) = (
        packed_gradients(policy, batch_of(policy, CASES["two levels"], "qwen2_5_vl", least)) for least in (1, 10_000)
    )
    torch.testing.assert_close(tree.logp_NT, flat.logp_NT, rtol=TOLERANCE, atol=TOLERANCE)
    for name, gradient in g_flat.items():
        assert (g_tree[name] - gradient).norm() <= TOLERANCE * gradient.norm(), name


def test_a_row_holds_every_shared_token_once_and_none_after_the_last_selected() -> None:
    policy = tiny_policy()
    case = CASES["two levels"]
    prompt = policy.prompt(questions_of(case, "qwen2_5_vl")[0])
    own = [*STEM, *BRANCH, 31, 32, 33, 41, 42, 43, 44, 51, 52]
    batch = batch_of(policy, case, "qwen2_5_vl")
    assert sorted(batch.ids_1P[0, len(prompt.ids_L) :].tolist()) == sorted(own)
    cut = batch_of(policy, CASES["cut leaves"], "qwen2_5_vl")
    prompt = policy.prompt(questions_of(CASES["cut leaves"], "qwen2_5_vl")[0])
    assert cut.ids_1P[0, len(prompt.ids_L) :].tolist() == [60, 61, 62, 63, 64, 65, 66]


def test_equal_predictions_are_made_once_for_all_leaves() -> None:
    policy = tiny_policy()
    batch = batch_of(policy, CASES["identical leaves"], "qwen2_5_vl")
    assert len(batch.slot_K) == 5 + 5 + 2 + 3
    assert len(batch.target_S) == 5 + 1 + 3  # the third leaf asks for one that the first does, too
    stats = policy.text(batch, Distribution(TEMPERATURE, policy.banned)).stats
    assert torch.equal(stats.logp_NT[0], stats.logp_NT[1]) and bool(stats.logp_NT[0].any())


def test_row_length_is_what_a_question_adds() -> None:
    policy = tiny_policy()
    leaves = [torch.tensor((*STEM * 3, i, END)) for i in range(3)]
    for masks in ([torch.ones(17, dtype=torch.bool)] * 3, [torch.arange(17) == i for i in (3, 9, 16)]):
        row = Branches(policy.prompt(tiny_questions(1)[0]), leaves, masks)
        assert pack([row]).plan.length == pack([row]).ids_1P.shape[1] == row_length(row)
        assert pack([row, row]).plan.length == 2 * row_length(row)


def test_gradients_are_the_same_bits_every_time() -> None:
    policy = tiny_policy(1)
    batch = batch_of(policy, CASES["questions side by side"], "qwen2_5_vl")
    (_, first), *others = (packed_gradients(policy, batch) for _ in range(4))
    for _, gradients in others:
        assert all(torch.equal(first[name], gradient) for name, gradient in gradients.items())


def test_a_batch_without_any_selected_token_has_zero_gradients() -> None:
    """What a spare micro-step of a rank may be: the graph is whole, nothing moves."""
    policy = tiny_policy()
    stats, gradients = packed_gradients(policy, batch_of(policy, ((1, (Leaf(STEM, ()),)),), "qwen2_5_vl"))
    assert not stats.logp_NT.any() and not stats.selected_NT.any()
    assert gradients.keys() == policy.trainable().keys()
    assert not any(bool(gradient.any()) for gradient in gradients.values())


def test_the_last_layer_feeds_forward_only_what_is_read() -> None:
    """Counted in the feed-forward parts of both layers; a call without a plan is left alone."""
    policy, seen, partial = tiny_policy(), [], []
    batch = batch_of(policy, CASES["two levels"], "qwen2_5_vl")
    for layer in policy.text.language_model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda part, args, kwargs: partial.append("plan" in kwargs and kwargs["plan"].partial), with_kwargs=True
        )
        layer.mlp.down_proj.register_forward_hook(lambda part, args, out: seen.append(out.shape[1]))
    policy.text.trunk(batch)
    read = len(set(batch.predict_at_S.tolist()))
    assert seen == [batch.plan.length, read] and read < batch.plan.length / 2
    assert partial == [False, True]
    seen.clear()
    policy.text.language_model(inputs_embeds=torch.zeros(1, 5, 64))
    assert seen == [5, 5]


def test_no_mask_and_nothing_quadratic_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    batch = batch_of(policy, CASES["questions side by side"], "qwen2_5_vl")
    monkeypatch.setattr(AttentionPlan, "block_mask", property(lambda plan: pytest.fail("a block mask on a CPU")))
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        policy.text.trunk(batch)
    assert not [shape for shape in saved if list(shape).count(batch.plan.length) > 1]
