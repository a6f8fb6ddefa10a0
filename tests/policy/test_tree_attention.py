"""Attention over trees in parts, against one dense masked softmax: outputs and gradients, every backend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import flash_stand_in
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm_spine.policy import attention, kernels
from mm_spine.policy.kernels import backend_name, why_not_flash_attn
from mm_spine.policy.token_tree import Node, token_tree
from mm_spine.policy.tree_attention import PADDING, AttentionPlan, Part, tree_attention

BACKENDS = ("flash_cpu", "plain", "flash_attn")
"""The last one with a stand-in for the package, which needs a card."""
CPU = torch.device("cpu")
FAULT = kernels.flash_attn_fault


@pytest.fixture(autouse=True, scope="module")
def flash_attn() -> Iterator[None]:
    """A stand-in for flash-attn; the test on a card takes the real one."""
    if torch.cuda.is_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        flash_stand_in.install(patch)
        yield


class Inputs(NamedTuple):
    """One row (1, heads, P, D) and a gradient for the output (1, P, Hq, D)."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor


def plan_of(prompts: list[int], leaves: list[list[list[int]]]) -> AttentionPlan:
    """Questions with prompts of these lengths and these leaves behind them."""
    nodes: list[Node] = []
    at = 0
    for prompt, each in zip(prompts, leaves, strict=True):
        tree = token_tree([np.array(leaf, dtype=np.int64) for leaf in each], 1)
        nodes.append(Node(at, at + prompt, at + prompt + len(tree.ids_P)))
        nodes.extend(Node(*(at + prompt + place for place in node)) for node in tree.nodes)
        at = nodes[len(nodes) - len(tree.nodes) - 1].end
    return AttentionPlan(tuple(nodes), at, CPU, np.arange(at))


def visible(plan: AttentionPlan) -> Tensor:
    """True where a query (row) may read a key, by the definition: own node's earlier tokens, ancestors whole.

    Of a mutual node its later tokens too.
    """
    mask = torch.zeros(plan.length, plan.length, dtype=torch.bool)
    for node in plan.nodes:
        mask[node.start : node.stop, node.start : node.stop] = True
        mask[node.stop : node.end, node.start : node.stop] = True
    mask = mask.tril()
    for node in plan.mutual:
        mask[node.start : node.stop, node.start : node.stop] = True
    return mask


def random_inputs(length: int, heads: tuple[int, int], width: int, dtype: torch.dtype, seed: int) -> Inputs:
    """Laid out as transformers hands them over: (1, P, H, D) in memory."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads[0], heads[1], heads[1], heads[0])
    drawn = [torch.randn(1, length, h, width, generator=generator).to(dtype) for h in sizes]
    query, key, value = (x.transpose(1, 2).requires_grad_() for x in drawn[:3])
    return Inputs(query, key, value, drawn[3])


def dense(made: Inputs, mask: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Output and gradients in fp64 by the textbook."""
    query, key, value = (x.detach().double().requires_grad_() for x in made[:3])
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (scale * query @ keys.mT).masked_fill(~mask, -torch.inf)
    out = (scores.softmax(-1) @ values).transpose(1, 2)
    return out.detach(), *torch.autograd.grad(out, [query, key, value], made.grad.double())


def in_parts(made: Inputs, plan: AttentionPlan, backend: str, scale: float | None = None) -> tuple[Tensor, ...]:
    out = tree_attention(*made[:3], plan, scale, backend)
    return out.detach(), *torch.autograd.grad(out, made[:3], made.grad)


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    """Relative to each tensor's own norm; of one that all but vanishes, to a tenth of the largest."""
    floor = 0.1 * max(1.0, *(float(x.norm()) for x in expected))  # inputs are of order 1: so is their rounding
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= tolerance * max(float(other.norm()), floor)


