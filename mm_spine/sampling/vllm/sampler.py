"""Rollouts from vLLM: prompts with precomputed image features, and weights taken over after each update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mm_spine import distributed
from mm_spine.config import ConfigError, DecodingConfig, RunStopped, VLLMConfig
from mm_spine.draws import generator
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.phase import Phase, Script
from mm_spine.sampling.vllm.engine import VLLMEngine
from mm_spine.sampling.vllm.installed import why_not
from mm_spine.sampling.vllm.layout import check_temperature

LEAST_PROBABILITY = 2.0**-24
"""Half a unit in the last place of a float32 1: the least that may be left beside barred tokens."""

_engines: WeakKeyDictionary[Policy, VLLMEngine] = WeakKeyDictionary()


class VLLMSampler(Backend):
    """Sample with vLLM. All samplers of a policy share one engine, which takes over the weights before it samples.

    Log-probs are the policy's, also of greedy responses; only with `top_p` below 1 they are those of the nucleus.
    Entropies are None; `batch_rows` and `kv_cache_gb` have no effect. A draw depends on the length of the request's
    prefix too, because vLLM draws in order.
    """

    gives_entropies = False

    def __init__(self, policy: Policy, decoding: DecodingConfig, config: VLLMConfig, seed: int = 0) -> None:
        """Start nothing yet. Raises ConfigError for a temperature that vLLM does not take."""
        super().__init__(policy, decoding, seed)
        check_temperature(decoding.temperature)
        self.config = config
        self._banned = dict.fromkeys(policy.banned, -math.inf)
        if policy in _engines:
            _engines[policy].stale = True
        self._take_over_together()

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Have the engine take over the policy's trainable weights before it samples again.

        Ranks that share an engine wait for one another.
        """
        # `weights` are the policy's own parameters; the engine reads them from the policy.
        super().sync(weights)
        if self.policy in _engines:
            _engines[self.policy].stale = True
        if self._together > 1:
            # The engine of a group's first rank takes memory of the other ranks' cards, too.
            if self.policy.device.type == "cuda":
                torch.cuda.empty_cache()
            distributed.barrier()
        self._take_over_together()

    def _take_over_together(self) -> None:
        """With partitioned weights, give the engine the weights now: all ranks are here, and later one may not be."""
        if self.policy.partitioned:
            with self._engine().ready(self.policy):
                pass

    @contextmanager
    def phase(self, *, step: int, purpose: str, greedy: bool = False) -> Iterator[Phase[Request, Completion]]:
        """Open a phase: vLLM takes requests whenever they come, and decodes up to `vllm.max_rows` of them together.

        The engine is awake, with one version of the weights and its cache, from the first request to the end. Raises
        SamplerDied if it fails, RunStopped for a request without room.
        """
        with ExitStack() as stack:
            yield _Queue(self, stack, partial(self._params, step=step, purpose=purpose, greedy=greedy))

    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        """See `Backend.complete`, and `phase` for what is raised."""

        def at_once() -> Script[list[Completion]]:
            return (yield requests)

        found: list[Completion] = self.run([at_once()], step=step, purpose=purpose, greedy=greedy)[0]
        return found

    @property
    def _together(self) -> int:
        """How many ranks share the engine."""
        return self.config.tensor_parallel if distributed.world_size() > 1 else 1

    @contextmanager
    def awake(self) -> Iterator[VLLMEngine]:
        """Within the context, give the engine, awake and with the policy's weights."""
        engine = self._engine()
        with engine.ready(self.policy):
            # The engine's own number: it has loaded the weights of that version.
            self.version = engine.policy_version
            yield engine

    def _engine(self) -> VLLMEngine:
        if distributed.rank() % self._together:
            raise RuntimeError(f"rank {distributed.rank()} does not sample: the first of its group does")
        if self.policy not in _engines:
            if reason := why_not(load=True):
                raise ConfigError(f"sampling.backend=vllm: {reason}")
            _engines[self.policy] = VLLMEngine(self.policy, self.config)
        return _engines[self.policy]

    def check_room(self, engine: VLLMEngine, requests: Sequence[Request]) -> None:
        """Raise RunStopped naming the first question whose prompt and response do not fit in vLLM's cache."""
        for request in requests:
            needed = len(self.policy.prompt(request.question).ids_L) + self.decoding.max_new_tokens
            if needed > engine.max_tokens:
                raise RunStopped(
                    f"{request.question.id}: its prompt and answer of {needed} tokens do not fit in vLLM's key-value "
                    f"cache, which holds {engine.max_tokens}; raise sampling.vllm.kv_cache_gb on a CPU, "
                    "sampling.vllm.memory_share on a card"
                )

    def inputs(self, engine: VLLMEngine, prompt: Prompt) -> dict[str, Any]:
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

    def _params(self, request: Request, *, step: int, purpose: str, greedy: bool) -> Any:
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


class _Queue:
    """A phase in vLLM. The engine wakes for the first request that needs it; `stack` ends that with the phase."""

    def __init__(self, sampler: VLLMSampler, stack: ExitStack, params: Callable[[Request], Any]) -> None:
        self.sampler, self.stack, self.params = sampler, stack, params
        self.engine: VLLMEngine | None = None
        self._inputs: dict[Prompt, dict[str, Any]] = {}
        self._asked: dict[int, Request] = {}
        self._ended: list[tuple[Request, Completion]] = []

    @torch.no_grad()
    def submit(self, requests: Sequence[Request]) -> None:
        """See `Phase.submit`."""
        ended = self.sampler.ended(requests, entropies=False)
        self._ended += [(requests[i], completion) for i, completion in ended.items()]
        going = [request for i, request in enumerate(requests) if i not in ended]
        if not going:
            return
        if self.engine is None:
            self.engine = self.stack.enter_context(self.sampler.awake())
        self.sampler.check_room(self.engine, going)
        prompts = [self._begun(self.engine, request) for request in going]
        numbers = self.engine.enqueue(prompts, [self.params(request) for request in going])
        self._asked.update(zip(numbers, going, strict=True))

    def drain(self) -> list[tuple[Request, Completion]]:
        """See `Phase.drain`."""
        if self._ended or self.engine is None:
            ended, self._ended = self._ended, []
            return ended
        found = []
        for number, output in self.engine.finished():
            request = self._asked.pop(number)
            found.append((request, _completion(request, output)))
        self.sampler.on_finished(len(found))
        return found

    def _begun(self, engine: VLLMEngine, request: Request) -> dict[str, Any]:
        """Return the prompt of `request`, prefix included, as vLLM takes it."""
        prompt = self.sampler.policy.prompt(request.question)
        if prompt not in self._inputs:
            self._inputs[prompt] = self.sampler.inputs(engine, prompt)
        inputs = self._inputs[prompt]
        return {**inputs, "prompt_token_ids": [*inputs["prompt_token_ids"], *request.prefix]}


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
