"""Token masks and bands, against numbers worked by hand, independent counts and properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm_spine.methods.weights import (
    everything,
    linear_quantile,
    lowest,
    otsu,
    otsu_threshold,
    select,
    top_k,
    top_quantile,
)

RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "top_quantile": partial(top_quantile, share=0.2),
    "top_k": partial(top_k, share=0.2),
    "lowest": partial(lowest, share=0.8),
    "otsu": otsu,
    "everything": everything,
}
TIES_ALL_IN = ("top_quantile", "lowest", "otsu", "everything")
entropies = st.lists(st.floats(0, 12, width=32), min_size=1, max_size=60).map(torch.tensor)
tied_entropies = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=60).map(torch.tensor)
shares = st.floats(0.01, 1.0)


def chosen(mask: Tensor) -> list[int]:
    assert mask.dtype == torch.bool
    return mask.nonzero().flatten().tolist()


class TestTopQuantile:
    def test_between_two_tokens(self) -> None:
        # Rank 0.8 * 4 = 3.2 of [0.1, 0.2, 0.3, 0.4, 0.9]: 0.4 + 0.2 * 0.5 = 0.5, so 0.9 alone.
        assert chosen(top_quantile(torch.tensor([0.4, 0.1, 0.9, 0.2, 0.3]), 0.2)) == [2]

    def test_a_whole_rank_selects_its_own_token(self) -> None:
        # Rank 0.8 * 10 = 8 of eleven: the third highest is the threshold, and is in.
        assert chosen(top_quantile(torch.arange(11.0), 0.2)) == [8, 9, 10]

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_whole_ranks_at_any_length(self, share: float, dtype: torch.dtype) -> None:
        # n - 1 = 10 m makes the rank whole: share * 10 m tokens above the threshold's own. torch.quantile loses
        # that one at times, e.g. of 51 at share 0.4 in float32.
        for tens in range(1, 60):
            entropy = torch.rand(10 * tens + 1, generator=torch.Generator().manual_seed(tens), dtype=dtype)
            assert int(top_quantile(entropy, share).sum()) == round(share * 10 * tens) + 1

    def test_ties_are_kept(self) -> None:
        # Rank 0.8 * 4 = 3.2 between 1 and 1: the threshold 1 has four tokens.
        assert chosen(top_quantile(torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]), 0.2)) == [0, 2, 3, 4]

    def test_fewer_than_five_tokens_give_one(self) -> None:
        # Rank 0.8 of [1, 3]: 1 + 0.8 * 2 = 2.6. Rank 1.6 of [1, 2, 3]: 2.6. Rank 2.4 of [1, 2, 3, 4]: 3.4.
        assert chosen(top_quantile(torch.tensor([3.0, 1.0]), 0.2)) == [0]
        assert chosen(top_quantile(torch.tensor([3.0, 1.0, 2.0]), 0.2)) == [0]
        assert chosen(top_quantile(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.2)) == [3]

    def test_everything_at_share_one(self) -> None:
        assert chosen(top_quantile(torch.tensor([0.3, 0.0, 2.0]), 1.0)) == [0, 1, 2]

    @settings(max_examples=200)
    @given(tied_entropies, shares)
    def test_at_least_the_share_with_all_ties(self, entropy: Tensor, share: float) -> None:
        mask = top_quantile(entropy, share)
        assert mask.any()
        if not mask.all():
            threshold = np.quantile(entropy.double().numpy(), 1 - share)
            assert entropy[mask].min() >= threshold - 1e-6
            assert entropy[~mask].max() < threshold + 1e-6
            assert entropy[~mask].max() < entropy[mask].min()
        assert int(mask.sum()) >= math.floor(share * len(entropy) + 1e-9)

    @settings(max_examples=200)
    @given(entropies, st.floats(0, 1))
    def test_the_quantile_is_numpys(self, entropy: Tensor, q: float) -> None:
        values = entropy.double()
        assert float(linear_quantile(values, q)) == pytest.approx(np.quantile(values.numpy(), q), abs=1e-5)

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
    @pytest.mark.parametrize("rule", [top_quantile, top_k, lowest])
    def test_a_share_outside_its_range_is_named(self, rule, share: float) -> None:
        with pytest.raises(ValueError, match=rf"\(0, 1\], found .*{abs(share)}"):
            rule(torch.tensor([1.0]), share)

    def test_no_quantile_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="no tokens"):
            linear_quantile(torch.tensor([]), 0.5)


class TestTopK:
    def test_rounds_up(self) -> None:
        # ceil(0.2 * 6) = 2.
        assert chosen(top_k(torch.tensor([0.4, 0.1, 0.9, 0.2, 0.3, 0.5]), 0.2)) == [2, 5]

    def test_the_earlier_position_wins_a_tie(self) -> None:
        assert chosen(top_k(torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]), 0.4)) == [1, 2]
        assert chosen(top_k(torch.full((64,), 0.7), 0.05)) == [0, 1, 2, 3]

    def test_a_whole_count_is_not_rounded_past(self) -> None:
        # In floating point 0.07 * 100 is 7.000000000000001.
        assert int(top_k(torch.arange(100.0), 0.07).sum()) == 7

    @settings(max_examples=200)
    @given(entropies, st.integers(1, 100))
    def test_the_count_is_exact(self, entropy: Tensor, percent: int) -> None:
        mask = top_k(entropy, percent / 100)
        assert int(mask.sum()) == -(-percent * len(entropy) // 100)
        if not mask.all():
            assert entropy[mask].min() >= entropy[~mask].max()


class TestLowest:
    def test_by_hand(self) -> None:
        # Linear quantile 0.8 of [0.1, 0.2, 0.3, 0.4, 0.9] is 0.5: all but 0.9.
        assert chosen(lowest(torch.tensor([0.4, 0.1, 0.9, 0.2, 0.3]), 0.8)) == [0, 1, 3, 4]

    def test_ties_and_at_least_one(self) -> None:
        # Quantile 0.1 of [0, 0, 0, 1] is 0, which three tokens share; of [1, 2] it is 1.1.
        assert chosen(lowest(torch.tensor([0.0, 1.0, 0.0, 0.0]), 0.1)) == [0, 2, 3]
        assert chosen(lowest(torch.tensor([2.0, 1.0]), 0.1)) == [1]

    @settings(max_examples=100)
    @given(entropies, shares)
    def test_at_least_the_share_with_all_ties(self, entropy: Tensor, share: float) -> None:
        mask = lowest(entropy, share)
        assert mask[entropy.argmin()]
        assert int(mask.sum()) >= math.floor(share * len(entropy) + 1e-9)
        if not mask.all():
            assert entropy[mask].max() < entropy[~mask].min()


def otsu_bin_by_definition(values: np.ndarray, bins: int) -> int:
    """Otsu's criterion written out: the split of the bins with the largest between-class variance, the first one."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    variances = []
    for end in range(1, bins):
        low, high = counts[:end], counts[end:]
        gap = np.average(centres[:end], weights=low) - np.average(centres[end:], weights=high)
        variances.append(low.sum() * high.sum() * gap**2)
    best = max(variances)
    return next(i for i, variance in enumerate(variances) if variance >= best * (1 - 1e-12))


