"""An adapted model under lmms-eval 0.7: `lmms-eval --model mm_spine --model_args pretrained=DIR,... --tasks ...`.

Prompts, images and tokens take the same path as in training and in `mm-spine evaluate`: one processor, one sampler.
"""

from __future__ import annotations

import json
import logging
import os
import re
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

from mm_spine.config import ConfigError, Count, DecodingConfig, NonNegative, RunConfig, Share
from mm_spine.config_layers import merge, read_yaml
from mm_spine.evaluation import CHUNK
from mm_spine.integrations import lmms_tasks
from mm_spine.methods.table import configure
from mm_spine.policy.folder import resolve_model
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import known_kinds, parse
from mm_spine.processors.vision import BadQuestion
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import check_sampler, make_sampler
from mm_spine.types import AnswerSpec, ImageLike, Question, Rollout
from mm_spine.voting import make_group, representative
from mm_spine.words import nearest

log = logging.getLogger(__name__)

NEW_TOKENS = 1024
"""Length of a response where neither the user nor the task sets one."""

NO_STOP = "\n\n"
"""What lmms-eval puts in `until` where a task sets nothing; no stop for its own Qwen2.5-VL model either, because it
would end an answer after its first paragraph."""

ADAPTER = "adapter_model.safetensors"

_MARKER = re.compile(r"<image ?([0-9]{1,3})>")


class Arguments(BaseModel):
    """`--model_args`. What is None is as the task says; else as `config`, a run's config.yaml, says.

    `votes` above 1 samples as many responses and answers with one of the winning class, told apart as answers of
    `kind`; our own tasks say the kind themselves, for others it is text. `adapter` is a LoRA folder, as in
    RUN/adapted/adapter, for the model that was adapted. lmms-eval's own batch_size has no effect; `batch_rows` has.
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


_LMMS_EVALS_OWN = ("batch_size", "max_batch_size", "device")


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """The validated arguments. Raises ConfigError, one line per wrong one."""
    try:
        found = Arguments.model_validate({name: x for name, x in given.items() if name not in _LMMS_EVALS_OWN})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from error
    if found.votes > 1 and found.temperature == 0:
        raise ConfigError(f"model_args votes={found.votes}: at temperature 0 all are the same; raise it, or votes=1")
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
    """How to load and sample: `arguments` over the config.yaml of the run that adapted the model, if it is known."""
    adapted = Path(arguments.pretrained)
    beside = adapted.parent / "config.yaml" if adapted.name == "adapted" else None
    saved = arguments.config or (beside if beside is not None and beside.is_file() else None)
    base = {"evaluation": {"max_new_tokens": NEW_TOKENS}} if saved is None else read_yaml(saved)
    given = {
        "model": {name: getattr(arguments, name) for name in ("dtype", "min_pixels", "max_pixels")},
        "sampling": {"backend": arguments.backend},
        "evaluation": {"batch_rows": arguments.batch_rows},
        "seed": arguments.seed,
    }
    plain = {"model": {"path": arguments.pretrained, "train": "full", "train_merger": False}}
    return configure(merge(base, plain), _given(given))


def _given(tree: Mapping[str, Any]) -> dict[str, Any]:
    nested = {name: _given(x) if isinstance(x, Mapping) else x for name, x in tree.items()}
    return {name: x for name, x in nested.items() if x is not None}


class Drawing(NamedTuple):
    """How a task's responses are drawn, and the texts that end one."""

    decoding: DecodingConfig
    greedy: bool
    until: tuple[str, ...]


