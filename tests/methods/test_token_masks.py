"""Tokens left out, penalised and regularised, and the terms that act on them, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from credited_groups import everywhere, options, rollout, with_credit
from torch import Tensor

from mm_spine.methods.laid import Laid, covariance
from mm_spine.methods.method import Batch, View
from mm_spine.methods.token_masks import (
    anchored_everywhere,
    covariance_terms,
    proxy_kl,
    proxy_terms,
    window_mean,
    with_covarying,
    with_least_likely,
    without_covarying,
)
from mm_spine.methods.tokens import Tokens


def test_a_window_holds_the_token_and_what_follows() -> None:
    assert window_mean(torch.arange(1.0, 6.0), 4).tolist() == [2.5, 3.5, 4.0, 4.5, 5.0]
    assert window_mean(torch.zeros(0), 4).tolist() == []


def test_covariance_is_about_the_means_of_the_step() -> None:
    laid = Laid(torch.tensor([-1.0, -3.0, -2.0]), torch.zeros(3), torch.tensor([1.0, 1.0, -2.0]))
    assert covariance(laid).tolist() == [1.0, -1.0, 0.0]


def covarying() -> Any:
    """Two responses of two and three tokens. A = 3 and -2 have the mean 0, log-probs the mean -3, so that the
    covariances are 3 (3), 3 (-3), -2 (3), -2 (-1), -2 (-2) = 9, -9, -6, 2, 4."""
    rows = [rollout(0, [1, 2], [0.0, 6.0]), rollout(1, [3, 4, 5], [0.0, 4.0, 5.0])]
    return with_credit(rows, [3.0, -2.0])


def masks(tokens: list[list[Tokens]]) -> list[list[bool]]:
    return [t.policy_T.tolist() for own in tokens for t in own]


def test_clip_cov_leaves_out_tokens_whose_covariance_is_between_its_bounds() -> None:
    own = covarying()
    settings: Any = options("clip-cov", cov_share=1.0)
    found = without_covarying(settings, Batch([own]), everywhere([own]))
    assert masks(found) == [[True, True], [True, False, False]], "2 and 4 are between 1 and 5, 9 is not"
    nothing: Any = options("clip-cov", cov_share=1.0, cov_low=10.0, cov_high=20.0)
    assert masks(without_covarying(nothing, Batch([own]), everywhere([own]))) == [[True, True], [True] * 3]


def test_clip_cov_draws_its_share_anew_each_step() -> None:
    own = covarying()
    settings: Any = options("clip-cov", cov_share=0.2)
    drawn = [masks(without_covarying(settings, Batch([own], step), everywhere([own])))[1] for step in range(20)]
    assert {tuple(mask) for mask in drawn} == {(True, False, True), (True, True, False)}, "one of the two at a time"
    again = [masks(without_covarying(settings, Batch([own], step), everywhere([own])))[1] for step in range(20)]
    assert again == drawn


def test_kl_cov_penalises_the_largest_positive_covariances() -> None:
    own = covarying()
    for share, expected in ((0.4, [[1.0, 0.0], [0.0, 0.0, 1.0]]), (1.0, [[1.0, 0.0], [0.0, 1.0, 1.0]])):
        settings: Any = options("kl-cov", cov_share=share)
        found = with_covarying(settings, Batch([own]), everywhere([own]))
        assert [t.weights["kl_cov"].tolist() for t in found[0]] == expected
        assert masks(found) == [[True, True], [True] * 3]


def some_view(logp: Tensor, **parts: Any) -> View:
    old = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
    nothing = torch.zeros_like(old)
    advantage = torch.tensor([[1.5]], dtype=torch.float64)
    return View(logp, old, nothing, nothing, advantage, 0.2, 0.2, **parts)


def test_kl_cov_s_loss_and_its_gradient_against_finite_differences() -> None:
    settings: Any = options("kl-cov")
    (term,) = covariance_terms(settings)
    logp = torch.tensor([[-1.3, -1.5, -0.1]], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        term.value(some_view(logp)).detach(), torch.tensor([[0.3, 0.5, 0.4]], dtype=torch.float64)
    )
    assert (settings.clip_low, settings.clip_high) == (1.0, 1e9), "it does not clip"
    assert term.coefficient == 1.0 and term.denominator == "all"

    def loss(logp: Tensor) -> Tensor:
        return term.value(some_view(logp)).sum()

    assert torch.autograd.gradcheck(loss, (logp,))
    on_policy = some_view(torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True))
    (gradient,) = torch.autograd.grad(term.value(on_policy).sum(), on_policy.logp_NT)
    assert not gradient.any(), "while the policy is the old one the penalty has no gradient, as the row says"


PI = torch.tensor([[0.60, 0.39, 0.01]], dtype=torch.float64)


def test_the_proxy_lacks_improbable_tokens() -> None:
    """0.01 is below 0.02 * 0.6: what is left sums to 0.99, so that KL(proxy || pi) = -ln 0.99; d is the same."""
    for target, exact in ((0, -math.log(0.99)), (1, -math.log(0.99)), (2, 0.0)):
        drawn = torch.tensor([target])
        assert float(proxy_kl(PI.log(), None, drawn, 0.02)) == pytest.approx(exact)
        k3 = 1 / 0.99 - 1 + math.log(0.99) if exact else 0.0
        assert float(proxy_kl(PI.log(), None, drawn, 0.02, "k3")) == pytest.approx(k3)
    assert float(proxy_kl(PI.log(), None, torch.tensor([2]), 0.001)) == pytest.approx(0.0, abs=1e-12)
    banned = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert float(proxy_kl(banned, None, torch.tensor([0]), 0.02)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("estimate", ["exact", "k3"])
def test_the_gradient_of_the_proxy_s_kl_is_that_of_finite_differences(estimate: str) -> None:
    """With the proxy held where it was: it has no gradient."""
    logits, target = PI.log().requires_grad_(), torch.tensor([1])
    (found,) = torch.autograd.grad(proxy_kl(logits.log_softmax(-1), None, target, 0.02, estimate).sum(), logits)
    proxy = torch.tensor([0.60, 0.39, 0.0], dtype=torch.float64) / 0.99

    def held(z: Tensor) -> float:
        log_p = z.log_softmax(-1)[0]
        if estimate == "exact":
            return float((proxy[:2] * (proxy[:2].log() - log_p[:2])).sum())
        gap = float(proxy[1].log() - log_p[1])
        return math.exp(gap) - 1 - gap

    numeric = []
    for i in range(3):
        step = torch.zeros(1, 3, dtype=torch.float64)
        step[0, i] = 1e-5
        numeric.append((held(logits.detach() + step) - held(logits.detach() - step)) / 2e-5)
    np.testing.assert_allclose(found[0].numpy(), numeric, atol=1e-9)
    assert float(found.abs().max()) > 1e-3


def test_a_banned_token_gives_the_proxy_no_nan() -> None:
    for estimate in ("exact", "k3"):
        logits = torch.tensor([[0.3, 0.1, -math.inf]], dtype=torch.float64, requires_grad=True)
        proxy_kl(logits.log_softmax(-1), None, torch.tensor([0]), 0.02, estimate).sum().backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_lp_reg_acts_on_the_least_likely_tokens_that_are_blamed() -> None:
    """Of the three tokens with A < 0 the log-prob -5 is the least; the -6 has A > 0."""
    own = covarying()
    for share, expected in ((0.01, [0.0, 0.0, 1.0]), (0.7, [0.0, 1.0, 1.0])):
        settings: Any = options("lp-reg", least_likely=share)
        ((first, second),) = with_least_likely(settings, Batch([own]), everywhere([own]))
        assert first.weights["kl_proxy"].tolist() == [0.0, 0.0]
        assert second.weights["kl_proxy"].tolist() == expected
    settings = options("lp-reg")
    praised = with_credit(own.rollouts, [0.0, 1.0])
    ((first, second),) = with_least_likely(settings, Batch([praised]), everywhere([praised]))
    assert not first.weights["kl_proxy"].any() and not second.weights["kl_proxy"].any()
    (term,) = proxy_terms(settings)
    measured = torch.tensor([[0.1, 0.2, 0.3]])
    assert term.value(some_view(torch.zeros(1, 3), statistic_NT=measured)) is measured and term.coefficient == 1.0


def test_earl_s_kl_acts_on_all_tokens_and_its_policy_term_does_not() -> None:
    forked = Tokens(torch.tensor([False, True]), torch.zeros(2, dtype=torch.bool), None)
    dropped = forked.without_policy(anchored=False)
    for kl, expected in (("k3", [True, True]), ("none", [False, True])):
        ((found, left),) = anchored_everywhere(options("earl", kl=kl), Batch([]), [[forked, dropped]])
        assert found.anchored_T.tolist() == expected and found.policy_T.tolist() == [False, True]
        assert not left.any_T.any()
