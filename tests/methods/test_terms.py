"""Policy term, band and KL: values worked by hand, gradients against central differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm_spine.methods.terms import (
    clipped_share,
    clipped_surrogate,
    denominator,
    hinge_band,
    kl_exact,
    kl_k3,
    weighted_mean,
)
from mm_spine.policy.distribution import entropy_of

INF = math.inf


def double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def check_gradient(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Assert that autograd's gradient of sum(function) is the central difference; return it."""
    point = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point).sum(), point)
    numeric = torch.zeros_like(at)
    for index in range(at.numel()):
        shift = torch.zeros_like(at)
        shift.view(-1)[index] = step
        numeric.view(-1)[index] = (function(at + shift).sum() - function(at - shift).sum()) / (2 * step)
    torch.testing.assert_close(gradient, numeric, atol=1e-8, rtol=1e-7)
    return gradient


class TestSurrogate:
    # Ratios on both sides of both clips, each with both signs of the advantage.
    ratios = double([0.5, 0.5, 0.9, 1.1, 1.5, 1.5])
    signs = double([2.0, -2.0, 2.0, -2.0, 2.0, -2.0])

    def test_values_by_hand(self) -> None:
        # 0.5: min(1, 1.6) = 1 and min(-1, -1.6) = -1.6; inside: rho A; 1.5: min(3, 2.4) = 2.4 and min(-3, -2.4) = -3.
        value = clipped_surrogate(self.ratios.log(), torch.zeros(6, dtype=torch.float64), self.signs)
        torch.testing.assert_close(value, double([1.0, -1.6, 1.8, -2.2, 2.4, -3.0]))

    def test_the_clips_are_separate(self) -> None:
        # Clip-higher: 1.25 passes at 0.28 and not at 0.2; 0.75 with A < 0 is cut at 0.2 and not at 0.3.
        logp, old = double([1.25, 0.75]).log(), torch.zeros(2, dtype=torch.float64)
        advantage = double([1.0, -1.0])
        torch.testing.assert_close(clipped_surrogate(logp, old, advantage), double([1.2, -0.8]))
        torch.testing.assert_close(clipped_surrogate(logp, old, advantage, 0.3, 0.28), double([1.25, -0.75]))
        assert clipped_share(logp, old, advantage).tolist() == [True, True]
        assert clipped_share(logp, old, advantage, 0.3, 0.28).tolist() == [False, False]
        torch.testing.assert_close(clipped_surrogate(logp, old, advantage, 0.1, 0.3), double([1.25, -0.9]))
        assert clipped_share(logp, old, advantage, 0.1, 0.3).tolist() == [False, True]
        torch.testing.assert_close(clipped_surrogate(logp, old, advantage, 0.3, 0.1), double([1.1, -0.75]))
        assert clipped_share(logp, old, advantage, 0.3, 0.1).tolist() == [True, False]

    def test_gradients_on_all_sides(self) -> None:
        old = double([-1.0, -0.5, -2.0, -0.1, -3.0, -1.5])
        gradient = check_gradient(lambda logp: clipped_surrogate(logp, old, self.signs), old + self.ratios.log())
        # Where the clip is active 0, elsewhere rho A.
        torch.testing.assert_close(gradient, double([1.0, 0.0, 1.8, -2.2, 0.0, -3.0]))

    def test_clipped_is_where_the_gradient_is_cut(self) -> None:
        logp = self.ratios.log().requires_grad_()
        old = torch.zeros(6, dtype=torch.float64)
        clipped = clipped_share(logp, old, self.signs)
        assert clipped.tolist() == [False, True, False, False, True, False]
        (gradient,) = torch.autograd.grad(clipped_surrogate(logp, old, self.signs).sum(), logp)
        assert clipped.equal(gradient == 0)

    def test_on_policy_it_is_the_policy_gradient(self) -> None:
        logp = double([-0.5, -1.0]).requires_grad_()
        advantage = double([0.7, -0.3])
        (gradient,) = torch.autograd.grad(clipped_surrogate(logp, logp.detach(), advantage).sum(), logp)
        assert gradient.tolist() == [0.7, -0.3]
        assert not clipped_share(logp, logp.detach(), advantage).any()

    def test_one_advantage_per_row(self) -> None:
        value = clipped_surrogate(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([[1.0], [-2.0]]))
        assert value.tolist() == [[1.0] * 3, [-2.0] * 3]

    @settings(max_examples=50)
    @given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
    def test_a_zero_advantage_trains_nothing(self, log_ratios, clip_low, clip_high) -> None:
        logp = double(log_ratios).requires_grad_()
        value = clipped_surrogate(logp, torch.zeros_like(logp), torch.zeros_like(logp), clip_low, clip_high)
        (gradient,) = torch.autograd.grad(value.sum(), logp)
        assert not value.any() and not gradient.any()