def deep_plan() -> AttentionPlan:
    """Two questions; forks two levels deep; nodes of one token; lengths that share a padded call."""
    long = list(range(10, 40))
    first = [[1, 2, 3, 4], [1, 2, 5, *long], [1, 2, 5, 6], [7, *long], [8, *long, 3], [9, *long, 3, 4]]
    return plan_of([33, 1], [first, [[1], [2, 3], [2, 4]]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_parts_are_one_masked_softmax(backend: str, heads: tuple[int, int]) -> None:
    plan = deep_plan()
    made = random_inputs(plan.length, heads, 16, torch.float32, 0)
    assert_close(in_parts(made, plan, backend), dense(made, visible(plan), 0.25), 1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_flex_attention_reads_the_same_keys(heads: tuple[int, int]) -> None:
    """Uncompiled, it has no gradient on a CPU; the test below takes it on a card."""
    plan = deep_plan()
    made = random_inputs(plan.length, heads, 16, torch.float32, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        out = tree_attention(*(x.detach() for x in made[:3]), plan, None, "flex")
    assert_close((out,), dense(made, visible(plan), 0.25)[:1], 1e-5)


def plan_with_images() -> AttentionPlan:
    """`deep_plan` with two images in its first prompt: it becomes text, image, text, image, text."""
    plan = deep_plan()
    prompt, *rest = plan.nodes
    cuts = [0, 5, 14, 20, 22, prompt.stop]
    pieces = [Node(start, stop, prompt.end) for start, stop in pairwise(cuts)]
    return replace(plan, nodes=(*pieces, *rest), mutual=frozenset((pieces[1], pieces[3])))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [None, [3, 8, 21, 32, 40], [32]], ids=["all", "some", "one"])
def test_tokens_of_an_image_read_one_another_both_ways(backend: str, wanted: list[int] | None) -> None:
    plan = plan_with_images()
    assert visible(plan)[5, 13] and not visible(plan)[4, 5] and not visible(plan)[13, 20]
    made, kept = random_inputs(plan.length, (4, 2), 16, torch.float32, 0), torch.ones(plan.length)
    if wanted is not None:
        kept = torch.zeros(plan.length).index_fill(0, torch.tensor(wanted), 1)
        made = made._replace(grad=made.grad * kept[None, :, None, None])
        plan = replace(plan, wanted=np.array(wanted)).narrowed
    out, *gradients = in_parts(made, plan, backend)
    expected, *others = dense(made, visible(plan), 0.25)
    mask = kept[None, :, None, None]
    assert_close((out * mask, *gradients), (expected * mask, *others), 1e-5)


def test_flex_attention_reads_images_both_ways() -> None:
    plan = plan_with_images()
    made = random_inputs(plan.length, (4, 2), 16, torch.float32, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        out = tree_attention(*(x.detach() for x in made[:3]), plan, None, "flex")
    assert_close((out,), dense(made, visible(plan), 0.25)[:1], 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["flex", "flash_attn"])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 2e-2)])
def test_the_card_agrees(dtype: torch.dtype, tolerance: float, narrow: bool, backend: str) -> None:
    """fp32 loosely: the compiled kernel may multiply in TF32."""
    plan = replace(deep_plan(), device=torch.device("cuda"))
    if backend == "flash_attn" and (reason := why_not_flash_attn(plan.device, dtype, 16)):
        pytest.skip(reason)
    made = random_inputs(plan.length, (4, 2), 16, dtype, 0)
    kept = torch.ones(plan.length)
    if narrow:
        kept[::2] = 0
        made = made._replace(grad=made.grad * kept.to(dtype)[None, :, None, None])
        plan = replace(plan, wanted=np.arange(1, plan.length, 2)).narrowed
    moved = Inputs(*(x.detach().cuda() for x in made))
    for x in moved[:3]:
        x.requires_grad_()
    out, *gradients = (x.cpu() for x in in_parts(moved, plan, backend))
    expected, *others = dense(made, visible(plan), 0.25)
    mask = kept[None, :, None, None]
    assert_close((out * mask, *gradients), (expected * mask, *others), tolerance)


PROMPTS_AND_LEAVES = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=6)), min_size=1, max_size=3
)


@settings(max_examples=60)
@given(PROMPTS_AND_LEAVES, st.sampled_from([(2, 2), (4, 2)]), st.sampled_from(BACKENDS))
def test_any_tree_is_one_masked_softmax(
    questions: list[tuple[int, list[list[int]]]], heads: tuple[int, int], backend: str
) -> None:
    plan = plan_of([q[0] for q in questions], [q[1] for q in questions])
    made = random_inputs(plan.length, heads, 8, torch.float32, plan.length)
    assert_close(in_parts(made, plan, backend, 0.5), dense(made, visible(plan), 0.5), 1e-5)