class TestOtsu:
    def test_two_clusters(self) -> None:
        # [0, 0, 0, 1]: any split has the same variance, so the first bin ends the lower class: centre 0.005.
        entropy = torch.tensor([0.0, 0.0, 1.0, 0.0])
        assert otsu_threshold(entropy) == pytest.approx(0.005, abs=1e-12)
        assert chosen(otsu(entropy)) == [2]

    def test_the_first_of_equal_maxima(self) -> None:
        # [0, 1, 2] in 100 bins of 0.02: cutting off the 0 (bins 0-49) or the 2 (bins 50-98) is equally good.
        assert otsu_threshold(torch.tensor([0.0, 1.0, 2.0])) == pytest.approx(0.01, abs=1e-12)
        assert chosen(otsu(torch.tensor([0.0, 1.0, 2.0]))) == [1, 2]

    def test_three_clusters_by_hand(self) -> None:
        # Two tokens in each of bins 0, 40 and one in bin 99 of [0, 1]: cut after 0: w0 w1 = 2 * 3,
        # means 0 and (2*40+99)/3 = 59.67, variance 21361; after 40: 4 * 1, means 20 and 99: 24964. So bin 40.
        entropy = torch.tensor([0.0, 0.0, 0.402, 0.404, 1.0])
        assert otsu_threshold(entropy) == pytest.approx(0.405, abs=1e-12)
        assert chosen(otsu(entropy)) == [4]

    def test_the_threshold_splits_its_own_bin(self) -> None:
        # As above with 0.408 beyond the centre 0.405 of the bin that ends the lower class: pinned as selected.
        assert chosen(otsu(torch.tensor([0.0, 0.0, 0.402, 0.408, 1.0]))) == [3, 4]

    def test_few_bins(self) -> None:
        # Two bins of [0, 4]: the lower ends at bin 0, centre 1.
        assert otsu_threshold(torch.tensor([0.0, 0.9, 1.1, 4.0]), bins=2) == pytest.approx(1.0)
        assert chosen(otsu(torch.tensor([0.0, 0.9, 1.1, 4.0]), bins=2)) == [2, 3]
        with pytest.raises(ValueError, match="bins must be at least 2, found 1"):
            otsu_threshold(torch.tensor([0.0, 1.0]), bins=1)

    def test_all_equal_and_one_token(self) -> None:
        assert chosen(otsu(torch.full((4,), 0.7))) == [0, 1, 2, 3]
        assert chosen(otsu(torch.tensor([0.7]))) == [0]
        assert otsu_threshold(torch.full((4,), 0.5)) == 0.5

    def test_nearly_equal(self) -> None:
        # One step of float64 apart: narrower than 100 bins can resolve, so that some have no token below them.
        assert chosen(otsu(torch.tensor([1.0, math.nextafter(1.0, 2.0)], dtype=torch.float64))) == [1]

    @settings(max_examples=300)
    @given(st.one_of(entropies, tied_entropies), st.sampled_from([2, 7, 100]))
    def test_agrees_with_the_definition(self, entropy: Tensor, bins: int) -> None:
        values = entropy.double().numpy()
        if np.ptp(values) < 1e-3:
            return
        width = np.ptp(values) / bins
        threshold = values.min() + (otsu_bin_by_definition(values, bins) + 0.5) * width
        assert otsu_threshold(entropy, bins) == pytest.approx(threshold, abs=1e-9)
        assert otsu(entropy, bins)[entropy.argmax()]

    def test_does_not_depend_on_scale_or_order(self) -> None:
        entropy = torch.rand(500, generator=torch.Generator().manual_seed(1)) ** 3
        order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
        assert otsu(entropy[order]).equal(otsu(entropy)[order])
        assert otsu(entropy * 8).equal(otsu(entropy))


