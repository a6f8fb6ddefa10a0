"""What all backends share: a backend completes requests, and flat sampling is n requests a question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from mm_spine.config import DecodingConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.sampling import Completion, Request
from mm_spine.types import Question, Rollout


def end_ids(policy: Policy) -> tuple[int, ...]:
    """The token ids that end a response, by the model's generation config: one, several or none."""
    ends = policy.model.generation_config.eos_token_id
    return (ends,) if isinstance(ends, int) else tuple(ends or ())


class Backend(ABC):
    """Draws from `policy`'s distribution at `decoding.temperature`. `on_finished` hears while `complete` runs how many more
    requests are done; no draw depends on it."""

    def __init__(self, policy: Policy, decoding: DecodingConfig, seed: int = 0) -> None:
        self.policy, self.decoding, self.seed = policy, decoding, seed
        self.distribution = Distribution(decoding.temperature, policy.banned)
        self.ends = end_ids(policy)
        self.on_finished: Callable[[int], None] = lambda count: None

    @abstractmethod
    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        """The completions of requests whose questions `can_ask` allows, in order.

        Token t of a response is decided by (seed, purpose, step, question id, index, t) alone. A response has at most
        `decoding.max_new_tokens` tokens, its prefix included.
        """

    @abstractmethod
    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights after an update."""

    def ended(self, requests: Sequence[Request], entropies: bool) -> dict[int, Completion]:
        """Place -> empty completion of the prefixes that have ended or are full, with `entropies` or without."""
        reasons = {i: why for i, request in enumerate(requests) if (why := self._why_ended(request))}
        nothing = np.zeros(0, np.float32)
        self.on_finished(len(reasons))
        return {i: Completion((), nothing, nothing if entropies else None, why) for i, why in reasons.items()}

    def _why_ended(self, request: Request) -> str:
        if request.prefix and request.prefix[-1] in self.ends:
            return "stop"
        return "length" if len(request.prefix) >= self.decoding.max_new_tokens else ""

    def can_ask(self, question: Question) -> bool:
        """Whether `question` can be encoded and leaves room for an answer; if not, `policy.skipped` says why."""
        return self.policy.can_ask(question, self.decoding.max_new_tokens)

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`."""
        asked = [question for question in questions if self.can_ask(question)]
        requests = [Request(question, first + i) for question in asked for i in range(n)]
        completions = self.complete(requests, step=step, purpose=purpose, greedy=greedy)
        drawn = (self.rollout(*pair) for pair in zip(requests, completions, strict=True))
        return [[next(drawn) for _ in range(n)] if self.can_ask(question) else [] for question in questions]

    def rollout(self, request: Request, completion: Completion) -> Rollout:
        """The response of a request: `completion` holds all its tokens, those of a prefix too."""
        text = self.policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        tokens, logp, entropy, finish_reason = completion
        return Rollout(request.question.id, request.index, tokens, text, logp, entropy, finish_reason)
