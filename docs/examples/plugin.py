"""A plugin: a method with a reward, token weights and an option of its own; an answer kind; a benchmark.

mm-spine adapt parity --method shared --plugin docs/examples/plugin.py --output runs/parity method.power=2
"""

import re
from dataclasses import replace

import torch
from pydantic import Field

from mm_spine import AnswerSpec, Method, register_benchmark, register_kind, register_method
from mm_spine.benchmarks import Benchmark
from mm_spine.benchmarks.digits import BENCHMARK as DIGITS
from mm_spine.config import MethodConfig, NonNegative
from mm_spine.processors.answers.kind import keyed


class Shared(MethodConfig):
    power: NonNegative = Field(default=1.0, description="power of a token's entropy in its weight")


def reward(options):
    """Reward an answer by its share of the votes: r_i = n_i / N."""
    return lambda group: torch.tensor([group.vote.counts.get(a, 0) / len(group.answers) for a in group.answers])


def choice(options):
    """Weigh the tokens of a response by their entropies: A_it = A_i (H_t / mean H)^power."""

    def weigh(chosen, rollout, advantage):
        entropy_T = torch.from_numpy(rollout.entropy)
        return chosen._replace(advantage_T=advantage * (entropy_T / entropy_T.mean().clamp(min=1e-6)) ** options.power)

    def weigh_all(chosen, group):
        return list(map(weigh, chosen, group.rollouts, group.advantages))

    return lambda batch, tokens: list(map(weigh_all, tokens, batch.groups))


def parity(text, spec):
    """Read the last number or word of a response, or of a gold answer, as "even" or "odd"."""
    found = re.findall(r"\d+|even|odd", text.lower()) or [None]
    return ("even", "odd")[int(found[-1]) % 2] if found[-1] and found[-1].isdigit() else found[-1]


class Parity(Benchmark):  # the questions of digits whose answer is a number, graded by whether that is even
    splits = DIGITS.splits

    def load(self, split, source=None, prompt="reason"):
        digits = DIGITS.load(split, source, prompt)
        numbers = [replace(q, spec=AnswerSpec("parity")) for q in digits.questions if q.spec.kind == "integer"]
        return replace(digits, questions=tuple(numbers))


ROW = Method("vote shares, tokens weighed by entropy", "docs/plugins.md", "A_it = A_i (H_t / mean H)^power")
register_method("shared", replace(ROW, section=Shared, reward=reward, choice=choice, options={"kl": "k3"}))
register_kind("parity", keyed(parity, parity))
register_benchmark(Parity(name="parity", summary="Even?", adapt_split="adapt", default_model=DIGITS.default_model))
