"""The head on selected tokens: closed forms against autograd of the whole vocabulary, chunks, memory, FLOPs, passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from small import Silent
from tiny import tiny_policy, tiny_questions
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mm_spine.adapt import adapt
from mm_spine.methods.table import configure
from mm_spine.methods.terms import kl_of_drawn
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.head import Anchor, Divergence, Projected, SelectedHead
from mm_spine.policy.text import Trained
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.engine import Engine
from mm_spine.training.loss import DIVERGENCES
from mm_spine.types import Statistic

VOCABULARY, WIDTH, BANNED = 50, 8, (46, 47)
ROW = 4 * VOCABULARY
"""Bytes of one token's logits in fp32."""


class Double(Distribution):
    """The distribution in float64, for finite differences."""

    def log_probs(self, logits: Tensor) -> Tensor:
        return plain_log_probs(logits.double(), self)


def plain_log_probs(logits: Tensor, distribution: Distribution) -> Tensor:
    kept = torch.ones(logits.shape[-1], dtype=torch.bool)
    kept[list(distribution.banned)] = False
    return (logits / distribution.temperature).where(kept, -torch.inf).log_softmax(-1)


def plain_head(
    hidden: Tensor, weight: Tensor, target: Tensor, distribution: Distribution, anchor: Anchor | None, kl: str
) -> Projected:
    """All tokens times the whole vocabulary, left to autograd, the banned columns cut out."""
    kept = [v for v in range(len(weight)) if v not in distribution.banned]
    log_p = plain_log_probs(hidden @ weight.T, distribution)
    logp, finite = log_p.gather(-1, target[:, None])[:, 0], log_p[:, kept]
    values = torch.zeros_like(logp)
    if anchor is not None:
        log_r = plain_log_probs(anchor.hidden_SD @ anchor.weight_VD.T, distribution)
        ratio = log_r.gather(-1, target[:, None])[:, 0] - logp
        exact = (finite.exp() * (finite - log_r[:, kept])).sum(-1)
        values = exact if kl == "exact" else ratio.exp() - 1 - ratio
    return Projected(logp, -(finite.exp() * finite).sum(-1), values)


