"""Ask one question about images: sample, vote, choose the response to show; with `--adapt`, adapt to it in between.

`mm-spine ask` and `mm-spine serve` both use this. No gold answer is involved.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.benchmarks import Benchmark, resolve
from mm_spine.benchmarks.benchmark import Entry
from mm_spine.benchmarks.folder import FolderBenchmark
from mm_spine.benchmarks.own_prompts import write_prompt
from mm_spine.benchmarks.prompts import asks_yes_no, render
from mm_spine.benchmarks.prompts import options as lettered
from mm_spine.config import ConfigError, RunConfig
from mm_spine.config.layers import parse_overrides
from mm_spine.files import fingerprint
from mm_spine.methods.table import configure, find
from mm_spine.methods.weights import select
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.folder import resolve_model
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import kind_of
from mm_spine.processors.answers.choice import check_count
from mm_spine.processors.answers.sentences import about
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.reporting.entropy_colours import Token
from mm_spine.runs.plan import check, load_config
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import make_sampler
from mm_spine.training.scoring import score
from mm_spine.types import AnswerSpec, Group, ImageLike, Question, Rollout, StepReport, Vote, image_part
from mm_spine.voting import make_group

log = logging.getLogger(__name__)

KINDS_REPLACED_BY_YES_NO = ("text", "integer")
"""Benchmark kinds that `yes_no` replaces where a question's own words ask for yes or no."""

DEFAULTS_WITHOUT_BENCHMARK = {"sampling": {"temperature": 0.7, "max_new_tokens": 1024, "batch_rows": 64}}
"""For a model without a benchmark: room for reasoning, at the temperature that SPINE samples with."""

SCORED_TOKENS = 8192
"""Packed tokens of a scoring forward if `engine.token_budget` is no number."""


@dataclass(frozen=True)
class AskOptions:
    """What the options of `ask` and `serve` say. None stands for an option that was not given.

    `steps` are optimiser steps on the question before the answer that counts (0: none); `overrides` are KEY=VALUE and
    win over everything else.
    """

    model: str | None = None
    benchmark: str | None = None
    kind: str | None = None
    votes: int = 16
    steps: int = 0
    method: str = "spine"
    seed: int = 0
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class AskSettings:
    """`AskOptions` resolved: the model, the run's configuration, whether it adapts first, the kind and the benchmark
    if they are named."""

    model: str
    config: RunConfig
    adapts: bool = False
    kind: str | None = None
    benchmark: Benchmark | None = None


@dataclass(frozen=True)
class VotedResponse:
    """A sampled response: its text, the class of its answer (None: no answer could be read), its tokens."""

    text: str
    answer: str | None
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class VoteOutcome:
    """The vote over the responses sampled so far, in order. `winner` is the response to show for the winning answer.

    `seconds` and `tokens` are what sampling took.
    """

    vote: Vote
    responses: tuple[VotedResponse, ...]
    winner: VotedResponse | None
    seconds: float
    tokens: int


@dataclass(frozen=True)
class AskResult:
    """What is known so far: the outcome before adaptation, the steps done and their seconds, the outcome after."""

    before: VoteOutcome
    steps: tuple[StepReport, ...] = ()
    seconds: float = 0.0
    after: VoteOutcome | None = None

    @property
    def outcome(self) -> VoteOutcome:
        """The outcome that counts: the one after adaptation if there is one."""
        return self.after or self.before


def ask_settings(options: AskOptions) -> AskSettings:
    """Resolve the options before a model loads.

    A named benchmark gives its configuration. Without a benchmark and a model, the embedded model is asked as `digits`.

    Raises:
        ConfigError, ModelError, ValueError: an option, or the configuration that it leads to, is wrong.
    """
    model = options.model
    if model is not None and not model.strip():
        raise ConfigError("--model is empty: give a model's folder or hub id, or leave it out for the embedded one")
    name = options.benchmark or ("digits" if model is None else None)
    pairs = [
        f"sampling.votes.max={options.votes}",
        f"sampling.train_rollouts={min(options.votes, 16)}",
        "optim.questions_per_step=1",
        *([] if model is None else [f"model.path={json.dumps(model)}"]),
        f"optim.steps={max(options.steps, 1)}",
        "scope=question",
        *options.overrides,
    ]
    if name is not None:
        config = load_config(name, pairs, options.method, options.seed)
    else:
        named = {"method": {"name": options.method}, "seed": options.seed}
        config = configure(DEFAULTS_WITHOUT_BENCHMARK, named, parse_overrides(pairs))
    plan = check(config)
    if options.steps and not plan.method.trains:
        raise ConfigError(f"method {config.method.name!r} does not train; choose another --method to adapt")
    benchmark = None if name is None else resolve(name)
    return AskSettings(plan.model, config, options.steps > 0, options.kind, benchmark)