class TestBand:
    low, high = double([0.5]), double([1.0])

    def test_values_by_hand(self) -> None:
        below, above = hinge_band(double([0.2, 0.5, 0.7, 1.0, 1.4]), self.low, self.high)
        torch.testing.assert_close(below, double([0.3, 0, 0, 0, 0]))
        torch.testing.assert_close(above, double([0, 0, 0, 0, 0.4]))

    def test_gradients_of_both_hinges(self) -> None:
        at = double([0.2, 0.7, 1.4])
        assert check_gradient(lambda h: hinge_band(h, self.low, self.high)[0], at).tolist() == [-1.0, 0.0, 0.0]
        assert check_gradient(lambda h: hinge_band(h, self.low, self.high)[1], at).tolist() == [0.0, 0.0, 1.0]

    def test_on_a_bound_nothing_pulls(self) -> None:
        entropy = torch.full((4,), 0.3, requires_grad=True)
        below, above = hinge_band(entropy, torch.tensor(0.3), torch.tensor(0.3))
        for hinge in (below, above):
            (gradient,) = torch.autograd.grad(hinge.sum(), entropy, retain_graph=True)
            assert not gradient.any()

    def test_through_the_entropy_to_the_logits(self) -> None:
        # Entropies of the rows: about 0.13 (below 0.5), 0.97 (inside), 1.38 (above 1).
        logits = double([[4.0, 0, 0, 0], [2.0, 1.0, 0.0, -2.0], [0.1, 0.0, 0.0, 0.2]])
        entropies = entropy_of(logits.log_softmax(-1))
        assert [bool(h < 0.5) for h in entropies] == [True, False, False]
        assert [bool(h > 1.0) for h in entropies] == [False, False, True]

        def band(x: Tensor) -> Tensor:
            below, above = hinge_band(entropy_of(x.log_softmax(-1)), self.low, self.high)
            return 0.7 * below + 0.2 * above

        gradient = check_gradient(band, logits)
        assert [bool(row.any()) for row in gradient] == [True, False, True]

    def test_a_bound_per_row(self) -> None:
        _, above = hinge_band(torch.ones(2, 2), torch.zeros(2, 1), torch.tensor([[0.25], [2.0]]))
        assert above.tolist() == [[0.75, 0.75], [0.0, 0.0]]


