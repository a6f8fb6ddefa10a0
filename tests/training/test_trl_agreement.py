"""TRL's own entropy mask and GRPO loss equal ours on the same tensors, where the definitions coincide."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import mm_spine  # noqa: F401  (heals a torchvision that would stop trl's import)
from mm_spine.methods.credit import advantages
from mm_spine.methods.terms import clipped_share, clipped_surrogate, denominator, kl_k3, weighted_mean
from mm_spine.methods.weights import select, top_quantile

pytest.importorskip("trl", reason="TRL is not installed: agreement with its GRPO is not checked (dev extra)")

# Importing TRL's trainer takes more than ten seconds.
pytestmark = pytest.mark.slow

LENGTHS = [7, 1, 12, 0, 5]
WIDTH = 12


@pytest.fixture(scope="module")
def grpo() -> Any:
    return pytest.importorskip("trl.trainer.grpo_trainer", reason="this TRL has no GRPO trainer")


def one_process() -> SimpleNamespace:
    """The three calls of `accelerate.Accelerator` that the mask and the loss make, on one process."""
    return SimpleNamespace(
        pad_across_processes=lambda tensor, **_: tensor,
        gather=lambda tensor: tensor,
        reduce=lambda tensor, **_: tensor,
        num_processes=1,
    )


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    matrix, mask = torch.zeros(len(rows), WIDTH), torch.zeros(len(rows), WIDTH, dtype=torch.long)
    for i, row in enumerate(rows):
        matrix[i, : len(row)], mask[i, : len(row)] = row, 1
    return matrix, mask


def random_rows(seed: int, decimals: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.rand(length, generator=generator) * 3 for length in LENGTHS]
    return rows if decimals is None else [row.round(decimals=decimals) for row in rows]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("decimals", [None, 0], ids=["distinct", "ties"])
def test_batch_scope_quantile_mask(grpo, share: float, decimals: int | None) -> None:
    trainer = SimpleNamespace(accelerator=one_process())
    for seed in range(20):
        rows = random_rows(seed, decimals)
        theirs = grpo.GRPOTrainer.get_high_entropy_mask(trainer, *padded(rows), 1 - share)
        ours = select(rows, partial(top_quantile, share=share), "batch")
        assert padded([mask.float() for mask in ours])[0].bool().equal(theirs)


def test_all_equal_entropies(grpo) -> None:
    rows = [torch.full((length,), 0.3) for length in LENGTHS]
    theirs = grpo.GRPOTrainer.get_high_entropy_mask(SimpleNamespace(accelerator=one_process()), *padded(rows), 0.8)
    assert int(theirs.sum()) == sum(LENGTHS)
    assert all(mask.all() for mask in select(rows, partial(top_quantile, share=0.2), "batch"))


def their_loss(grpo, batch: dict[str, Tensor], logp: Tensor, entropy: Tensor, **options) -> tuple[Tensor, dict]:
    """Run TRL's `_compute_loss` with the model's outputs given; return the loss and the metrics it logged."""
    arguments = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    trainer = SimpleNamespace(
        accelerator=one_process(),
        args=arguments,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        importance_sampling_level="token",
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        use_vllm=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, entropy, None),
        **options,
    )
    trainer.get_high_entropy_mask = partial(grpo.GRPOTrainer.get_high_entropy_mask, trainer)
    return grpo.GRPOTrainer._compute_loss(trainer, None, batch), trainer._metrics["train"]


def our_loss(
    batch: dict[str, Tensor], logp: Tensor, entropy_rows: list[Tensor], share: float, beta: float, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The surrogate on the forks plus k3 on all tokens, and the clip mask; all means over all response tokens."""
    all_ = batch["completion_mask"]
    forks = padded([mask.float() for mask in select(entropy_rows, partial(top_quantile, share=share), "batch")])[0]
    arguments = (logp, batch["old_per_token_logps"], batch["advantages"][:, None], 0.2, 0.28)
    tokens = denominator(all_.sum(1), forks.sum(1), weights, "all")
    policy = weighted_mean(clipped_surrogate(*arguments), forks, weights, tokens)
    anchor = weighted_mean(kl_k3(logp, batch["ref_per_token_logps"]), all_, weights, tokens)
    return beta * anchor - policy, clipped_share(*arguments)


def random_batch(seed: int, lengths: list[int]) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, len(lengths), WIDTH, generator=generator)
    logp = -draw().abs()
    entropy = [torch.rand(length, generator=generator) * 3 for length in lengths]
    batch = {
        "prompt_ids": torch.zeros(len(lengths), 2, dtype=torch.long),
        "prompt_mask": torch.ones(len(lengths), 2, dtype=torch.long),
        "completion_ids": torch.zeros(len(lengths), WIDTH, dtype=torch.long),
        "completion_mask": padded(entropy)[1],
        "advantages": torch.randn(len(lengths), generator=generator),
        "old_per_token_logps": logp + 0.3 * draw(),
        "ref_per_token_logps": logp + 0.3 * draw(),
        "num_items_in_batch": torch.tensor(float(sum(lengths))),
    }
    return batch, logp, entropy


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo", "grpo"])
@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradient(grpo, loss_type: str, share: float, beta: float) -> None:
    """The types "bnpo" and "dapo" average over tokens, as we do; "grpo" over responses: a weight 1/T per response."""
    lengths = [7, 1, 12, 5]
    batch, logp, entropy = random_batch(3, lengths)
    options: dict[str, Any] = {"loss_type": loss_type, "top_entropy_quantile": share, "beta": beta}
    options |= {"epsilon_low": 0.2, "epsilon_high": 0.28}
    weights = 1 / torch.tensor(lengths) if loss_type == "grpo" else torch.ones(len(lengths))

    theirs_at, ours_at = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    theirs, metrics = their_loss(grpo, batch, theirs_at, padded(entropy)[0], **options)
    ours, clipped = our_loss(batch, ours_at, entropy, share, beta, weights)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)

    (their_gradient,) = torch.autograd.grad(theirs, theirs_at)
    (our_gradient,) = torch.autograd.grad(ours, ours_at)
    assert their_gradient.any()
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-7, rtol=1e-5)

    tokens = batch["completion_mask"].bool()
    assert metrics["clip_ratio/region_mean"][0] == pytest.approx(float(clipped[tokens].float().mean()))
    assert metrics["clip_ratio/region_mean"][0] > 0


def test_group_advantages_use_their_std(grpo) -> None:
    """TRL divides by the sample standard deviation of the group plus 1e-4."""
    rewards = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (grpo.nanstd(rewards, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(torch.stack(advantages(list(rewards), "group", "sample", 1e-4)), theirs)
