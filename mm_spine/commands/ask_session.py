"""One question about one image: sample, vote, show the winner's reasoning; adapted to it alone first, if asked.

What `mm-spine ask` and `mm-spine serve` do. There is no gold answer anywhere here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.benchmarks import Benchmark, resolve
from mm_spine.benchmarks.benchmark import Entry
from mm_spine.benchmarks.prompts import asks_yes_no, render
from mm_spine.benchmarks.prompts import options as lettered
from mm_spine.config import ConfigError, RunConfig
from mm_spine.config_layers import parse_overrides
from mm_spine.methods.table import configure, find
from mm_spine.methods.weights import select
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.folder import resolve_model
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import kind_of
from mm_spine.processors.answers.choice import check_count
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.reporting.entropy_colours import Token
from mm_spine.runs.plan import check, load_config
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import make_sampler
from mm_spine.training.scoring import score
from mm_spine.types import AnswerSpec, Group, ImageLike, Question, Rollout, StepReport, Vote
from mm_spine.voting import make_group

log = logging.getLogger(__name__)

ID = "question"
"""The id of every question asked: draws depend on the seed, not on the words or the image."""

GUESSED_OVER = ("text", "integer")
"""Kinds that give way to yes_no where a question's own words ask for it."""

OTHERWISE = {"sampling": {"temperature": 0.7, "max_new_tokens": 1024, "batch_rows": 64}}
"""For a model without a benchmark: room for reasoning, at the temperature that SPINE samples with."""

SCORED_TOKENS = 8192
"""Tokens of a forward that gives entropies where a sampler has none, unless engine.token_budget says so."""


@dataclass(frozen=True)
class Manner:
    """How questions are asked: the model, how it decodes, whether it adapts first, and as which benchmark's, if any."""

    model: str
    config: RunConfig
    adapts: bool = False
    benchmark: Benchmark | None = None


@dataclass(frozen=True)
class Response:
    """A sampled response: its text, the name of its answer's class (None: no answer), its tokens."""

    text: str
    answer: str | None
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Outcome:
    """The vote so far over the responses in order; `winner` is the response shown for the winning answer.

    `seconds` and `tokens` are what sampling took.
    """

    vote: Vote
    responses: tuple[Response, ...]
    winner: Response | None
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Asked:
    """What is known so far: the outcome before adaptation, the steps done (seconds: all of them), the one after."""

    before: Outcome
    steps: tuple[StepReport, ...] = ()
    seconds: float = 0.0
    after: Outcome | None = None

    @property
    def outcome(self) -> Outcome:
        """The one that counts: after adaptation if there was one."""
        return self.after or self.before