@dataclass(frozen=True)
class Wishes:
    """What the user asked for, whatever the task says; None: as the task says."""

    votes: int = 1
    kind: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None

    def drawing(self, task: Mapping[str, Any], base: DecodingConfig) -> Drawing:
        """From a task's generation_kwargs; what neither says is as `base`. Votes are sampled even of a greedy task."""
        temperature = self.temperature
        if temperature is None:
            temperature = _temperature(task) if self.votes == 1 else base.temperature
        if int(task.get("num_beams") or 1) > 1:
            log.warning("num_beams=%s of the task is not honoured: there is no beam search here", task["num_beams"])
        changes: dict[str, Any] = {
            "max_new_tokens": int(self.max_new_tokens or task.get("max_new_tokens") or base.max_new_tokens),
            "top_p": float(self.top_p or task.get("top_p") or base.top_p),
        }
        if temperature > 0:
            changes["temperature"] = temperature
        until = task.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        stops = tuple(stop for stop in stops if stop and stop != NO_STOP)
        return Drawing(base.model_copy(update=changes), temperature == 0, stops)


def _temperature(task: Mapping[str, Any]) -> float:
    """A task's temperature, 0 for greedy; `do_sample` alone means 1."""
    if task.get("do_sample") is False:
        return 0.0
    given = task.get("temperature")
    return float(given) if given is not None else float(bool(task.get("do_sample")))


class MMSpine(lmms):
    """lmms-eval's view of a Policy. Asks questions of one user turn, with texts and images in any order."""

    is_simple = False

    def __init__(self, policy: Policy, config: RunConfig, wishes: Wishes | None = None) -> None:
        """Around a live policy: no weights are copied, and its prompts and skipped questions stay its own."""
        super().__init__()
        self.policy, self.config, self.wishes = policy, config, wishes or Wishes()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> MMSpine:
        """What lmms-eval calls. Raises ConfigError before a model loads, ModelError for one that cannot be used."""
        return cls.load(read_arguments(simple_parse_args_string(arg_string)))

    @classmethod
    def load(cls, arguments: Arguments) -> MMSpine:
        """The model of `arguments`, on this process's own GPU where there are several."""
        config = config_of(arguments)
        check_sampler(config.sampling.backend)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        policy = Policy.load(resolve_model(arguments.pretrained), config.model, config.seed, config.cache)
        if arguments.adapter is not None:
            merge_adapter(policy, arguments.adapter)
        wishes = {name: getattr(arguments, name) for name in Wishes.__dataclass_fields__}
        return cls(policy, config, Wishes(**wishes))

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what its ranks exchange."""
        return self.policy.device

    def clean(self) -> None:
        """Nothing is freed: the weights belong to whoever made the policy."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not asked of chat models by lmms-eval 0.7 (`ConfigurableMessagesTask` is for generation)."""
        raise NotImplementedError("mm_spine generates answers; a task scored by log-likelihood is not supported")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mm_spine answers one user turn; a task of several rounds is not supported")

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """A response per request, in order; "" for a question that cannot be asked (the reason is logged)."""
        answers: dict[int, GenerationResult] = {}
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="mm_spine")
        for round_, gen_kwargs, places in _alike(requests):
            drawing = self.wishes.drawing(json.loads(gen_kwargs), self.config.evaluation)
            sampler = make_sampler(self.policy, self.config, drawing.decoding)
            for at in range(0, len(places), CHUNK):
                chunk = places[at : at + CHUNK]
                given = self._respond(sampler, [requests[i].args for i in chunk], drawing, round_)
                answers |= zip(chunk, given, strict=True)
                progress.update(len(chunk))
        progress.close()
        return [answers[i] for i in range(len(requests))]

    def _respond(
        self, sampler: Sampler, chunk: Sequence[tuple[Any, ...]], drawing: Drawing, round_: int
    ) -> list[GenerationResult]:
        """Repeats of a question are told apart by `round_`: each draws rollouts of its own."""
        questions = {i: question for i, arguments in enumerate(chunk) if (question := self._question(arguments))}
        votes = 1 if drawing.greedy else self.wishes.votes
        how: dict[str, Any] = {"step": 0, "purpose": "lmms-eval", "greedy": drawing.greedy, "first": round_ * votes}
        with _own_questions(self.policy):
            drawn = dict(zip(questions, sampler.sample(list(questions.values()), votes, **how), strict=True))
        return [self._answer(questions.get(i), drawn.get(i, ()), drawing.until) for i in range(len(chunk))]

    def _question(self, arguments: tuple[Any, ...]) -> Question | None:
        _, doc_to_messages, _, doc_id, task, split = arguments
        name, doc = f"{task}/{split}/{doc_id}", self.task_dict[task][split][doc_id]
        kind = self.wishes.kind
        ours = lmms_tasks.question_of(doc).spec if kind is None and lmms_tasks.is_ours(doc) else AnswerSpec("text")
        try:
            return question_of(doc_to_messages(doc), name, ours if kind is None else AnswerSpec(kind))
        except (BadQuestion, OSError) as error:  # PIL's errors of damaged files are of the second kind
            log.warning("question skipped: %s", error if isinstance(error, BadQuestion) else f"{name}: {error}")
            return None

    def _answer(self, question: Question | None, rollouts: Sequence[Rollout], until: tuple[str, ...]) -> Any:
        if question is None or not rollouts:
            return GenerationResult("", TokenCounts(output_tokens=0))
        said = [replace(rollout, text=cut(rollout.text, until)) for rollout in rollouts]
        text = said[0].text if len(said) == 1 else voted(question, said)
        return GenerationResult(text, TokenCounts(output_tokens=sum(len(rollout.token_ids) for rollout in said)))


