"""Evaluate a model under lmms-eval 0.7: `lmms-eval --model mm_spine --model_args pretrained=DIR,... --tasks ...`.

Prompts, images and tokens go through the processor and sampler of training and of `mm-spine evaluate`.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import simple_parse_args_string
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from mm_spine.config import ConfigError, Count, DecodingConfig, NonNegative, RunConfig, Share, VotesConfig
from mm_spine.config.layers import merge, read_config
from mm_spine.evaluation import CHUNK
from mm_spine.integrations import lmms_tasks
from mm_spine.methods.table import configure
from mm_spine.policy.folder import resolve_model
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import known_kinds
from mm_spine.processors.answers.sentences import about
from mm_spine.processors.markers import as_words
from mm_spine.processors.vision import BadQuestion
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import check_sampler, make_sampler
from mm_spine.types import AnswerSpec, ImageLike, Question, Rollout
from mm_spine.voting import make_group, representative
from mm_spine.words import nearest

log = logging.getLogger(__name__)

NEW_TOKENS = 1024
"""Longest response in tokens where neither the user nor the task sets a length."""

NO_STOP = "\n\n"
"""lmms-eval's default of `until`. It would end a response after its first paragraph, so it is ignored here, as it is by
lmms-eval's own Qwen2.5-VL model."""

ADAPTER = "adapter_model.safetensors"