class Case:
    """Random states, head and anchor for `count` tokens; some tokens are drawn twice."""

    def __init__(self, count: int, kl: str, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(count)
        self.weight, anchor_weight = torch.randn(2, VOCABULARY, WIDTH, generator=generator).to(dtype)
        self.hidden, anchor_hidden = torch.randn(2, count, WIDTH, generator=generator).to(dtype)
        self.target = torch.randint(0, 6, (count,), generator=generator)
        self.factors = torch.randn(5, count, generator=generator)
        found = DIVERGENCES[kl]
        self.anchor = None if found is None else Anchor(anchor_hidden, anchor_weight, found)

    def gradients(self, project: Callable[[Tensor, nn.Parameter], Projected]) -> list[Tensor]:
        """The values, then the gradients of a weighted sum of them by states and head."""
        states, weight = self.hidden.clone().requires_grad_(), nn.Parameter(self.weight.clone())
        found = project(states, weight).flat()
        loss = sum((f * x).sum() for f, x in zip(self.factors, found, strict=False))
        return [*(x.detach() for x in found), *torch.autograd.grad(loss, [states, weight])]

    def ours(self, rows: int, distribution: Distribution, statistics: Sequence[Statistic] = ()) -> list[Tensor]:
        return self.gradients(
            lambda h, w: SelectedHead(w, rows * ROW)(h, self.target, distribution, self.anchor, statistics)
        )


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    """||a - b|| <= tolerance ||b|| for every tensor."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and mine.isfinite().all()
        assert float((mine - theirs).norm()) <= tolerance * float(theirs.norm()) + 1e-7


@pytest.mark.parametrize("kl", DIVERGENCES)
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_values_and_gradients_are_autograds_of_the_whole_vocabulary(count: int, rows: int, kl: str) -> None:
    case, distribution = Case(count, kl), Distribution(0.8, BANNED)
    plain = case.gradients(lambda h, w: plain_head(h, w, case.target, distribution, case.anchor, kl))
    assert_close(case.ours(rows, distribution), plain)


@pytest.mark.parametrize("kl", DIVERGENCES)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_gradients_are_finite_differences(rows: int, kl: str) -> None:
    case = Case(5, kl, torch.float64)
    head = SelectedHead(nn.Parameter(case.weight), rows * ROW)

    def project(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        arguments = (hidden, case.target, Double(0.7, BANNED), case.anchor)
        return functional_call(head, {"weight": weight}, arguments).flat()[: 2 if kl == "none" else 3]

    assert torch.autograd.gradcheck(project, (case.hidden.requires_grad_(), case.weight.requires_grad_()))


def test_any_other_divergence_is_differentiated_too() -> None:
    """Here the reverse one, KL(reference || policy)."""
    reverse: Divergence = lambda log_p, log_r, target: (log_r.exp() * (log_r - log_p)).sum(-1)  # noqa: E731
    case, distribution = Case(7, "exact"), Distribution(0.8)
    case.anchor = case.anchor and case.anchor._replace(divergence=reverse)

    def plain(hidden: Tensor, weight: Tensor) -> Projected:
        values = plain_head(hidden, weight, case.target, distribution, None, "none")
        assert case.anchor is not None
        there = plain_log_probs(case.anchor.hidden_SD @ case.anchor.weight_VD.T, distribution)
        here = plain_log_probs(hidden @ weight.T, distribution)
        return values._replace(kl_S=reverse(here, there, case.target))

    assert_close(case.ours(3, distribution), case.gradients(plain))


def collision(log_probs: Tensor, anchor: Tensor | None, target: Tensor) -> Tensor:
    """The probability of drawing the same token twice: a statistic of the whole distribution."""
    return log_probs.exp().square().sum(-1)


def surprise_over_the_anchor(log_probs: Tensor, anchor: Tensor | None, target: Tensor) -> Tensor:
    """The square of the log-ratio at the token drawn, 0 without an anchor."""
    drawn = log_probs.gather(-1, target[:, None])[:, 0]
    return drawn * 0 if anchor is None else (drawn - anchor.gather(-1, target[:, None])[:, 0]).square()


@pytest.mark.parametrize("kl", DIVERGENCES)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_statistics_have_values_and_gradients_beside_the_divergence(rows: int, kl: str) -> None:
    case, distribution = Case(7, kl), Distribution(0.8, BANNED)
    asked = (collision, surprise_over_the_anchor)

    def plain(hidden: Tensor, weight: Tensor) -> Projected:
        there = None
        if case.anchor is not None:
            there = plain_log_probs(case.anchor.hidden_SD @ case.anchor.weight_VD.T, distribution)
        here = plain_log_probs(hidden @ weight.T, distribution)
        values = plain_head(hidden, weight, case.target, distribution, case.anchor, kl)
        return values._replace(statistics=tuple(value(here, there, case.target) for value in asked))

    assert_close(case.ours(rows, distribution, asked), case.gradients(plain))


def test_a_statistic_reads_the_anchor_where_no_divergence_is_asked_for() -> None:
    """The k3 estimate as a statistic is the k3 estimate as the divergence, its gradient too."""
    case, distribution = Case(7, "k3"), Distribution(0.8, BANNED)
    assert case.anchor is not None
    expected = case.ours(3, distribution)
    case.anchor = case.anchor._replace(divergence=None)
    case.factors[3] = case.factors[2]
    found = case.ours(3, distribution, (kl_of_drawn,))
    assert not found[2].any() and torch.equal(found[3], expected[2])
    assert_close([*found[:2], *found[4:]], [*expected[:2], *expected[3:]])


def test_bf16_weights_are_reduced_in_fp32() -> None:
    """Values and gradients of bf16 logits stay within bf16's rounding of fp32's, whatever the chunks."""
    distribution = Distribution(0.8, BANNED)
    exact, rounded = Case(64, "exact"), Case(64, "exact", torch.bfloat16)
    expected = exact.ours(100, distribution)
    for rows in (1, 7, 100):
        found = rounded.ours(rows, distribution)
        assert [x.dtype for x in found] == [torch.float32] * 3 + [torch.bfloat16] * 2
        assert_close(found, expected, tolerance=0.02)


@pytest.mark.parametrize("kl", DIVERGENCES)
def test_logits_of_bf16_states_are_never_rounded_to_bf16(kl: str) -> None:
    """Values from bf16 states and head are those of the same numbers in fp32; so are gradients, up to their type."""
    distribution, half = Distribution(0.8, BANNED), Case(64, kl, torch.bfloat16)
    whole = Case(64, kl)
    whole.hidden, whole.weight = half.hidden.float(), half.weight.float()
    if half.anchor is not None:
        states, weight, found = half.anchor
        whole.anchor = Anchor(states.float(), weight.float(), found)
    for rows in (7, 100):
        ours, expected = half.ours(rows, distribution), whole.ours(rows, distribution)
        assert_close(ours[:3], expected[:3], tolerance=1e-6)
        assert_close([x.float() for x in ours[3:]], expected[3:], tolerance=2**-8)


def test_the_heads_gradient_is_summed_in_fp32_over_chunks() -> None:
    """256 chunks that each add 1/256 of one, at either end: bf16 would stop counting."""
    hidden, target = torch.full((258, 1), 1 / 256, dtype=torch.bfloat16), torch.zeros(258, dtype=torch.long)
    hidden[0] = hidden[-1] = 1
    weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
    SelectedHead(weight, 8)(hidden, target, Distribution(0.5)).logp_S.sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[3.0], [-3.0]]


@pytest.mark.parametrize("rows", [2, 100])
def test_a_frozen_head_costs_no_gradient(rows: int) -> None:
    case, flops = Case(10, "none"), {}
    for trains in (True, False):
        head = SelectedHead(nn.Parameter(case.weight, requires_grad=trains), rows * ROW)
        states = case.hidden.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            head(states, case.target, Distribution()).logp_S.sum().backward()
        flops[trains] = counter.get_total_flops()
        assert (head.weight.grad is not None) == trains and states.grad is not None
    assert flops[True] - flops[False] == 2 * 10 * VOCABULARY * WIDTH


def test_a_tied_heads_gradient_adds_to_the_embeddings() -> None:
    table = nn.Parameter(Case(4, "none").weight)
    head, ids, target = SelectedHead(table, 3 * ROW), torch.arange(10), torch.arange(1, 11)
    head(table[ids], target, Distribution()).logp_S.sum().backward()
    found, table.grad = table.grad, None
    (table[ids] @ table.T).log_softmax(-1).gather(-1, target[:, None]).sum().backward()
    torch.testing.assert_close(found, table.grad)


class Spy(TorchDispatchMode):
    """Storages that hold tokens x vocabulary: rows of the largest, and how many rows were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.most = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*arguments, **(named or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[-1] == VOCABULARY:
                self._note(tensor)
        return made

    def alive(self) -> int:
        """Rows held now."""
        return sum(rows for ref, rows in self._alive.values() if not ref.expired())

    def _note(self, tensor: Tensor) -> None:
        rows, storage = len(tensor), tensor.untyped_storage()
        if rows != WIDTH and tensor.dtype != torch.bool:
            self._alive[storage.data_ptr()] = StorageWeakRef(storage), rows
            self._alive = {at: (ref, n) for at, (ref, n) in self._alive.items() if not ref.expired()}
            self.largest = max(self.largest, rows)
            self.most = max(self.most, sum(n for _, n in self._alive.values()))


@pytest.mark.parametrize(("kl", "copies"), [("none", 4), ("exact", 10)])
def test_no_more_than_one_chunk_of_logits_is_alive(kl: str, copies: int) -> None:
    """In forward and in backward; a chunk is held a few times over, as logits, log-probs, probabilities, gradient."""
    case = Case(90, kl)
    states = case.hidden.requires_grad_()
    with Spy() as spy:
        found = SelectedHead(nn.Parameter(case.weight), 3 * ROW)(states, case.target, Distribution(0.7), case.anchor)
        forward = spy.most
        sum(x.sum() for x in found.flat()).backward()
    assert spy.largest == 3
    assert 3 <= forward <= spy.most <= copies * 3


def test_the_gradient_part_costs_what_the_selected_tokens_cost() -> None:
    """At 20 of 100 tokens a quarter at most; with the entropies of all of them, from a pass without gradient, 0.55."""
    case, gradient, whole = Case(100, "none"), {}, {}
    for share in (20, 100):
        states, head = case.hidden[:share].clone().requires_grad_(), SelectedHead(nn.Parameter(case.weight), 7 * ROW)
        with FlopCounterMode(display=False) as counter:
            found = head(states, case.target[:share], Distribution())
            (found.logp_S.sum() + found.entropy_S.sum()).backward()
        gradient[share] = counter.get_total_flops()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            head(case.hidden, case.target, Distribution())
        whole[share] = gradient[share] + counter.get_total_flops()
    assert gradient[20] <= 0.25 * gradient[100]
    assert whole[20] <= 0.55 * whole[100]


def test_a_single_chunk_is_not_projected_twice() -> None:
    """Three products: forward, by states, by head. In several chunks all but the last take a fourth."""
    case, product = Case(10, "none"), 2 * VOCABULARY * WIDTH
    for rows, expected in ((10, 3 * 10), (4, 3 * 10 + 8)):
        states, head = case.hidden.clone().requires_grad_(), SelectedHead(nn.Parameter(case.weight), rows * ROW)
        with FlopCounterMode(display=False) as counter:
            head(states, case.target, Distribution()).entropy_S.sum().backward()
        assert counter.get_total_flops() == expected * product


def test_without_gradient_nothing_is_kept_or_projected_twice() -> None:
    case = Case(90, "none")
    head = SelectedHead(nn.Parameter(case.weight), 3 * ROW)
    with torch.no_grad(), Spy() as spy, FlopCounterMode(display=False) as counter:
        found = head(case.hidden, case.target, Distribution())
    assert counter.get_total_flops() == 2 * 90 * VOCABULARY * WIDTH
    assert spy.largest == 3 and spy.most <= 4 * 3 and spy.alive() == 0
    assert not any(x.requires_grad for x in found.flat())


@pytest.mark.parametrize(("silent", "entropy_passes"), [(False, 0), (True, 2)])
def test_the_entropy_pass_runs_only_where_the_sampler_gave_none(silent: bool, entropy_passes: int) -> None:
    """Counted at the head: a pass with gradient per step, and one without only if the sampler was silent.

    One more without a gradient checks the weights at the end.
    """
    method = {"name": "spine", "kl": "none", "advantage": "batch", "unanimous": "regularise"}
    sampling = {"votes": 4, "train_rollouts": 4, "max_new_tokens": 6}
    config = configure({"method": method, "sampling": sampling, "optim": {"steps": 2, "questions_per_step": 2}})
    policy, seen, usual = tiny_policy(), [], SelectedHead.forward
    sampler = HFSampler(policy, config.sampling)

    def counting(self: SelectedHead, *arguments: Any) -> Projected:
        seen.append(torch.is_grad_enabled())
        return usual(self, *arguments)

    with mock.patch.object(SelectedHead, "forward", counting):
        adapt(tiny_questions(2), policy, Silent(sampler) if silent else sampler, config=config)
    assert (seen.count(True), seen.count(False)) == (2, entropy_passes + 1)


def test_zero3_releases_the_head_between_forward_and_backward(tmp_path: Path) -> None:
    """With no parameter small enough to persist, in several chunks: the gradients are those without ZeRO, at once."""
    import ranks

    ranks.save_rollouts(tmp_path / "rollouts.pt")
    rollouts = torch.load(tmp_path / "rollouts.pt", weights_only=False)
    plain = ranks.one_step(0, ranks.CASES["even"], rollouts)["gradients"][0]
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    released = {**ranks.CASES["even"], "engine": {"deepspeed": str(tmp_path / "zero.json")}}
    held, usual = [], Engine.forward

    def watched(self: Engine, *arguments: Any) -> Trained:
        found = usual(self, *arguments)
        held.append(self._engine.module.head.weight.numel())
        return found

    few_rows = mock.patch.object(SelectedHead.__init__, "__defaults__", (100_000,))
    with few_rows, mock.patch.object(Engine, "forward", watched):
        found = ranks.one_step(3, released, rollouts)["gradients"][0]
    assert held == [0]
    assert_close([found[name] for name in plain], list(plain.values()))