class TestKl:
    def test_k3_by_hand(self) -> None:
        # pi 0.5, ref 0.25: r = log 1/2, 1/2 - 1 + log 2 = 0.193147. pi 0.25, ref 0.5: 2 - 1 - log 2 = 0.306853.
        value = kl_k3(double([0.5, 0.25, 0.3]).log(), double([0.25, 0.5, 0.3]).log())
        torch.testing.assert_close(value, double([0.19314718056, 0.30685281944, 0.0]))

    def test_k3_gradient(self) -> None:
        # d/dlogp (e^r - r - 1) = 1 - e^r: 1 - 1/2 and 1 - 2.
        gradient = check_gradient(lambda logp: kl_k3(logp, double([0.25, 0.5]).log()), double([0.5, 0.25]).log())
        torch.testing.assert_close(gradient, double([0.5, -1.0]))

    def test_k3_is_exact_for_small_differences(self) -> None:
        # r^2/2 for r = 1e-4 is 5e-9, below the rounding of exp(r) - 1 in float32.
        value = kl_k3(torch.tensor(-1e-4), torch.tensor(0.0))
        assert float(value) == pytest.approx(5e-9, rel=5e-3)

    @settings(max_examples=50)
    @given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.lists(st.floats(-5, 5), min_size=4, max_size=4))
    def test_k3_is_unbiased_for_the_exact_kl(self, logits, ref_logits) -> None:
        log_pi, log_ref = double(logits).log_softmax(-1), double(ref_logits).log_softmax(-1)
        expected = (log_pi.exp() * kl_k3(log_pi, log_ref)).sum()
        torch.testing.assert_close(expected, kl_exact(log_pi, log_ref), atol=1e-9, rtol=1e-7)
        assert (kl_k3(log_pi, log_ref) >= -1e-12).all()

    def test_exact_by_hand(self) -> None:
        # pi (3/4, 1/4) against (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2 = 0.130812; the reverse direction is 0.143841.
        pi, ref = double([[0.75, 0.25], [0.5, 0.5]]).log(), double([[0.5, 0.5], [0.75, 0.25]]).log()
        torch.testing.assert_close(kl_exact(pi, ref), double([0.13081203594, 0.14384103622]))
        assert kl_exact(pi, pi).tolist() == [0.0, 0.0]

    def test_exact_gradient(self) -> None:
        ref = double([[0.1, -0.4, 1.2], [0.0, 2.0, -1.0]]).log_softmax(-1)
        logits = double([[1.0, 0.0, -1.0], [0.3, 0.3, 0.2]])
        assert check_gradient(lambda x: kl_exact(x.log_softmax(-1), ref), logits).any()

    def test_tokens_banned_on_both_sides(self) -> None:
        # The third token is banned: the numbers are those of the first two, and its gradient is 0.
        log_pi = double([[0.75, 0.25, 0.0]]).log().requires_grad_()
        value = kl_exact(log_pi, double([[0.5, 0.5, 0.0]]).log())
        torch.testing.assert_close(value, double([0.13081203594]))
        (gradient,) = torch.autograd.grad(value.sum(), log_pi)
        # pi (log pi - log ref + 1).
        expected = [0.75 * (math.log(1.5) + 1), 0.25 * (math.log(0.5) + 1), 0.0]
        torch.testing.assert_close(gradient, double([expected]))

    def test_through_masked_logits(self) -> None:
        free = double([[1.0, 0.0, -1.0]])
        ref = double([[0.5, 0.2, 0.3, -INF]]).log_softmax(-1)

        def masked(x: Tensor) -> Tensor:
            return torch.cat([x, torch.full((1, 1), -INF, dtype=torch.float64)], dim=1).log_softmax(-1)

        check_gradient(lambda x: kl_exact(masked(x), ref), free)
        check_gradient(lambda x: entropy_of(masked(x)), free)

    def test_banned_by_the_policy_alone(self) -> None:
        # 1 (log 1 - log 1/2) = log 2.
        log_pi = double([[0.0, -INF]]).requires_grad_()
        value = kl_exact(log_pi, double([[0.5, 0.5]]).log())
        torch.testing.assert_close(value, double([math.log(2)]))
        (gradient,) = torch.autograd.grad(value.sum(), log_pi)
        torch.testing.assert_close(gradient, double([[math.log(2) + 1, 0.0]]))

    def test_banned_by_the_reference_alone_is_infinite_without_nan(self) -> None:
        log_pi = torch.tensor([[-0.1, -300.0]], requires_grad=True)  # exp(-300) underflows in float32
        value = kl_exact(log_pi, torch.tensor([[0.0, -INF]]))
        assert value.tolist() == [INF]
        (gradient,) = torch.autograd.grad(value.sum(), log_pi)
        assert gradient.isfinite().all()