def voted(question: Question, rollouts: Sequence[Rollout]) -> str:
    """The first response with the answer that stands for the winning class; the first of all where none parsed."""
    group = make_group(question, rollouts)
    answers = [parse(rollout.text, question.spec) for rollout in rollouts]
    winner = representative(answers, group.answers, group.vote.answer)
    return rollouts[0 if winner is None else answers.index(winner)].text


def cut(text: str, until: Sequence[str]) -> str:
    """`text` before the first of `until`."""
    return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=len(text))]


def question_of(messages: Sequence[Mapping[str, Any]], name: str, spec: AnswerSpec) -> Question:
    """The question of a chat: one user turn, whose images take the places that they have between its texts.

    ValueError naming the question: another role, several turns, a video or a sound. What looks like a marker of ours
    in a text is no image: it becomes the words "image K".
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
        texts.append(f"<image{len(images)}>" if part.type == "image" else _MARKER.sub(r"image \1", part.text))
    return Question(name, tuple(images), "".join(texts), spec, "lmms-eval")


def merge_adapter(policy: Policy, folder: Path) -> None:
    """Add a LoRA adapter, as `Policy.save` writes one, to the weights. ConfigError: it is of another model."""
    import peft

    try:
        adapted = peft.PeftModel.from_pretrained(policy.model, str(folder))
        with safe_open(folder / ADAPTER, framework="pt") as saved:
            # peft leaves out a weight that it has no place for, with a warning alone.
            if set(saved.keys()) != set(peft.get_peft_model_state_dict(adapted)):
                raise ValueError("its weights have other names than the model's layers")
    except (ValueError, RuntimeError, SafetensorError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"model_args adapter={folder}: not of this model ({why}); give both of one run") from error
    adapted.merge_and_unload()


def _alike(requests: Sequence[Any]) -> Iterator[tuple[int, str, list[int]]]:
    """(times asked before, generation_kwargs as JSON, places) of requests of one task, to be drawn together."""
    seen: Counter[tuple[Any, ...]] = Counter()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, request in enumerate(requests):
        _, _, gen_kwargs, doc_id, task, split = request.args
        text = json.dumps(gen_kwargs, sort_keys=True, default=str)
        asked = (task, split, doc_id, text)
        groups.setdefault((task, split, text, seen[asked]), []).append(place)
        seen[asked] += 1
    for (_, _, text, round_), places in groups.items():
        yield round_, text, places


@contextmanager
def _own_questions(policy: Policy) -> Iterator[None]:
    """The policy forgets what is asked here: its prompts, which hold images, and which questions were skipped."""
    prompts, skipped = policy._prompts, policy.skipped
    policy._prompts, policy.skipped = {}, {}
    try:
        yield
    finally:
        policy._prompts, policy.skipped = prompts, skipped
