"""Rollouts from vLLM: prompts with precomputed image features, and weights taken over after each update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mm_spine.config import ConfigError, DecodingConfig, RunStopped, VLLMConfig
from mm_spine.draws import generator
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.vllm.engine import VLLMEngine
from mm_spine.sampling.vllm.installed import why_not

MAX_TEMPERATURE = 2.0
"""The highest temperature that vLLM takes."""

LEAST_PROBABILITY = 2.0**-24
"""Half a unit in the last place of a float32 1: the least that may be left beside barred tokens."""

_engines: WeakKeyDictionary[Policy, VLLMEngine] = WeakKeyDictionary()


class VLLMSampler(Backend):
    """Sample with vLLM. All samplers of a policy share one engine, which takes over the weights before it samples.

    Log-probs are the policy's, also of greedy responses; only with `top_p` below 1 they are those of the nucleus.
    Entropies are None. A draw depends on the length of the request's prefix too, because vLLM draws in order.
    """

    def __init__(self, policy: Policy, decoding: DecodingConfig, config: VLLMConfig, seed: int = 0) -> None:
        """Start nothing yet. Raises ConfigError for a temperature that vLLM does not take."""
        super().__init__(policy, decoding, seed)
        if decoding.temperature > MAX_TEMPERATURE:
            raise ConfigError(
                f"temperature={decoding.temperature:g}: vLLM takes {MAX_TEMPERATURE:g} at most; lower it, or use "
                "sampling.backend=hf"
            )
        self.config = config
        self._banned = dict.fromkeys(policy.banned, -math.inf)
        if policy in _engines:
            _engines[policy].stale = True
        self._take_over_together()

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Have the engine take over the policy's trainable weights before it samples again."""
        # `weights` are the policy's own parameters; the engine reads them from the policy.
        super().sync(weights)
        if self.policy in _engines:
            _engines[self.policy].stale = True
        self._take_over_together()

    def _take_over_together(self) -> None:
        """With partitioned weights, give the engine the weights now: all ranks are here, and later one may not be."""
        if self.policy.partitioned:
            with self._engine().ready(self.policy):
                pass

    @torch.no_grad()
    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        """See `Backend.complete`. Raises SamplerDied if the engine fails, RunStopped for a request without room."""
        done = self.ended(requests, entropies=False)
        going = [i for i in range(len(requests)) if i not in done]
        with self._engine().ready(self.policy) if going else nullcontext():
            for at in range(0, len(going), self.decoding.batch_rows):
                chosen = going[at : at + self.decoding.batch_rows]
                completions = self._complete([requests[i] for i in chosen], step, purpose, greedy)
                done |= zip(chosen, completions, strict=True)
                self.on_finished(len(chosen))
        if going:
            # The engine's own number: it has loaded the weights of that version.
            self.version = self._engine().policy_version
        return [done[i] for i in range(len(requests))]

    def _complete(self, requests: Sequence[Request], step: int, purpose: str, greedy: bool) -> list[Completion]:
        engine = self._engine()
        self._check_room(engine, requests)
        prompts = [self.policy.prompt(request.question) for request in requests]
        inputs = {prompt: self._inputs(engine, prompt) for prompt in dict.fromkeys(prompts)}
        begun = []
        for request, prompt in zip(requests, prompts, strict=True):
            ids = inputs[prompt]["prompt_token_ids"]
            begun.append({**inputs[prompt], "prompt_token_ids": [*ids, *request.prefix]})
        params = [self._params(request, step, purpose, greedy) for request in requests]
        outputs = engine.generate(begun, params)
        return [_completion(*pair) for pair in zip(requests, outputs, strict=True)]

    def _engine(self) -> VLLMEngine:
        if self.policy not in _engines:
            if reason := why_not(load=True):
                raise ConfigError(f"sampling.backend=vllm: {reason}")
            _engines[self.policy] = VLLMEngine(self.policy, self.config)
        return _engines[self.policy]

    def _check_room(self, engine: VLLMEngine, requests: Sequence[Request]) -> None:
        """Raise RunStopped naming the first question whose prompt and response do not fit in vLLM's cache."""
        for request in requests:
            needed = len(self.policy.prompt(request.question).ids_L) + self.decoding.max_new_tokens
            if needed > engine.max_tokens:
                raise RunStopped(
                    f"{request.question.id}: its prompt and answer of {needed} tokens do not fit in vLLM's key-value "
                    f"cache, which holds {engine.max_tokens}; raise sampling.vllm.kv_cache_gb on a CPU, "
                    "sampling.vllm.memory_share on a card"
                )

    def _inputs(self, engine: VLLMEngine, prompt: Prompt) -> dict[str, Any]:
        """Return the prompt as vLLM takes it: one token for each image, and the images' features."""
        images = prompt.image_at_I.tolist()
        rest = set(images) & {at + 1 for at in images}
        ids = [token for at, token in enumerate(prompt.ids_L.tolist()) if at not in rest]
        if not images:
            return {"prompt_token_ids": ids}
        embeds = {"image_embeds": self._features(prompt), "image_grid_thw": torch.stack(prompt.image_grids).cpu()}
        # vLLM caches by these names. A merger that trains changes the features, so the version is part of the name.
        names = [f"{key} {engine.version}" for key in prompt.image_keys]
        return {
            "prompt_token_ids": ids,
            "multi_modal_data": {"image": embeds},
            "multi_modal_uuids": {"image": names},
        }

    def _features(self, prompt: Prompt) -> Tensor:
        """Return what enters the text model (I, D x (1 + DeepStack layers)), after the mergers if they train."""
        width = self.policy.text.language_model.config.hidden_size
        parts = self.policy.text.image_inputs(prompt.features_ID, width)
        return torch.cat(tuple(parts), dim=-1).cpu()

    def _params(self, request: Request, step: int, purpose: str, greedy: bool) -> Any:
        from vllm import SamplingParams

        temperature = self.decoding.temperature
        name = [self.seed, purpose, step, request.question.id, request.index]
        # A branch must not repeat its root's draws.
        if request.prefix:
            name.append(len(request.prefix))
        return SamplingParams(
            temperature=0.0 if greedy else temperature,
            top_p=1.0 if greedy else self.decoding.top_p,
            seed=int(generator(*name).integers(2**63)),
            max_tokens=self.decoding.max_new_tokens - len(request.prefix),
            stop_token_ids=list(self.ends),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            logit_bias=self._banned,
            extra_args={"barred": list(request.barred), "divide_by": temperature if greedy else 1.0},
        )


def _completion(request: Request, output: Any) -> Completion:
    """Return what vLLM drew for `request`."""
    (drawn,) = output.outputs
    tokens = tuple(drawn.token_ids)
    logp = np.array([at[token].logprob for token, at in zip(tokens, drawn.logprobs, strict=True)], np.float32)
    if request.barred:
        # vLLM's log-prob of the first token is among those that are not barred; ours is among all. In rounded
        # log-probs the barred tokens may seem to have all the mass.
        rest = 1 - sum(map(math.exp, request.barred.values()))
        logp[0] += math.log(max(rest, LEAST_PROBABILITY))
    return Completion(tokens, logp, None, drawn.finish_reason)