class TestEntropy:
    def test_by_hand(self) -> None:
        # Uniform over 4: log 4. (1/2, 1/4, 1/4): 1.5 log 2. A certain token: 0. Banned tokens add nothing.
        log_probs = double([[0.25] * 4, [0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
        torch.testing.assert_close(entropy_of(log_probs), double([math.log(4), 1.5 * math.log(2), 0.0]))

    def test_gradient(self) -> None:
        check_gradient(lambda x: entropy_of(x.log_softmax(-1)), double([[1.0, 0.0, -1.0], [0.2, 0.1, 0.0]]))

    def test_banned_tokens_have_gradient_zero(self) -> None:
        log_probs = double([[0.5, 0.5, 0.0]]).log().requires_grad_()
        (gradient,) = torch.autograd.grad(entropy_of(log_probs).sum(), log_probs)
        # -p (log p + 1).
        torch.testing.assert_close(gradient, double([[0.5 * (math.log(2) - 1)] * 2 + [0.0]]))

    def test_no_positions(self) -> None:
        assert entropy_of(torch.zeros(0, 5)).shape == (0,)
        assert kl_exact(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


class TestMeans:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])

    def test_by_hand(self) -> None:
        # (1 + 3) * 2 + 5 * 1 = 13, over 10.
        weights = torch.tensor([2.0, 1.0])
        for shape in (weights, weights[:, None], weights[:, None].expand(2, 3)):
            assert float(weighted_mean(self.values, self.mask, shape, torch.tensor(10.0))) == pytest.approx(1.3)

    def test_one_weight_per_row_of_a_square(self) -> None:
        # Rows, not columns: 2 (1 + 1) + 0 (1 + 1) = 4.
        full = torch.ones(2, 2)
        assert float(weighted_mean(full, full.bool(), torch.tensor([2.0, 0.0]), torch.tensor(1.0))) == 4.0

    def test_nothing_over_nothing_is_zero(self) -> None:
        values = torch.tensor([1.0, 2.0], requires_grad=True)
        mean = weighted_mean(values, torch.zeros(2, dtype=torch.bool), torch.ones(2), torch.tensor(0.0))
        (gradient,) = torch.autograd.grad(mean, values)
        assert mean.item() == 0.0
        assert gradient.tolist() == [0.0, 0.0]
        assert float(weighted_mean(torch.zeros(0), torch.zeros(0), torch.zeros(0), torch.tensor(0.0))) == 0.0

    def test_what_the_mask_hides_is_not_read(self) -> None:
        values = torch.tensor([1.0, math.nan, INF], requires_grad=True)
        mean = weighted_mean(values, torch.tensor([1.0, 0.0, 0.0]), torch.ones(3), torch.tensor(2.0))
        (gradient,) = torch.autograd.grad(mean, values)
        assert mean.item() == 0.5
        assert gradient.tolist() == [0.5, 0.0, 0.0]

    def test_the_dtype_of_the_values_stays(self) -> None:
        mean = weighted_mean(self.values, self.mask, torch.ones(2), torch.tensor(3.0, dtype=torch.float64))
        assert mean.dtype == torch.float32

    def test_denominators_by_hand(self) -> None:
        # All: 3 * 2 + 5 * 1 + 0 * 7 = 11; selected: 1 * 2 + 2 * 1 + 0 = 4.
        lengths, selected, weights = torch.tensor([3, 5, 0]), torch.tensor([1, 2, 0]), torch.tensor([2, 1, 7])
        assert float(denominator(lengths, selected, weights, "all")) == 11.0
        assert float(denominator(lengths, selected, weights, "selected")) == 4.0

    def test_a_weight_is_that_many_copies(self) -> None:
        # A leaf of weight 2 is the same as the leaf twice.
        lengths, selected = torch.tensor([3, 3]), torch.tensor([2, 1])
        once = weighted_mean(
            self.values,
            self.mask,
            torch.tensor([2.0, 1.0]),
            denominator(lengths, selected, torch.tensor([2, 1]), "all"),
        )
        index = [0, 0, 1]
        copies = denominator(lengths[index], selected[index], torch.ones(3), "all")
        torch.testing.assert_close(once, weighted_mean(self.values[index], self.mask[index], torch.ones(3), copies))
