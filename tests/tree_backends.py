"""Backends for tests of tree rollouts, and what is read from the rollouts.

`Plain` completes requests by whole forwards of transformers, token by token; `Scripted` without any model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from small import digit_policy
from tiny import END, entropy, plain_log_probs, tiny_policy, tiny_questions
from torch import Tensor

from mm_spine.config import DecodingConfig, TreeConfig
from mm_spine.draws import generator, uniforms
from mm_spine.policy.model import Policy
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.tree import (
    TreeSampler,
)
from mm_spine.types import Question, Rollout

QUESTIONS = tiny_questions(3)
CALL: Mapping[str, Any] = {"step": 3, "purpose": "train"}


class Watched(Backend):
    """A backend that remembers what each call was asked for, and what it drew."""

    def __init__(self, policy: Policy, decoding: DecodingConfig, seed: int = 0) -> None:
        super().__init__(policy, decoding, seed)
        self.calls: list[list[tuple[Request, Completion]]] = []

    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        uniform = [uniforms(self.decoding.max_new_tokens, self.seed, purpose, step, *named(r)) for r in requests]
        found = [self.one(*pair) for pair in zip(requests, uniform, strict=True)]
        self.calls.append(list(zip(requests, found, strict=True)))
        return found

    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        raise NotImplementedError

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        pass

    @property
    def drawn(self) -> int:
        """Tokens drawn so far."""
        return sum(len(completion.token_ids) for _, completion in chain(*self.calls))


def named(request: Request) -> tuple[str, int]:
    return request.question.id, request.index


class Plain(Watched):
    """A whole forward for every token; `silent` withholds the entropies."""

    def __init__(
        self, policy: Policy, decoding: DecodingConfig, seed: int = 0, model: Any = None, silent: bool = False
    ) -> None:
        super().__init__(policy, decoding, seed)
        self.model, self.silent = model or policy.model, silent

    @torch.no_grad()
    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        tokens, logp, certain = list(request.prefix), [], []
        while len(tokens) < len(uniform_T) and (not logp or tokens[-1] != END):
            log_probs = plain_log_probs(self.model, request.question, [*tokens, 0], self.decoding.temperature)[-1]
            probs = log_probs.double().exp()
            probs[[] if logp else list(request.barred)] = 0.0
            bounds = probs.cumsum(0)
            token = int(torch.searchsorted(bounds, float(uniform_T[len(tokens)]) * bounds[-1], right=True))
            tokens.append(token)
            logp.append(float(log_probs[token]))
            certain.append(float(entropy(log_probs)))
        own_entropy = None if self.silent else np.array(certain, np.float32)
        reason = "stop" if tokens[-1] == END else "length"
        return Completion(tuple(tokens[len(request.prefix) :]), np.array(logp, np.float32), own_entropy, reason)


class Scripted(Watched):
    """Roots as `script` says (question, index -> token ids, log-probs); branches go on with tokens above 200."""

    def __init__(self, policy: Policy, length: int, script: Callable[[str, int], tuple[Any, Any]]) -> None:
        super().__init__(policy, DecodingConfig(max_new_tokens=length))
        self.script = script

    def one(self, request: Request, uniform_T: np.ndarray) -> Completion:
        if request.prefix:
            tokens = 200 + (uniform_T[len(request.prefix) :] * 100).astype(int)
            logp = np.log(uniform_T[len(request.prefix) :].astype(np.float32))
        else:
            tokens, logp = (np.asarray(x) for x in self.script(*named(request)))
        return Completion(tuple(tokens.tolist()), logp.astype(np.float32), None, "length")


@cache
def policy() -> Policy:
    """Shared: nothing here trains it."""
    return tiny_policy(1)


@cache
def digits() -> Policy:
    """Shared likewise; its responses are short and end."""
    return digit_policy()


def plain(length: int = 8, silent: bool = False, seed: int = 0, own: Policy | None = None) -> Plain:
    return Plain(own or policy(), DecodingConfig(max_new_tokens=length, temperature=0.8), seed, silent=silent)


def trees(backend: Backend, n: int, questions: Sequence[Question] = QUESTIONS, **tree: Any) -> list[list[Rollout]]:
    """Tree rollouts of one call."""
    return TreeSampler(backend, TreeConfig(**tree)).sample(questions, n, **CALL)


def outline(rollouts: Iterable[Iterable[Rollout]]) -> list[Any]:
    """Everything but the log-probs and entropies, which other batches round otherwise."""
    names = ("question_id", "index", "token_ids", "text", "finish_reason", "parent", "fork_at", "weight")
    return [[getattr(rollout, name) for name in names] for rollout in chain(*rollouts)]


def branches(group: Sequence[Rollout]) -> list[tuple[Rollout, Rollout, int]]:
    """(root, branch, fork) of every branch of a question."""
    by_index = {r.index: r for r in group}
    return [(by_index[r.parent], r, r.fork_at) for r in group if r.parent is not None and r.fork_at is not None]


def random_script(length: int) -> Callable[[str, int], tuple[Any, Any]]:
    """Roots of random tokens and log-probs: forks fall anywhere."""

    def script(name: str, index: int) -> tuple[Any, Any]:
        rng = generator("script", name, index)
        return rng.integers(0, 200, length), -rng.exponential(1.0, length)

    return script
