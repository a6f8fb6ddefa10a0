"""Small policies that vLLM can serve on a CPU, and what tests ask of their rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TEMPERATURE, tiny_questions

from mm_spine.config import DecodingConfig, VLLMConfig
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.vllm.installed import why_not
from mm_spine.sampling.vllm.sampler import VLLMSampler
from mm_spine.types import Question, Rollout

needs_vllm = pytest.mark.skipif(bool(why_not()), reason=f"vLLM cannot run here: {why_not()}")
KINDS = ("qwen3_vl", "qwen2_vl", "qwen2", "qwen3", "llama", "mistral", "gemma3_text")
TOKEN_BYTES = 2 * 2 * 32 * 4
"""Keys and values of a token of the smallest policy: of 2 layers, 32 numbers each in fp32."""

EXACT = 1e-4
"""Nats: the most that a sampled token's log-prob may differ by from the trainer's, in fp32."""


def with_wide_heads(kind: str, tied: bool, usual: Any) -> Any:
    """The tiny configuration with heads of 32, the least that vLLM computes on a CPU."""
    config = usual(tied)
    text = getattr(config, "text_config", config)
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 2, 1, 32
    if kind.endswith("vl"):
        sections = {"qwen2_5_vl": [4, 6, 6], "qwen2_vl": [4, 6, 6], "qwen3_vl": [8, 4, 4]}[kind]
        text.rope_parameters = {**text.rope_parameters, "mrope_section": sections}
    return config


def sampler_of(policy: Policy, **decoding: Any) -> VLLMSampler:
    seed = decoding.pop("seed", 0)
    decoding = {"temperature": TEMPERATURE, "max_new_tokens": 12, **decoding}
    return VLLMSampler(policy, DecodingConfig(**decoding), VLLMConfig(), seed)


def mixed(count: int = 6) -> list[Question]:
    """Questions with one, two and no images."""
    return [tiny_questions(i + 1, (1, 2, 0)[i % 3])[i] for i in range(count)]


def sample(sampler: Backend, questions: Sequence[Question], n: int = 4, **call: Any) -> list[list[Rollout]]:
    return sampler.sample(questions, n, **{"step": 0, "purpose": "test", **call})


def ids(rollouts: Sequence[Sequence[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in row] for row in rollouts]


@torch.no_grad()
def gap(sampler: Backend, questions: Sequence[Question], rollouts: Sequence[Sequence[Rollout]]) -> float:
    """The largest difference of a sampled log-prob from the trainer's packed forward, in nats."""
    asked = [(question, [r.token_ids for r in row]) for question, row in zip(questions, rollouts, strict=True)]
    scores = score_responses(sampler.policy, asked, sampler.distribution)
    pairs = ((r.logp, s.logp) for row, own in zip(rollouts, scores, strict=True) for r, s in zip(row, own, strict=True))
    return max(float(np.abs(theirs - ours).max()) for theirs, ours in pairs)


def disturb(policy: Policy, seed: int, size: float = 0.02) -> None:
    """A change of every trainable weight."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += size * torch.randn(weight.shape, generator=noise)


def sync(sampler: Backend) -> None:
    sampler.sync(sampler.policy.trainable().items())