class Arguments(BaseModel):
    """The arguments of `--model_args`.

    An argument that is not given is taken from the task, or else from `config`, the config.yaml of a run. With `votes`
    above 1 that many responses are sampled, and one of the winning class is the answer; classes are formed by answers
    of `kind`, which our own tasks set themselves and which is text otherwise. `adapter` is a LoRA folder such as
    RUN/adapted/adapter, for the model that was adapted. lmms-eval's own batch_size has no effect; use `batch_rows`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    pretrained: str = Field(min_length=1)
    adapter: Path | None = None
    config: Path | None = None
    votes: Count = 1
    kind: str | None = None
    temperature: NonNegative | None = None
    top_p: Share | None = None
    max_new_tokens: Count | None = None
    backend: Literal["hf", "vllm"] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    batch_rows: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    seed: int | None = None


# lmms-eval adds these itself.
_IGNORED = ("batch_size", "max_batch_size", "device")


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """Validate the arguments. Raises ConfigError with one line for each wrong one."""
    try:
        found = Arguments.model_validate({name: x for name, x in given.items() if name not in _IGNORED})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from error
    if found.votes > 1 and found.temperature == 0:
        raise ConfigError(
            f"model_args votes={found.votes}: at temperature 0 all responses are equal; raise it, or set votes=1"
        )
    if found.kind is not None and found.kind not in known_kinds():
        raise ConfigError(f"model_args kind={found.kind!r}: no such kind; {nearest(found.kind, known_kinds())}")
    if found.adapter is not None:
        _check_adapter(found.adapter, found.pretrained)
    return found


def _check_adapter(folder: Path, pretrained: str) -> None:
    if folder.resolve().parent == Path(pretrained).resolve():
        raise ConfigError(f"model_args adapter={folder}: {pretrained} has it merged in; leave it out")
    for name in ("adapter_config.json", ADAPTER):
        if not (folder / name).is_file():
            raise ConfigError(f"model_args adapter={folder}: no {name} there; give a run's adapted/adapter")


def _explain(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"model_args {name}: no such argument; {nearest(name, Arguments.model_fields)}"
    if error["type"] == "missing":
        return f"model_args {name} is not set: give a model's folder or hub id"
    return f"model_args {name}={error['input']!r}: {error['msg']}"


def config_of(arguments: Arguments) -> RunConfig:
    """Return how to load and sample: the config.yaml of the run that adapted the model, overridden by `arguments`."""
    adapted = Path(arguments.pretrained)
    beside = adapted.parent / "config.yaml" if adapted.name == "adapted" else None
    saved = arguments.config or (beside if beside is not None and beside.is_file() else None)
    base = {"evaluation": {"max_new_tokens": NEW_TOKENS}} if saved is None else read_config(saved)
    given = {
        "model": {name: getattr(arguments, name) for name in ("dtype", "min_pixels", "max_pixels")},
        "sampling": {"backend": arguments.backend},
        "evaluation": {"batch_rows": arguments.batch_rows},
        "seed": arguments.seed,
    }
    # What the run trained does not matter here, and `full` needs no LoRA settings. Nor does its method matter, which
    # may be one of a plugin.
    model = {"model": {"path": arguments.pretrained, "train": "full", "train_merger": False}}
    settings = {key: value for key, value in base.items() if key != "method"}
    return configure(merge(settings, model), _without_none(given))


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    nested = {name: _without_none(x) if isinstance(x, Mapping) else x for name, x in tree.items()}
    return {name: x for name, x in nested.items() if x is not None}


class TaskDecoding(NamedTuple):
    """How the responses of a task are drawn. A response ends before the first text of `until`."""

    decoding: DecodingConfig
    greedy: bool
    until: tuple[str, ...]


@dataclass(frozen=True)
class Overrides:
    """What the user set, which overrides the task. None leaves it to the task."""

    votes: int = 1
    kind: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None

    def decoding(self, task: Mapping[str, Any], base: DecodingConfig) -> TaskDecoding:
        """Combine the user's settings, the task's generation_kwargs and `base`, in this order of precedence."""
        temperature = self.temperature
        if temperature is None:
            # A greedy task cannot be voted on, so votes are sampled at the temperature of `base`.
            temperature = _temperature(task) if self.votes == 1 else base.temperature
        if int(task.get("num_beams") or 1) > 1:
            log.warning("num_beams=%s of the task is ignored: mm_spine has no beam search", task["num_beams"])
        changes: dict[str, Any] = {
            "max_new_tokens": int(self.max_new_tokens or task.get("max_new_tokens") or base.max_new_tokens),
            "top_p": float(self.top_p or task.get("top_p") or base.top_p),
        }
        if temperature > 0:
            changes["temperature"] = temperature
        until = task.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        stops = tuple(stop for stop in stops if stop and stop != NO_STOP)
        return TaskDecoding(base.model_copy(update=changes), temperature == 0, stops)


def _temperature(task: Mapping[str, Any]) -> float:
    """Return the temperature of a task: 0 where it is greedy, 1 where it sets only `do_sample`."""
    if task.get("do_sample") is False:
        return 0.0
    given = task.get("temperature")
    return float(given) if given is not None else float(bool(task.get("do_sample")))


class MMSpine(lmms):
    """A Policy as a model of lmms-eval. It answers one user turn of texts and images in any order."""

    is_simple = False

    def __init__(self, policy: Policy, config: RunConfig, overrides: Overrides | None = None) -> None:
        """Evaluate `policy` in place. No weights are copied; its record of prompts and skipped questions is kept."""
        super().__init__()
        self.policy, self.config, self.overrides = policy, config, overrides or Overrides()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> MMSpine:
        """Load the model of `--model_args`. Raises ConfigError before anything loads, and ModelError."""
        return cls.load(read_arguments(simple_parse_args_string(arg_string)))

    @classmethod
    def load(cls, arguments: Arguments) -> MMSpine:
        """Load the model of `arguments`, on the GPU of this process where there are several."""
        config = config_of(arguments)
        check_sampler(config.sampling.backend)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        policy = Policy.load(
            resolve_model(arguments.pretrained), config.model, config.seed, config.cache, prompt=config.prompt
        )
        if arguments.adapter is not None:
            merge_adapter(policy, arguments.adapter)
        overrides = {name: getattr(arguments, name) for name in Overrides.__dataclass_fields__}
        return cls(policy, config, Overrides(**overrides))

    @property
    def device(self) -> torch.device:
        """The device for tensors that lmms-eval's ranks exchange."""
        return self.policy.device

    def clean(self) -> None:
        """Free nothing: the weights belong to the caller who made the policy."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        # lmms-eval 0.7 asks chat models only to generate (`ConfigurableMessagesTask`).
        raise NotImplementedError("mm_spine generates answers; a task scored by log-likelihood is not supported")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mm_spine answers one user turn; a task of several rounds is not supported")

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return a response for each request, in order, or "" where it cannot be asked; the reason is logged."""
        answers: dict[int, GenerationResult] = {}
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="mm_spine")
        for repeat, gen_kwargs, indices in _alike(requests):
            how = self.overrides.decoding(json.loads(gen_kwargs), self.config.evaluation)
            sampler = make_sampler(self.policy, self.config, how.decoding)
            for start in range(0, len(indices), CHUNK):
                chunk = indices[start : start + CHUNK]
                given = self._respond(sampler, [requests[i].args for i in chunk], how, repeat)
                answers |= zip(chunk, given, strict=True)
                progress.update(len(chunk))
        progress.close()
        return [answers[i] for i in range(len(requests))]

    def _respond(
        self, sampler: Sampler, chunk: Sequence[tuple[Any, ...]], how: TaskDecoding, repeat: int
    ) -> list[GenerationResult]:
        """Answer a chunk of requests. `repeat` counts earlier requests for the same question, whose draws differ."""
        questions = {i: question for i, arguments in enumerate(chunk) if (question := self._question(arguments))}
        votes = 1 if how.greedy else self.overrides.votes
        with _prompts_forgotten(self.policy):
            rollouts = sampler.sample(
                list(questions.values()), votes, step=0, purpose="lmms-eval", greedy=how.greedy, first=repeat * votes
            )
        drawn = dict(zip(questions, rollouts, strict=True))
        return [self._answer(questions.get(i), drawn.get(i, ()), how.until) for i in range(len(chunk))]

    def _question(self, arguments: tuple[Any, ...]) -> Question | None:
        _, doc_to_messages, _, doc_id, task, split = arguments
        name, doc = f"{task}/{split}/{doc_id}", self.task_dict[task][split][doc_id]
        if self.overrides.kind is not None:
            spec = AnswerSpec(self.overrides.kind)
        else:
            spec = lmms_tasks.question_of(doc).spec if lmms_tasks.is_ours(doc) else AnswerSpec("text")
        try:
            return question_of(doc_to_messages(doc), name, spec)
        # PIL raises OSError for damaged files.
        except (BadQuestion, OSError) as error:
            log.warning("question skipped: %s", error if isinstance(error, BadQuestion) else f"{name}: {error}")
            return None

    def _answer(self, question: Question | None, rollouts: Sequence[Rollout], until: tuple[str, ...]) -> Any:
        if question is None or not rollouts:
            return GenerationResult("", TokenCounts(output_tokens=0))
        responses = [cut(rollout, until) for rollout in rollouts]
        text = responses[0].text if len(responses) == 1 else voted(question, responses, self.config.sampling.votes)
        return GenerationResult(text, TokenCounts(output_tokens=sum(len(rollout.token_ids) for rollout in rollouts)))


