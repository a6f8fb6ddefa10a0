"""The draw of a token: the distribution that it follows, its exact log-prob and entropy, and rows that stay apart."""

from __future__ import annotations

import pytest
import torch
from exactness import assert_exact
from tiny import BANNED
from torch import Tensor

from mm_spine.policy.distribution import Distribution, entropy_of
from mm_spine.sampling import draw as drawing
from mm_spine.sampling.draw import Drawn, draw

PLAIN = Distribution()
SMALL, LARGE = 423, 5000
"""Vocabularies that are drawn from whole and in blocks; the last block of the second is not full."""


def random_logits(rows: int, vocab: int, spread: float = 1.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def numbers(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edges(logits_RV: Tensor, distribution: Distribution) -> Tensor:
    """The cumulative distribution, in float64."""
    return distribution.scaled(logits_RV).double().softmax(-1).cumsum(-1)


def assert_same(one: Drawn, other: Drawn) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_draw_at_either_end_of_the_interval_is_a_token_of_positive_probability(uniform: float, vocab: int) -> None:
    # Whole blocks without probability at both ends, too.
    banned = (*range(140), *BANNED, *range(vocab - 140, vocab))
    for top_p in (1.0, 0.9):
        logits, at = random_logits(64, vocab), torch.full((64,), uniform).double()
        token = draw(logits, at, Distribution(1.0, banned), top_p=top_p).token_R
        assert not set(token.tolist()) & set(banned)


@pytest.mark.parametrize("vocab", [30, 1024, 1025, LARGE])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_evenly_spaced_draws_give_each_token_its_share(top_p: float, vocab: int) -> None:
    """The inverse of the cumulative distribution, exactly: counts over a grid of uniforms are N pi to within one."""
    count = 4000
    grid = (torch.arange(count).double() + 0.5) / count
    logits = random_logits(1, vocab, 2.0)
    ranked, order = logits[0].double().softmax(-1).sort(descending=True)
    size = int((ranked.cumsum(-1) < top_p).sum()) + 1 if top_p < 1 else vocab
    pi = torch.zeros(vocab).double().scatter(0, order[:size], ranked[:size] / ranked[:size].sum())
    token = draw(logits.expand(count, -1), grid, PLAIN, top_p=top_p).token_R
    assert (torch.bincount(token, minlength=vocab) - count * pi).abs().max() <= 1 + 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_each_row_draws_the_token_whose_share_holds_its_number(vocab: int, temperature: float) -> None:
    distribution = Distribution(temperature, (3, 200, vocab - 1))
    logits, uniform_R = random_logits(300, vocab, 3.0), numbers(300)
    ends = edges(logits, distribution)
    expected = torch.searchsorted(ends, uniform_R[:, None], right=True)[:, 0]
    near = (ends - uniform_R[:, None]).abs().amin(-1) < 1e-7
    found = draw(logits, uniform_R, distribution).token_R
    assert ((found == expected) | near).all() and near.double().mean() < 0.1


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("bf16", [False, True])
def test_blocks_draw_what_the_whole_distribution_draws(spread: float, bf16: bool) -> None:
    """To the bit, also at boundaries: every uniform lies within 1e-9 of one, on either side."""
    logits = random_logits(300, LARGE, spread)
    logits = logits.bfloat16() if bf16 else logits
    ends = PLAIN.log_probs(logits).double().exp().cumsum(-1)
    at = torch.arange(300)
    off = torch.where(at % 2 == 0, 1e-9, -1e-9)
    uniform_R = (ends[at, at * 15] / ends[:, -1] + off).clamp(0, 1 - 2**-53)
    barred = [(row, token) for row in range(0, 300, 3) for token in range(row, row + 9)]
    for pairs in ([], barred):
        whole = drawing.draw_whole(logits, uniform_R, PLAIN, pairs, 1.0)
        assert torch.equal(draw(logits, uniform_R, PLAIN, barred=pairs).token_R, whole.token_R)


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_log_probs_and_entropies_in_blocks_are_exact(spread: float, shift: float) -> None:
    distribution = Distribution(0.8, (17, LARGE - 1))
    logits = random_logits(40, LARGE, spread) + shift
    drawn = draw(logits, numbers(40), distribution)

    def values(log_probs: Tensor) -> list[Tensor]:
        return [log_probs.gather(-1, drawn.token_R[:, None])[:, 0], entropy_of(log_probs)]

    exact = distribution.scaled(logits).double().log_softmax(-1)
    assert_exact(list(drawn[1:]), values(distribution.log_probs(logits)), values(exact))
    assert drawn.logp_R.dtype == drawn.entropy_R.dtype == torch.float32


def test_a_certain_token_has_no_entropy_and_is_drawn() -> None:
    logits = random_logits(5, LARGE).index_fill(-1, torch.tensor([4321]), 60.0)
    for uniform_R in (None, numbers(5)):
        drawn = draw(logits, uniform_R, PLAIN)
        assert drawn.token_R.tolist() == [4321] * 5
        assert drawn.logp_R.abs().max() < 1e-6 and 0 <= drawn.entropy_R.max() < 1e-6


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_a_row_draws_the_same_in_any_company(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniform_R = random_logits(23, vocab), numbers(23)
    barred = [(row, token) for row in (4, 20) for token in range(50)]
    together = draw(logits, uniform_R, PLAIN, barred=barred)
    backwards = draw(logits.flip(0), uniform_R.flip(0), PLAIN, barred=[(22 - row, token) for row, token in barred])
    assert_same(together, Drawn(*(column.flip(0) for column in backwards)))
    monkeypatch.setattr(drawing, "PIECE_BYTES", 4 * vocab * 5)
    assert_same(together, draw(logits, uniform_R, PLAIN, barred=barred))
    for row in range(23):
        pairs = [(0, token) for at, token in barred if at == row]
        alone = draw(logits[row, None], uniform_R[row, None], PLAIN, barred=pairs)
        assert_same(alone, Drawn(*(column[row, None] for column in together)))


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
@pytest.mark.parametrize("greedy", [False, True])
def test_barred_tokens_are_left_out_of_the_draw_but_not_of_what_is_reported(vocab: int, greedy: bool) -> None:
    logits, uniform_R = random_logits(50, vocab, 3.0), None if greedy else numbers(50)
    likely = logits.argsort(-1, descending=True)[:, :20]
    pairs = [(row, int(token)) for row in range(0, 50, 2) for token in likely[row]]
    drawn, free = draw(logits, uniform_R, PLAIN, barred=pairs), draw(logits, uniform_R, PLAIN)
    rows, tokens = torch.tensor(pairs).T
    left = logits.index_put((rows, tokens), torch.tensor(-torch.inf))
    expected = draw(left, uniform_R, PLAIN).token_R
    near = torch.zeros(50, dtype=torch.bool)
    if uniform_R is not None:
        near = (edges(left, PLAIN) - uniform_R[:, None]).abs().amin(-1) < 1e-7
    assert ((drawn.token_R == expected) | near).all() and (drawn.token_R[::2] != free.token_R[::2]).any()
    log_probs = PLAIN.log_probs(logits)
    torch.testing.assert_close(drawn.logp_R, log_probs.gather(-1, drawn.token_R[:, None])[:, 0], atol=3e-6, rtol=0)
    torch.testing.assert_close(drawn.entropy_R, entropy_of(log_probs), atol=1e-5, rtol=0)
    assert torch.equal(drawn.token_R[1::2], free.token_R[1::2])


def test_a_nucleus_is_that_of_the_tokens_that_are_not_barred() -> None:
    logits = torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log().expand(4, -1)
    uniform_R = torch.tensor([0.0, 0.5, 0.6, 0.99]).double()
    barred = [(row, 0) for row in range(4)]
    assert draw(logits, uniform_R, PLAIN, barred=barred, top_p=0.6).token_R.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_shows_it_and_touches_no_other(vocab: int, broken: float) -> None:
    logits, uniform_R = random_logits(6, vocab), numbers(6)
    whole = draw(logits, uniform_R, PLAIN)
    logits[2, 7] = broken
    for numbers_R in (uniform_R, None):
        drawn = draw(logits, numbers_R, PLAIN)
        assert drawn.entropy_R.isfinite().tolist() == [True, True, False, True, True, True]
        assert (drawn.token_R >= 0).all() and (drawn.token_R < vocab).all()
    found = draw(logits, uniform_R, PLAIN)
    assert torch.equal(found.token_R[3:], whole.token_R[3:]) and torch.equal(found.entropy_R[:2], whole.entropy_R[:2])


def test_small_vocabularies_keep_their_digits() -> None:
    """Up to `WHOLE` tokens, results are those of the formula below to the bit: runs of `digits` do not change."""
    distribution, logits, uniform_R = Distribution(0.7, BANNED), random_logits(600, SMALL, 2.0), numbers(600)
    log_probs = distribution.log_probs(logits)
    cumulative = log_probs.double().exp().cumsum(-1)
    token = torch.searchsorted(cumulative, uniform_R[:, None] * cumulative[:, -1:], right=True)
    logp = log_probs.gather(-1, token)[:, 0]
    assert_same(draw(logits, uniform_R, distribution), Drawn(token[:, 0], logp, entropy_of(log_probs)))


def test_bf16_logits_are_drawn_from_in_fp32() -> None:
    logits, uniform_R = random_logits(9, LARGE).bfloat16(), numbers(9)
    assert_same(draw(logits, uniform_R, PLAIN), draw(logits.float(), uniform_R, PLAIN))
