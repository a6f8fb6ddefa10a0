"""Bounds of the entropy band, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from mm_spine.methods.band import band_bounds, median_mad_bounds, quantile_bounds


class TestBounds:
    def test_v1_by_hand(self) -> None:
        # Of [0, 1, 2, 3]: rank 0.3 -> 0.3; rank 1.5 -> 1.5. Defaults 0.10 and 0.50.
        low, high = quantile_bounds(torch.tensor([3.0, 0.0, 2.0, 1.0]))
        assert (float(low), float(high)) == pytest.approx((0.3, 1.5))
        low, high = quantile_bounds(torch.tensor([3.0, 0.0, 2.0, 1.0]), 0.25, 0.9)
        assert (float(low), float(high)) == pytest.approx((0.75, 2.7))

    def test_v2_by_hand(self) -> None:
        # [1, 2, 4, 7]: c = 3; deviations [2, 1, 1, 4], MAD 1.5, s = 2.2239.
        low, high = median_mad_bounds(torch.tensor([1.0, 2.0, 4.0, 7.0]))
        assert (float(low), float(high)) == pytest.approx((3 - 2.2239, 3.0))

    def test_v2_is_floored_at_zero(self) -> None:
        # [0, 1, 2]: c = 1, MAD 1, s = 1.4826 > c.
        assert tuple(map(float, median_mad_bounds(torch.tensor([0.0, 1.0, 2.0])))) == (0.0, 1.0)

    def test_v2_spread_has_a_floor(self) -> None:
        low, high = median_mad_bounds(torch.full((5,), 0.5, dtype=torch.float64))
        assert float(high) == 0.5
        assert float(high - low) == pytest.approx(1e-6, rel=1e-9)

    def test_one_fork(self) -> None:
        assert tuple(map(float, quantile_bounds(torch.tensor([0.7], dtype=torch.float64)))) == (0.7, 0.7)

    def test_bounds_of_nothing_are_refused(self) -> None:
        for rule in (quantile_bounds, median_mad_bounds):
            with pytest.raises(ValueError, match="no tokens"):
                rule(torch.tensor([]))

    def test_scopes(self) -> None:
        # Selected: [1, 3] and [5]. Alone: medians 2 and 5, 0.1-quantiles 1.2 and 5; pooled: 3 and 1.4.
        values = [torch.tensor([1.0, 9.0, 3.0]), torch.tensor([5.0, 0.0])]
        masks = [torch.tensor([True, False, True]), torch.tensor([True, False])]
        alone = band_bounds(values, masks, quantile_bounds, "response")
        assert [tuple(map(float, bounds)) for bounds in alone] == [pytest.approx((1.2, 2.0)), (5.0, 5.0)]
        pooled = band_bounds(values, masks, quantile_bounds, "batch")
        assert [tuple(map(float, bounds)) for bounds in pooled] == [pytest.approx((1.4, 3.0))] * 2

    @pytest.mark.parametrize("rule", [quantile_bounds, median_mad_bounds])
    def test_responses_without_forks(self, rule) -> None:
        values = [torch.tensor([]), torch.tensor([2.0, 2.0]), torch.tensor([1.0])]
        masks = [torch.tensor([], dtype=torch.bool), torch.tensor([True, True]), torch.tensor([False])]
        alone = band_bounds(values, masks, rule, "response")
        assert tuple(map(float, alone[0])) == tuple(map(float, alone[2])) == (0.0, 0.0)
        assert float(alone[1].high) == 2.0
        assert all(float(bounds.high) == 2.0 for bounds in band_bounds(values, masks, rule, "batch"))
        nothing = band_bounds(values[:1], masks[:1], rule, "batch")
        assert tuple(map(float, nothing[0])) == (0.0, 0.0)
        assert band_bounds([], [], rule, "batch") == []

    @pytest.mark.parametrize("rule", [quantile_bounds, median_mad_bounds])
    @pytest.mark.parametrize("scope", ["response", "batch"])
    def test_bounds_are_detached(self, rule, scope) -> None:
        entropy = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        (bounds,) = band_bounds([entropy], [torch.tensor([True, True, False])], rule, scope)
        assert not bounds.low.requires_grad and not bounds.high.requires_grad
        assert not rule(entropy).low.requires_grad