def question_of(
    words: str,
    images: Sequence[ImageLike],
    settings: AskSettings,
    choices: Sequence[str] = (),
    as_is: bool = False,
) -> Question:
    """Build the question as the model gets it; images stay unopened.

    Choices are listed and instructions on how to answer are added, unless `as_is`. No instructions are added where the
    questions of the embedded benchmark are meant, which have none.

    Raises:
        ValueError: the question is empty or not UTF-8, the kind is unknown, or the choices cannot be used.
    """
    if not words.strip():
        raise ValueError("the question is empty; write what you want to know about the image")
    benchmark = settings.benchmark
    spec = AnswerSpec(settings.kind or kind_for(words, choices, benchmark), _options(choices))
    kind_of(spec)
    _check_text(words, *choices)
    if as_is:
        prompt = words
    elif isinstance(benchmark, FolderBenchmark):
        prompt = write_prompt(words, spec, settings.config.prompt.style)
    elif benchmark is not None and benchmark.source is None:
        prompt = "\n".join([words, *lettered(spec.choices).splitlines()])
    else:
        prompt = render(Entry("question", words, spec, ()), settings.config.prompt.style)
    name = _id_of(prompt, images)
    return Question(name, tuple(images), prompt, about(spec, words), benchmark.name if benchmark else "own")


def _id_of(prompt: str, images: Sequence[ImageLike]) -> str:
    """Return an id that depends on the prompt and the content of the images: it orders ties and seeds the draws.

    With one id for all questions, every tie between "yes" and "no" would fall the same way.
    """
    # A pipe could block for ever when it is read, and is refused when the images are opened.
    files = [image for image in map(image_part, images) if not isinstance(image, str | Path) or Path(image).is_file()]
    content = fingerprint.of_questions([Question("", tuple(files), prompt, AnswerSpec("text"))])[""]
    return f"question-{fingerprint.digest(content['prompt'] + content['images'])}"


def _options(choices: Sequence[str]) -> tuple[str, ...]:
    """Strip the choices. ValueError: only one, more than there are letters, an empty one, or the same twice."""
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
    """Raise ValueError for bytes that are not UTF-8: Python reads each from a command line as half a character."""
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{text!r} is no text in UTF-8; write it again")


def kind_for(words: str, choices: Sequence[str], benchmark: Benchmark | None) -> str:
    """Return the answer kind of a question whose kind is not given.

    `choice` with choices; `yes_no` where the words ask for it, as in "Is it enlarged?", unless the benchmark's kind
    covers that itself; else the benchmark's kind, `text` without a benchmark.
    """
    usual = benchmark.kind if benchmark else "text"
    if choices:
        return "choice"
    return "yes_no" if usual in KINDS_REPLACED_BY_YES_NO and asks_yes_no(words) else usual


def check_images(question: Question) -> None:
    """Open every image of the question. Raises BadQuestion, naming the first that cannot be read."""
    for image in question.images:
        open_image(image, question.id)


def load(settings: AskSettings) -> Policy:
    """Load the model and log the seconds it took. Raises ModelError."""
    config = settings.config
    started = time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    policy = Policy.load(resolve_model(settings.model), config.model, config.seed, config.cache, prompt=config.prompt)
    log.info("loaded %s in %.1f s", settings.model, time.perf_counter() - started)
    return policy


def answer(policy: Policy, question: Question, settings: AskSettings) -> AskResult:
    """Return the final result of `ask`, logging its progress."""
    config = settings.config
    log.info("asking %s times (kind %s)", config.sampling.votes.max, question.spec.kind)

    def log_step(report: StepReport) -> None:
        log.info("step %s of %s: vote share %.2f", report.step + 1, config.optim.steps, report.majority_share)

    *_, last = ask(policy, question, settings, on_step=log_step)
    return last


