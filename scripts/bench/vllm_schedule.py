"""Count the forwards that sampling takes in vLLM, whole phases against blocking calls, on an engine without a model.

Nothing is timed. The product's sampler runs unchanged on a stand-in (`vllm_standin.py`) that schedules as vLLM does.
Response lengths are lognormal, with 3 % at the limit of 2,048 tokens; their median says how far they spread. "Before"
is how the sampler called vLLM up to commit 496dce75: each call takes 64 requests (`sampling.batch_rows` of the shipped
configurations) and waits for the longest; every round of votes, and roots and branches, are calls of their own, with an
empty cache.

    python scripts/bench/vllm_schedule.py [--seeds 5] [--median 150]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import NormalDist, mean
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from drawn import drawn_tokens
from vllm_standin import Response, StandIn

from mm_spine.config import DecodingConfig, TreeConfig, VLLMConfig, VotesConfig
from mm_spine.draws import generator
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.phase import Phase, Waves
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.sampling.tree import TreeSampler
from mm_spine.sampling.vllm.engine import VLLMEngine
from mm_spine.sampling.vllm.sampler import VLLMSampler
from mm_spine.types import AnswerSpec, Group, Question

LIMIT, AT_LIMIT, MEDIAN = 2048, 0.03, 150
PROMPT, CALL, END, ANSWERS = 1100, 64, 0, 4


class Nothing:
    """What the sampler and the engine ask of a policy that has no model."""

    banned, end_ids, version, partitioned = frozenset[int](), (END,), 0, False
    device = SimpleNamespace(type="cuda")
    # Nothing is replaced, so that the engine sleeps at level 1.
    text = SimpleNamespace(
        language_model=SimpleNamespace(parameters=list),
        head=SimpleNamespace(weight=SimpleNamespace(requires_grad=False)),
    )

    def __init__(self) -> None:
        special = SimpleNamespace(special=False)
        self.tokenizer = SimpleNamespace(decode=_text, added_tokens_decoder={END: special}, all_special_ids=[END])
        self._prompts: dict[str, Any] = {}

    def can_ask(self, question: Question, new_tokens: int) -> bool:
        return True

    def prompt(self, question: Question) -> Any:
        """One prompt a question, with nothing in common but the length."""
        if question.id not in self._prompts:
            ids = generator("prompt", question.id).integers(1, 10**6, PROMPT)
            self._prompts[question.id] = Prompt(ids)
        return self._prompts[question.id]


class Prompt:
    """A prompt of token ids without images."""

    image_at_I = np.zeros(0, np.int64)

    def __init__(self, ids_L: np.ndarray) -> None:
        self.ids_L = ids_L


def _text(token_ids: Sequence[int], **how: Any) -> str:
    """The response's answer, which its first token decides."""
    return rf"\boxed{{{int(math.sqrt(token_ids[0] % ANSWERS**2))}}}"


class Counting(VLLMSampler):
    """The product's sampler on the stand-in; a response's length and tokens depend on its request, as draws do."""

    def __init__(self, seed: int, rows: int, median: int) -> None:
        policy: Any = Nothing()
        super().__init__(policy, DecodingConfig(max_new_tokens=LIMIT, batch_rows=CALL), VLLMConfig(), seed)
        self.middle = math.log(median)
        # The standard deviation of a length's logarithm at which `AT_LIMIT` of the responses reach the limit.
        self.spread = (math.log(LIMIT) - self.middle) / NormalDist().inv_cdf(1 - AT_LIMIT)
        self.standin = StandIn(rows)
        engine = VLLMEngine.__new__(VLLMEngine)
        engine.__dict__ |= {"_llm": self.standin, "cuda": True, "_asleep": False, "_workers": [], "stale": False}
        engine.__dict__ |= {"version": 1, "policy_version": 0, "_given": set()}
        self.engine = engine

    def _engine(self) -> VLLMEngine:
        return self.engine

    def _params(self, request: Request, *, step: int, purpose: str, greedy: bool) -> Any:
        rng = generator(self.seed, purpose, step, request.question.id, request.index, len(request.prefix))
        length = min(math.ceil(math.exp(rng.normal(self.middle, self.spread))), LIMIT)
        left = max(length - len(request.prefix), 1)
        token_ids = rng.integers(1, 10**6, left)
        ends = left + len(request.prefix) < LIMIT
        token_ids[-1] = END if ends and left > 1 else token_ids[-1]
        return Response(tuple(token_ids.tolist()), ends)


