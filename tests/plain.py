"""Responses, a step of groups, and gradients compared with those of plain transformers, for tests in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tiny import END, tiny_questions
from torch import Tensor

from mm_spine.config import LoraConfig, MethodConfig, ModelConfig
from mm_spine.methods.band import Bounds
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.model import Policy
from mm_spine.types import Group, Question, Rollout, Vote

TOLERANCE = 1e-5
LORA = ModelConfig(train="lora", lora=LoraConfig(rank=4, alpha=8.0))


def responses(lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Random tokens, the last one the end token."""
    rng = np.random.default_rng(seed)
    return [(*rng.integers(0, 415, length - 1).tolist(), END) for length in lengths]


def plain_name(name: str) -> str:
    """The name in transformers' model of a parameter of the text policy."""
    return "lm_head.weight" if name == "head.weight" else f"model.{name}"


def assert_gradients_equal(policy: Policy, gradients: dict[str, Tensor], plain: Any) -> None:
    """||g - g_ref|| <= 1e-5 ||g_ref|| for every trainable tensor, none silently zero, none missing."""
    reference = dict(plain.named_parameters())
    wanted = {n for n, p in reference.items() if "visual" not in n and p.requires_grad}
    assert {plain_name(name) for name in gradients} == wanted
    for name, gradient in gradients.items():
        expected = reference[plain_name(name)].grad
        assert expected is not None and expected.norm() > 0, name
        assert (gradient - expected).norm() <= TOLERANCE * expected.norm(), name


def gradients_of(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every trainable tensor, by name."""
    named = policy.trainable()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def case_questions(images: Sequence[int]) -> list[Question]:
    return [tiny_questions(i + 1, count)[i] for i, count in enumerate(images)]


OPTIONS = MethodConfig(kl="exact", kl_weight=0.3, band_low_weight=0.4, band_high_weight=0.7, unanimous="regularise")


class Step(NamedTuple):
    """A step's groups with everything the losses need, as the loop would hand it over."""

    groups: list[Group]
    tokens: list[list[Tokens]]


def make_step(seed: int = 0) -> Step:
    """Four questions, unequal groups, identical responses (in the first and third group), partial masks."""
    rng = np.random.default_rng(seed)
    lengths = ((6, 3, 3, 9), (4, 1, 12), (5, 5), (2, 7))
    questions = case_questions((1, 3, 0, 1))
    groups, tokens = [], []
    for i, question in enumerate(questions):
        drawn = responses(lengths[i], 30 + i)
        if i in (0, 2):
            drawn = [*drawn, drawn[0], drawn[0]]
        values: dict[tuple[int, ...], Any] = {}
        for t in drawn:
            values.setdefault(t, (rng.normal(-4, 1, len(t)), rng.normal(), tokens_for(len(t), rng)))
        rollouts = tuple(
            Rollout(question.id, n, t, "", values[t][0].astype(np.float32), None, "stop") for n, t in enumerate(drawn)
        )
        vote = Vote(None, 0.0, {}, 0.0, 0)
        advantages = torch.tensor([values[t][1] for t in drawn], dtype=torch.float32)
        nothing = (None,) * len(drawn)
        groups.append(Group(question, rollouts, nothing, vote, advantages, advantages, parsed=nothing))
        tokens.append([values[t][2] for t in drawn])
    return Step(groups, tokens)


def tokens_for(length: int, rng: np.random.Generator) -> Tokens:
    """Policy and band masks that overlap only in part, and bounds on both sides of the usual entropies."""
    policy, band = (torch.from_numpy(rng.random(length) < 0.6) for _ in range(2))
    policy[0] = band[-1] = True
    return Tokens(policy, band, Bounds(torch.tensor(3.0 + rng.random()), torch.tensor(3.5 + rng.random())))


@torch.no_grad()
def perturb(policy: Policy, scale: float, seed: int) -> None:
    """Move the trainable weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable().values():
        parameter += scale * torch.randn(parameter.shape, generator=generator)