def ask(
    policy: Policy,
    question: Question,
    settings: AskSettings,
    each: int | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Generator[AskResult]:
    """Yield what is known after every `each` responses (default: all at once); the last result is complete.

    If it adapts, then to this question only, once an answer won the vote; then the question is asked again with the
    same draws. The weights are restored at the end, also after an error.

    Raises:
        BadQuestion: the model cannot be asked this question.
    """
    config = settings.config
    sampler = make_sampler(policy, config, config.sampling)
    if not policy.can_ask(question, config.sampling.max_new_tokens):
        raise BadQuestion(policy.skipped[question.id])
    result = None
    for outcome in _outcomes(policy, sampler, question, config, each):
        result = AskResult(outcome)
        yield result
    if not settings.adapts or result is None or result.before.vote.answer is None:
        return
    start = policy.weights()
    try:
        result = _adapted(result, policy, sampler, question, config, on_step)
        for outcome in _outcomes(policy, sampler, question, config, each):
            yield replace(result, after=outcome)
    finally:
        policy.restore(start)
        sampler.sync(policy.trainable().items())


def _adapted(
    result: AskResult,
    policy: Policy,
    sampler: Sampler,
    question: Question,
    config: RunConfig,
    on_step: Callable[[StepReport], None],
) -> AskResult:
    """Adapt the policy in place to the question and return `result` with the steps done."""
    done: list[StepReport] = []

    def record(step: StepRecord) -> None:
        done.append(step.report)
        on_step(step.report)

    started = time.perf_counter()
    # Votes are counted over flat rollouts of the question as it was asked; what a method trains on may be sampled
    # otherwise, by a sampler of its own.
    growth = find(config.method.name).grown(config.method, policy)
    own = make_sampler(policy, config, growth=growth) if growth or not config.sampling.plain else None
    adapt([question], policy, own or sampler, None, config, Hooks(on_step=record))
    return replace(result, steps=tuple(done), seconds=time.perf_counter() - started)


def _outcomes(
    policy: Policy, sampler: Sampler, question: Question, config: RunConfig, each: int | None
) -> Iterator[VoteOutcome]:
    """Yield the outcome after each round of `each` responses; rounds do not change what is drawn."""
    rollouts: list[Rollout] = []
    most, started = config.sampling.votes.max, time.perf_counter()
    for first in range(0, most, each or most):
        n = min(each or most, most - first)
        rollouts += sampler.sample([question], n, step=0, purpose="ask", first=first)[0]
        group = _with_entropies(policy, make_group(question, rollouts, config.sampling.votes), config)
        rollouts = list(group.rollouts)
        yield outcome_of(group, config, policy.tokenizer, time.perf_counter() - started)


def _with_entropies(policy: Policy, group: Group, config: RunConfig) -> Group:
    """Return the group with token entropies, from a forward of the policy where the sampler gave none."""
    if all(rollout.entropy is not None for rollout in group.rollouts):
        return group
    budget = config.engine.token_budget
    tokens = SCORED_TOKENS if isinstance(budget, str) else budget
    groups, _ = score(policy, [group], Distribution(config.sampling.temperature, policy.banned), tokens)
    return groups[0]


def outcome_of(group: Group, config: RunConfig, tokenizer: Any, seconds: float = 0.0) -> VoteOutcome:
    """Prepare a group for display.

    Forking tokens are those of the method's band mask: by default the 20 % with the highest entropy. Of the responses
    with the winning answer, `winner` is the one with the highest mean log-probability per token.
    """
    options = config.method
    entropies = [torch.from_numpy(_entropies(rollout)) for rollout in group.rollouts]
    masks = select(entropies, find(options.name).band_mask(options), options.mask_scope)
    responses = tuple(
        VotedResponse(rollout.text, answer, tokens_of(rollout, mask.numpy(), tokenizer))
        for rollout, answer, mask in zip(group.rollouts, group.answers, masks, strict=True)
    )
    # Ties go to the first response.
    best = max(
        (i for i, a in enumerate(group.answers) if a is not None and a == group.vote.answer),
        key=lambda i: (_mean(group.rollouts[i].logp), -i),
        default=None,
    )
    winner = None if best is None else responses[best]
    return VoteOutcome(group.vote, responses, winner, seconds, sum(len(r.token_ids) for r in group.rollouts))


def tokens_of(rollout: Rollout, forks_T: np.ndarray, tokenizer: Any) -> tuple[Token, ...]:
    """Split a response into readable tokens, with the entropy of each and whether it is a forking token.

    Tokens that hold bytes of one character are joined; the end token is one of the tokens.
    """
    entropy_T = _entropies(rollout)
    tokens, ids, start = list[Token](), list[int](), 0
    for t, token_id in enumerate(rollout.token_ids):
        ids.append(token_id)
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        # A replacement character at the end means that bytes of the character are still to come.
        if text.endswith("\N{REPLACEMENT CHARACTER}") and t + 1 < len(rollout.token_ids):
            continue
        tokens.append(Token(text, float(entropy_T[start : t + 1].max()), bool(forks_T[start : t + 1].any())))
        ids, start = [], t + 1
    return tuple(tokens)


def _entropies(rollout: Rollout) -> np.ndarray:
    if rollout.entropy is None:
        raise ValueError(f"{rollout.question_id}: rollout {rollout.index} has no entropies; score it first")
    return rollout.entropy


def _mean(logp_T: np.ndarray) -> float:
    return float(logp_T.mean()) if len(logp_T) else 0.0