def manner(
    model: str | None = None,
    benchmark: str | None = None,
    *,
    votes: int = 16,
    steps: int = 0,
    method: str = "spine",
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Manner:
    """The embedded model as `digits` asks it unless `model` is given; a benchmark's configuration where one is named.

    `overrides` (KEY=VALUE) go before everything. Raises ConfigError, ModelError or ValueError before a model loads.
    """
    if model is not None and not model.strip():
        raise ConfigError("--model is empty: give a model's folder or hub id, or leave it out for the embedded one")
    name = benchmark or ("digits" if model is None else None)
    ours = [f"sampling.votes.max={votes}", f"sampling.train_rollouts={min(votes, 16)}", "optim.questions_per_step=1"]
    named = [] if model is None else [f"model.path={json.dumps(model)}"]
    pairs = [*ours, *named, f"optim.steps={max(steps, 1)}", "scope=question", *overrides]
    if name is not None:
        config = load_config(name, pairs, method, seed)
    else:
        config = configure(OTHERWISE, {"method": {"name": method}, "seed": seed}, parse_overrides(pairs))
    plan = check(config)
    if steps and not plan.method.trains:
        raise ConfigError(f"method {config.method.name!r} does not train; take another --method")
    return Manner(plan.model, config, steps > 0, None if name is None else resolve(name))


def question_of(
    words: str,
    images: Sequence[ImageLike],
    how: Manner,
    kind: str | None = None,
    choices: Sequence[str] = (),
    as_is: bool = False,
) -> Question:
    """The question as the model gets it, images unopened. ValueError: no words, no text, no such kind, no choice.

    Choices are listed and instructions on how to answer added unless `as_is`; no instructions where the benchmark's own
    questions have none: the embedded one's, and a folder's. For `kind` unset see `kind_for`.
    """
    if not words.strip():
        raise ValueError("the question is empty; write what you want to know about the image")
    benchmark = how.benchmark
    spec = AnswerSpec(kind or kind_for(words, choices, benchmark), _options(choices))
    kind_of(spec)
    _check_text(words, *choices)
    if as_is:
        prompt = words
    elif benchmark is not None and benchmark.source is None:
        prompt = "\n".join([words, *lettered(spec.choices).splitlines()])
    else:
        prompt = render(Entry(ID, words, spec, ()), how.config.prompt)
    return Question(ID, tuple(images), prompt, spec, benchmark.name if benchmark else "own")


def _options(choices: Sequence[str]) -> tuple[str, ...]:
    """Strip the choices. ValueError: only one, more than there are letters, an empty one, or one twice."""
    options = tuple(choice.strip() for choice in choices)
    check_count(options)
    wanted = "give two or more different ones, or none"
    if len(options) == 1:
        raise ValueError(f"1 choice: {wanted}")
    if not all(options):
        raise ValueError(f"choice {options.index('') + 1} is empty: {wanted}")
    if twice := [option for option in options if options.count(option) > 1]:
        raise ValueError(f"choice {twice[0]!r} is there twice: {wanted}")
    return options


def _check_text(*texts: str) -> None:
    """ValueError: a byte that is no UTF-8, which Python reads from a command line as half a character."""
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{text!r} is no text in UTF-8; write it again")


def kind_for(words: str, choices: Sequence[str], benchmark: Benchmark | None) -> str:
    """`choice` with choices; `yes_no` where the words ask for it, as in "Is it enlarged?", and the benchmark's kind
    is none of its own for that; else the benchmark's kind, `text` without one."""
    usual = benchmark.kind if benchmark else "text"
    if choices:
        return "choice"
    return "yes_no" if usual in GUESSED_OVER and asks_yes_no(words) else usual


def check_images(question: Question) -> None:
    """Open them all. Raises BadQuestion, naming the first that cannot be read."""
    for image in question.images:
        open_image(image, question.id)


def load(how: Manner) -> Policy:
    """The model, loaded; logged with the seconds it took. Raises ModelError."""
    started = time.perf_counter()
    if how.config.threads is not None:
        torch.set_num_threads(how.config.threads)
    policy = Policy.load(resolve_model(how.model), how.config.model, how.config.seed, how.config.cache)
    log.info("loaded %s in %.1f s", how.model, time.perf_counter() - started)
    return policy


def answer(policy: Policy, question: Question, how: Manner) -> Asked:
    """`ask` to its end, its progress logged."""
    config = how.config
    log.info("asking %s times (kind %s)", config.sampling.votes.max, question.spec.kind)

    def say(report: StepReport) -> None:
        log.info("step %s of %s: vote share %.2f", report.step + 1, config.optim.steps, report.majority_share)

    *_, last = ask(policy, question, how, on_step=say)
    return last


def ask(
    policy: Policy,
    question: Question,
    how: Manner,
    each: int | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Generator[Asked]:
    """What is known after every `each` responses (all at once by default); the last one yielded is complete.

    If it adapts, then to this question alone, once something was voted for, and it is asked again with the same draws;
    the weights are afterwards what they were, also when an error ends this. Raises BadQuestion.
    """
    config = how.config
    sampler = make_sampler(policy, config, config.sampling)
    if not policy.can_ask(question, config.sampling.max_new_tokens):
        raise BadQuestion(policy.skipped[question.id])
    asked = None
    for outcome in _outcomes(policy, sampler, question, config, each):
        asked = Asked(outcome)
        yield asked
    if not how.adapts or asked is None or asked.before.vote.answer is None:
        return
    start = policy.weights()
    try:
        asked = _adapted(asked, policy, sampler, question, config, on_step)
        for outcome in _outcomes(policy, sampler, question, config, each):
            yield replace(asked, after=outcome)
    finally:
        policy.restore(start)
        sampler.sync(policy.trainable().items())


def _adapted(
    asked: Asked,
    policy: Policy,
    sampler: Sampler,
    question: Question,
    config: RunConfig,
    on_step: Callable[[StepReport], None],
) -> Asked:
    done: list[StepReport] = []

    def note(record: StepRecord) -> None:
        done.append(record.report)
        on_step(record.report)

    started = time.perf_counter()
    trees = None if config.sampling.tree is None else make_sampler(policy, config)
    adapt([question], policy, trees or sampler, None, config, Hooks(on_step=note))
    return replace(asked, steps=tuple(done), seconds=time.perf_counter() - started)


def _outcomes(
    policy: Policy, sampler: Sampler, question: Question, config: RunConfig, each: int | None
) -> Iterator[Outcome]:
    """The outcome after each round; rounds do not change what is drawn."""
    rollouts: list[Rollout] = []
    most, started = config.sampling.votes.max, time.perf_counter()
    for first in range(0, most, each or most):
        n = min(each or most, most - first)
        rollouts += sampler.sample([question], n, step=0, purpose="ask", first=first)[0]
        group = _with_entropies(policy, make_group(question, rollouts), config)
        rollouts = list(group.rollouts)
        yield outcome_of(group, config, policy.tokenizer, time.perf_counter() - started)


def _with_entropies(policy: Policy, group: Group, config: RunConfig) -> Group:
    if all(rollout.entropy is not None for rollout in group.rollouts):
        return group
    budget = config.engine.token_budget
    tokens = SCORED_TOKENS if isinstance(budget, str) else budget
    return score(policy, [group], Distribution(config.sampling.temperature, policy.banned), tokens)[0][0]


def outcome_of(group: Group, config: RunConfig, tokenizer: Any, seconds: float = 0.0) -> Outcome:
    """The group for people. Forks are the tokens of the method's band mask: the top 20 % by entropy unless it says
    otherwise. The winner is, of the responses with the winning answer, the one likeliest per token."""
    options = config.method
    entropies = [torch.from_numpy(_known(rollout)) for rollout in group.rollouts]
    masks = select(entropies, find(options.name).band_mask(options), options.mask_scope)
    responses = tuple(
        Response(rollout.text, answer, tokens_of(rollout, mask.numpy(), tokenizer))
        for rollout, answer, mask in zip(group.rollouts, group.answers, masks, strict=True)
    )
    best = max(
        (i for i, a in enumerate(group.answers) if a is not None and a == group.vote.answer),
        key=lambda i: (_mean(group.rollouts[i].logp), -i),
        default=None,
    )
    winner = None if best is None else responses[best]
    return Outcome(group.vote, responses, winner, seconds, sum(len(r.token_ids) for r in group.rollouts))


def tokens_of(rollout: Rollout, forks_T: np.ndarray, tokenizer: Any) -> tuple[Token, ...]:
    """The response in pieces that can be read: bytes of one character are joined; the end token is one of its own."""
    pieces, ids, at = list[Token](), list[int](), 0
    entropy_T = _known(rollout)
    for t, token in enumerate(rollout.token_ids):
        ids.append(token)
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and t + 1 < len(rollout.token_ids):
            continue
        pieces.append(Token(text, float(entropy_T[at : t + 1].max()), bool(forks_T[at : t + 1].any())))
        ids, at = [], t + 1
    return tuple(pieces)


def _known(rollout: Rollout) -> np.ndarray:
    if rollout.entropy is None:
        raise ValueError(f"{rollout.question_id}: rollout {rollout.index} has no entropies; score it first")
    return rollout.entropy


def _mean(logp_T: np.ndarray) -> float:
    return float(logp_T.mean()) if len(logp_T) else 0.0