@settings(max_examples=60)
@given(PROMPTS_AND_LEAVES, st.sampled_from(BACKENDS), st.data())
def test_the_last_layer_computes_what_is_wanted(
    questions: list[tuple[int, list[list[int]]]], backend: str, data: st.DataObject
) -> None:
    """The wanted outputs of the whole, something finite elsewhere, and the gradient of those wanted."""
    plan = plan_of([q[0] for q in questions], [q[1] for q in questions])
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, plan.length - 1)))), dtype=np.int64)
    made = random_inputs(plan.length, (4, 2), 8, torch.float32, plan.length)
    kept = torch.zeros(plan.length, dtype=torch.bool)
    kept[wanted] = True
    made = made._replace(grad=made.grad * kept[None, :, None, None])
    out, *gradients = dense(made, visible(plan), 0.5)
    expected = (out * kept[None, :, None, None], *gradients)
    found, *others = in_parts(made, replace(plan, wanted=wanted).narrowed, backend, 0.5)
    assert found.isfinite().all()
    assert_close((found * kept[None, :, None, None], *others), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_close(backend: str) -> None:
    plan = deep_plan()
    made = random_inputs(plan.length, (4, 2), 16, torch.bfloat16, 1)
    found = in_parts(made, plan, backend)
    assert all(x.dtype == torch.bfloat16 for x in found)
    assert_close(found, dense(made, visible(plan), 0.25), 2e-2)


def test_flash_attn_is_called_once_for_each_level() -> None:
    """The nodes by themselves, then those of each level by their descendants: sequences and queries, none padded."""
    plan = plan_of([5, 3], [[[1, 2, 3], [1, 2, 4, 5], [6]], [[7, 8], [9]]])
    made = random_inputs(plan.length, (4, 2), 16, torch.float32, 0)
    flash_stand_in.calls.clear()
    in_parts(made, plan, "flash_attn")
    assert flash_stand_in.calls == [(8, 17, True), (2, 9, False), (1, 3, False)]
    # Of the last layer a node's first wanted query to its last one, and no node without any.
    flash_stand_in.calls.clear()
    in_parts(made, replace(plan, wanted=np.array([4, 9, 13, 15])).narrowed, "flash_attn")
    assert flash_stand_in.calls == [(4, 4, True), (2, 2, False), (1, 1, False)]


def test_extreme_scores_neither_overflow_nor_lose_their_gradient() -> None:
    """A leaf that looks only at itself, one that looks only at the prompt: merged shares of 0 and of 1."""
    plan = plan_of([5], [[[1, 2, 3], [4, 5, 6]]])
    made = random_inputs(plan.length, (2, 2), 8, torch.float32, 2)
    with torch.no_grad():
        made.query[:, :, 5:8] *= 30
        made.key[:, :, 8:] *= 30
    expected = dense(made, visible(plan), 0.35)
    for backend in BACKENDS:
        assert_close(in_parts(made, plan, backend, 0.35), expected, 1e-4)


def test_equal_lengths_and_long_nodes_take_their_own_ways() -> None:
    """A node of 256 is a slice, two equal ones a copy without padding, the rest padded by at most 12 %."""
    lengths = [300, 256, 40, 40, 39, 20, 7]
    starts = np.cumsum([0, *lengths]).tolist()
    nodes = tuple(Node(a, b, b) for a, b in pairwise(starts))
    plan = AttentionPlan(nodes, starts[-1], CPU, np.arange(starts[-1]))
    assert [isinstance(part.queries, slice) for part in plan.themselves] == [True, True, False, True, True]
    assert [part.rows for part in plan.themselves] == [1, 1, 3, 1, 1]
    made = random_inputs(plan.length, (4, 2), 8, torch.float32, 3)
    for backend in BACKENDS:
        assert_close(in_parts(made, plan, backend), dense(made, visible(plan), 8**-0.5), 1e-5)


def queries_of(part: Part) -> int:
    at = part.queries
    return at.stop - at.start if isinstance(at, slice) else len(at)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_padding_stays_small(lengths: list[int]) -> None:
    starts = np.cumsum([0, *lengths]).tolist()
    plan = AttentionPlan(tuple(Node(a, b, b) for a, b in pairwise(starts)), starts[-1], CPU, np.arange(starts[-1]))
    assert sum(lengths) <= sum(queries_of(part) for part in plan.themselves) <= PADDING * sum(lengths)


def test_gradients_are_the_same_bits_every_time() -> None:
    plan = deep_plan()
    made = random_inputs(plan.length, (4, 2), 16, torch.float32, 4)
    first = in_parts(made, plan, "flash_cpu")
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, in_parts(made, plan, "flash_cpu"), strict=True))


def test_backends_are_chosen_by_device_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert backend_name(CPU, torch.float32, 64) == backend_name(CPU, torch.bfloat16, 64) == "flash_cpu"
    assert backend_name(CPU, torch.float16, 64) == "plain"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert backend_name(cuda, torch.bfloat16, 64) == backend_name(cuda, torch.float16, 256) == "flash_attn"
    # Where flash-attn cannot, FlexAttention stays.
    assert backend_name(cuda, torch.float32, 64) == "flex"
    assert backend_name(cuda, torch.bfloat16, 264) == backend_name(cuda, torch.bfloat16, 20) == "flex"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backend_name(cuda, torch.bfloat16, 64) == "flex"


def test_a_broken_flash_attn_is_named_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")

    def broken() -> None:
        raise ImportError("undefined symbol: _ZN3c105ErrorC2E")

    for importing, reason in (
        (absent, "flash-attn is not installed"),
        (broken, "flash-attn does not load (undefined symbol: _ZN3c105ErrorC2E)"),
    ):
        monkeypatch.setattr(kernels, "flash_attn_interface", importing)
        monkeypatch.setattr(kernels, "flash_attn_fault", FAULT.__wrapped__)
        assert why_not_flash_attn(torch.device("cuda"), torch.bfloat16, 64) == reason
        assert backend_name(torch.device("cuda"), torch.bfloat16, 64) == "flex"


def test_dropout_in_training_is_refused() -> None:
    plan = deep_plan()
    made = random_inputs(plan.length, (2, 2), 8, torch.float32, 5)
    with pytest.raises(ValueError, match="attention_dropout=0.1"):
        attention.grouped_attention(torch.nn.Identity(), *made[:3], None, dropout=0.1, plan=plan)
