"""What all backends share: a backend completes requests, and flat sampling is n requests per question."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mm_spine.config import DecodingConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import NotFinite, ParityError
from mm_spine.policy.model import Policy
from mm_spine.processors.answers.extraction import closes_thinking, opened_thinking
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.phase import Phase, Script, Waves, drive
from mm_spine.types import Question, Rollout

log = logging.getLogger(__name__)

NEARLY_ALL = 0.95
"""Share of responses that are cut off at the limit from which a step warns. Our choice."""


def not_finite(request: Request) -> NotFinite:
    """Return the error for a request whose distribution is not finite."""
    return NotFinite(
        f"{request.question.id}: the policy's log-probs are not finite while it samples rollout {request.index}: the "
        "weights are broken; go on from the last checkpoint with a lower optim.lr, or fetch the model again"
    )


def assert_same_version(sampler: object, policy: Policy, step: int) -> None:
    """Raise ParityError if `sampler` drew with other weights than the policy's; a sampler without `version` passes."""
    version = getattr(sampler, "version", policy.version)
    if version != policy.version:
        raise ParityError(
            f"step {step}: the sampler drew with version {version} of the weights and the trainer has version "
            f"{policy.version}: call sampler.sync after every change of the weights"
        )


def warn_of_cut_responses(rollouts: Sequence[Rollout], step: int) -> bool:
    """Warn if nearly all of the responses were cut off at the limit; return whether it warned."""
    cut = sum(rollout.finish_reason == "length" for rollout in rollouts)
    if not rollouts or cut < NEARLY_ALL * len(rollouts):
        return False
    log.warning(
        "step %d: %d of %d responses were cut off at the limit without a token that ends them; raise "
        "sampling.max_new_tokens, or check that eos_token_id in the model's generation_config.json is the token that "
        "ends a turn",
        *(step, cut, len(rollouts)),
    )
    return True


TAG_TOKENS = 16
"""Tokens at the end of a prompt in which a tag that opens a block of thinking is looked for."""


class Backend(ABC):
    """Draw responses from `policy`'s distribution at `decoding.temperature`.

    A backend completes requests; one whose engine takes further requests while others are drawn has a `phase` of its
    own. While either runs, it calls `on_finished` with how many more requests are finished. No draw depends on it.
    `version` is the policy's version (`Policy.version`) whose weights it samples with; `gives_entropies` says whether
    completions have entropies.
    """

    gives_entropies = True
    # The tag of thinking with which the chat template opens a response, "" for none; None until it is known.
    _opening: str | None = None

    def __init__(self, policy: Policy, decoding: DecodingConfig, seed: int = 0) -> None:
        self.policy, self.decoding, self.seed = policy, decoding, seed
        self.distribution = Distribution(decoding.temperature, policy.banned)
        self.ends = policy.end_ids
        self.version = policy.version
        self.on_finished: Callable[[int], None] = lambda count: None

    @abstractmethod
    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        """Return the completions of the requests in order; `can_ask` must be true of their questions.

        Token t of a response depends on the policy and (seed, purpose, step, question id, index, t), and on nothing
        else. A response has at most `decoding.max_new_tokens` tokens, its prefix included.
        """

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights, named as `Policy.trainable` names them, after an update; and their version.

        A backend with weights of its own loads them here or before it samples again.
        """
        self.version = self.policy.version

    def ended(self, requests: Sequence[Request], entropies: bool) -> dict[int, Completion]:
        """Return place -> empty completion of the requests whose prefix has ended or is full already.

        Their entropies are empty, or None unless `entropies` is set.
        """
        nothing = np.zeros(0, np.float32)
        done: dict[int, Completion] = {}
        for i, request in enumerate(requests):
            stopped = bool(request.prefix) and request.prefix[-1] in self.ends
            if stopped or len(request.prefix) >= self.decoding.max_new_tokens:
                done[i] = Completion((), nothing, nothing if entropies else None, "stop" if stopped else "length")
        self.on_finished(len(done))
        return done

    def can_ask(self, question: Question) -> bool:
        """Return whether `question` can be encoded and leaves room for an answer; `policy.skipped` says why not."""
        return self.policy.can_ask(question, self.decoding.max_new_tokens)

    @contextmanager
    def phase(self, *, step: int, purpose: str, greedy: bool = False) -> Iterator[Phase[Request, Completion]]:
        """Open a phase of sampling. Here its requests are drawn in waves, each in one call of `complete`."""
        yield Waves(partial(self.complete, step=step, purpose=purpose, greedy=greedy))

    def run(self, scripts: Sequence[Script[Any]], *, step: int, purpose: str, greedy: bool = False) -> list[Any]:
        """Run scripts of requests to their ends in one phase; return their results, in order."""
        with self.phase(step=step, purpose=purpose, greedy=greedy) as phase:
            return drive(scripts, phase)

    def draw(self, question: Question, n: int, first: int = 0) -> Script[list[Rollout]]:
        """Draw the rollouts `first` to `first + n - 1` of `question`, as a script; none if it cannot be asked."""
        if not self.can_ask(question):
            return []
        requests = [Request(question, first + i) for i in range(n)]
        completions = yield requests
        return [self.rollout(*pair) for pair in zip(requests, completions, strict=True)]

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`."""
        scripts = [self.draw(question, n, first) for question in questions]
        return self.run(scripts, step=step, purpose=purpose, greedy=greedy)

    def rollout(self, request: Request, completion: Completion) -> Rollout:
        """Return the rollout of a request; `completion` holds all its tokens, those of the prefix too.

        A tag of thinking that the prompt ends with stands before the text of the tokens.

        Raises NotFinite for log-probs that are not finite.
        """
        if not np.isfinite(completion.logp).all():
            raise not_finite(request)
        if self._opening is None:
            # The chat template of some models that think opens the block. It is the same for all questions.
            end_of_prompt = self.policy.prompt(request.question).ids_L[-TAG_TOKENS:].tolist()
            self._opening = opened_thinking(self.policy.tokenizer.decode(end_of_prompt))
        text = self._opening + self.policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        tokens, logp, entropy, finish_reason = completion
        thinking = self._thinking(tokens) if closes_thinking(text) else None
        return Rollout(
            request.question.id, request.index, tokens, text, logp, entropy, finish_reason, thinking=thinking
        )

    def _thinking(self, tokens: Sequence[int]) -> int:
        """Return how many tokens there are up to the end of the first tag that closes a block of thinking."""
        # Once a beginning of the response has a whole tag, all longer ones have it.
        decode = self.policy.tokenizer.decode
        return bisect_left(range(len(tokens)), True, key=lambda n: closes_thinking(decode(tokens[:n])))