class Blocking(Counting):
    """The same requests in blocking calls of `CALL`; the engine sleeps after those of one round, or of all roots."""

    @contextmanager
    def phase(self, *, step: int, purpose: str, greedy: bool = False) -> Iterator[Phase[Request, Completion]]:
        def complete(requests: Sequence[Request]) -> list[Completion]:
            with super(Blocking, self).phase(step=step, purpose=purpose, greedy=greedy) as phase:
                calls = (requests[at : at + CALL] for at in range(0, len(requests), CALL))
                return [completion for call in calls for completion in _together(phase, call)]

        yield Waves(complete)


def _together(phase: Phase[Request, Completion], requests: Sequence[Request]) -> list[Completion]:
    phase.submit(requests)
    found: dict[Request, Completion] = {}
    while len(found) < len(requests):
        found |= phase.drain()
    return [found[request] for request in requests]


class Count(NamedTuple):
    """Forwards, prompt tokens computed, how often the engine slept, and the tokens drawn."""

    steps: int
    prompt_tokens: int
    sleeps: int
    drawn: int


class Plan(NamedTuple):
    """What is sampled: `votes` a question, with early stops and trees if the plan says so."""

    questions: int
    votes: int
    stop: Any = "never"
    tree: TreeConfig | None = None


PLANS = {
    "256 requests": Plan(32, 8),
    "2,048 requests": Plan(32, 64),
    "32 questions, 64 votes, until decided, rounds of 2": Plan(32, 64, "decided"),
    "32 questions, 60 votes in trees (2 forks, 2 branches)": Plan(32, 60, "never", TreeConfig()),
    "32 questions, 60 votes in trees, until decided": Plan(32, 60, "decided", TreeConfig()),
}


def count(
    kind: type[Counting], plan: Plan, seed: int, rows: int = 256, median: int = MEDIAN
) -> tuple[Count, list[Group]]:
    """Sample as `plan` says, and return the counts and the voted groups."""
    backend = kind(seed, rows, median)
    sampler: Any = TreeSampler(backend, plan.tree) if plan.tree else backend
    questions = [Question(f"q{i}", (), "?", AnswerSpec("integer")) for i in range(plan.questions)]
    votes = VotesConfig(max=plan.votes, stop=plan.stop, round=2, cut_off="count")
    groups = vote_in_rounds(sampler, questions, votes, min(8, plan.votes), step=0, purpose="train")
    standin = backend.standin
    sleeps = sum(heard.startswith("sleep") for heard in standin.heard)
    return Count(standin.steps, standin.prompt_tokens, sleeps, drawn_tokens([g.rollouts for g in groups])), groups


def row(name: str, options: argparse.Namespace) -> str:
    """Return a row of the table: means over seeds, and the most forwards of any seed."""
    before, after = (
        [count(kind, PLANS[name], seed, options.rows, options.median)[0] for seed in range(options.seeds)]
        for kind in (Blocking, Counting)
    )
    steps, prompts = (
        [mean(getattr(each, what) for each in side) for side in (before, after)] for what in ("steps", "prompt_tokens")
    )
    sleeps = [round(mean(each.sleeps for each in side)) for side in (before, after)]
    least = mean(each.drawn for each in after) / options.rows
    return (
        f"| {name} | {steps[0]:,.0f} | {steps[1]:,.0f} ({max(each.steps for each in after):,}) | {least:,.0f} "
        f"| {prompts[0]:,.0f} | {prompts[1]:,.0f} | {sleeps[0]} | {sleeps[1]} |"
    )


def main() -> None:
    """Print a row for each plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=256, help="max_num_seqs, sampling.vllm.max_rows")
    parser.add_argument("--median", type=int, default=MEDIAN, help="median length of a response, in tokens")
    parser.add_argument("--flat", action="store_true", help="only phases without rounds and trees")
    options = parser.parse_args()
    columns = "steps before | after (most) | tokens drawn / rows | prompt tokens before | after | sleeps before | after"
    print(f"| phase | {columns} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in list(PLANS)[: 2 if options.flat else None]:
        print(row(name, options), flush=True)


if __name__ == "__main__":
    main()