def voted(question: Question, rollouts: Sequence[Rollout], rules: VotesConfig) -> str:
    """Return the first response whose answer represents the winning class, or the first of all if none voted."""
    group = make_group(question, rollouts, rules)
    winner = representative(group.parsed, group.answers, group.vote.answer)
    # A response that was cut off may hold the same answer, but did not vote.
    won = zip(rollouts, group.parsed, group.answers, strict=True)
    return next((r.text for r, answer, name in won if name is not None and answer == winner), rollouts[0].text)


def cut(rollout: Rollout, until: Sequence[str]) -> Rollout:
    """Return the rollout with its text up to the first text of `until` in it. It then counts as finished."""
    found = [at for stop in until if (at := rollout.text.find(stop)) >= 0]
    return replace(rollout, text=rollout.text[: min(found)], finish_reason="stop") if found else rollout


def question_of(messages: Sequence[Mapping[str, Any]], name: str, spec: AnswerSpec) -> Question:
    """Make a question of a chat of one user turn, with its images at their places between its texts.

    Raises ValueError, naming the question, for another role, several turns, a video or a sound.
    """
    turns = ChatMessages(messages=list(messages)).messages
    if [turn.role for turn in turns] != ["user"]:
        roles = ", ".join(turn.role for turn in turns) or "nothing"
        raise ValueError(f"{name}: turns of {roles}; mm_spine answers one turn of the user, leave this task out")
    images: list[ImageLike] = []
    texts: list[str] = []
    for part in turns[0].content:
        if part.type not in ("text", "image"):
            raise ValueError(f"{name}: holds {part.type}; mm_spine sees text and images only, leave this task out")
        if part.type == "image":
            images.append(part.url)
        # "<image2>" within a text of lmms-eval is no marker of ours, so it becomes "image 2".
        texts.append(f"<image{len(images)}>" if part.type == "image" else as_words(part.text))
    prompt = "".join(texts)
    return Question(name, tuple(images), prompt, about(spec, prompt), "lmms-eval")


def merge_adapter(policy: Policy, folder: Path) -> None:
    """Merge a LoRA adapter that `Policy.save` wrote into the weights. Raises ConfigError if it is of another model."""
    import peft

    try:
        adapted = peft.PeftModel.from_pretrained(policy.model, str(folder))
        with safe_open(folder / ADAPTER, framework="pt") as saved:
            # peft only warns about a weight that fits no layer.
            if set(saved.keys()) != set(peft.get_peft_model_state_dict(adapted)):
                raise ValueError("its weights have other names than the model's layers")
    except (ValueError, RuntimeError, SafetensorError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"model_args adapter={folder}: not of this model ({why}); give both of one run") from error
    adapted.merge_and_unload()


def _alike(requests: Sequence[Any]) -> Iterator[tuple[int, str, list[int]]]:
    """Group requests that can be drawn together: of one task, with equal generation_kwargs, for different questions.

    Yields (how often each question was asked before, generation_kwargs as JSON, indices of the requests).
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, request in enumerate(requests):
        _, _, gen_kwargs, doc_id, task, split = request.args
        text = json.dumps(gen_kwargs, sort_keys=True, default=str)
        asked = (task, split, doc_id, text)
        groups.setdefault((task, split, text, seen[asked]), []).append(index)
        seen[asked] += 1
    for (_, _, text, repeat), indices in groups.items():
        yield repeat, text, indices


@contextmanager
def _prompts_forgotten(policy: Policy) -> Iterator[None]:
    """Restore the prompts and the skipped questions of `policy` afterwards."""
    prompts, skipped = policy._prompts, policy.skipped
    policy._prompts, policy.skipped = {}, {}
    try:
        yield
    finally:
        policy._prompts, policy.skipped = prompts, skipped