class TestSelect:
    def test_response_scope_works_on_each_alone(self) -> None:
        masks = select([torch.tensor([0.0, 1.0]), torch.tensor([5.0, 6.0, 7.0])], partial(top_k, share=0.3), "response")
        assert [chosen(mask) for mask in masks] == [[1], [2]]

    def test_batch_scope_pools_the_tokens(self) -> None:
        # ceil(0.3 * 5) = 2 of [0, 1, 5, 6, 7]: both in the second response, none in the first.
        masks = select([torch.tensor([0.0, 1.0]), torch.tensor([5.0, 6.0, 7.0])], partial(top_k, share=0.3), "batch")
        assert [chosen(mask) for mask in masks] == [[], [1, 2]]

    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    @pytest.mark.parametrize("scope", ["response", "batch"])
    def test_empty_responses_and_an_empty_batch(self, rule, scope) -> None:
        empty, full = torch.tensor([]), torch.tensor([0.1, 0.9, 0.4])
        masks = select([empty, full, empty], rule, scope)
        assert [len(mask) for mask in masks] == [0, 3, 0]
        assert all(mask.dtype == torch.bool for mask in masks)
        assert masks[1].equal(rule(full))
        assert [len(mask) for mask in select([empty, empty], rule, scope)] == [0, 0]
        assert select([], rule, scope) == []

    @pytest.mark.parametrize("name", RULES)
    @settings(max_examples=40)
    @given(entropy=st.one_of(entropies, tied_entropies))
    def test_the_scopes_agree_on_one_response(self, name: str, entropy: Tensor) -> None:
        (one,), (all_,) = (select([entropy], RULES[name], scope) for scope in ("response", "batch"))
        assert one.equal(all_)
        assert one.any()

    @pytest.mark.parametrize("name", TIES_ALL_IN)
    @settings(max_examples=60)
    @given(entropy=st.one_of(entropies, tied_entropies), seed=st.integers(0, 1000))
    def test_permuting_tokens_permutes_the_mask(self, name: str, entropy: Tensor, seed: int) -> None:
        order = torch.randperm(len(entropy), generator=torch.Generator().manual_seed(seed))
        assert RULES[name](entropy[order]).equal(RULES[name](entropy)[order])

    @pytest.mark.parametrize("name", TIES_ALL_IN)
    @pytest.mark.parametrize("length", [1, 2, 4, 50])
    def test_all_equal_selects_all(self, name: str, length: int) -> None:
        assert RULES[name](torch.full((length,), 0.3)).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_any_float_and_a_graph_behind_it(self, rule, dtype) -> None:
        entropy = torch.tensor([0.5, 0.25, 2.0, 1.0, 0.125], dtype=dtype)
        assert rule(entropy.clone().requires_grad_()).equal(rule(entropy.float()))

    def test_half_precision_is_interpolated_in_single(self) -> None:
        # The threshold 1 + 0.4/128 lies between neighbours of bfloat16, where it would round to 1 and take both.
        assert chosen(top_quantile(torch.tensor([1.0, 1 + 1 / 128], dtype=torch.bfloat16), 0.6)) == [1]
