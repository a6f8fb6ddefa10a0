"""The nouns of mm-spine. Everything else is a function between these.

Shape suffixes: Q questions, N rollouts (or leaves) of one question or micro-batch, T response tokens.
Entropies and log-probabilities are in nats and belong to the one policy distribution
pi = softmax(mask(logits) / temperature), vision specials masked (`policy.distribution`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL.Image import Image, fromarray

if TYPE_CHECKING:
    # Importing torch takes seconds, and much that needs a noun needs no tensor.
    from torch import Tensor


@runtime_checkable
class ImageFile(Protocol):
    """An image that is not in memory: a member of an archive, a cell of a table. A `zipfile.Path` is an ImageFile."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class ImagePart:
    """A part of an image file. `how` says which, as after "#" in "scan.dcm#3" or "head.nii.gz#axis=0,slice=40"."""

    file: Path | bytes | ImageFile
    how: str

    def __str__(self) -> str:
        name = "image" if isinstance(self.file, bytes) else str(self.file)
        return f"{name}#{self.how}"

    def is_file(self) -> bool:
        """Return whether the file exists; what has no `is_file` was found when its archive or table was read."""
        is_file = getattr(self.file, "is_file", None)
        return bool(is_file()) if is_file else True

    def read_bytes(self) -> bytes:
        """Read the whole file. Raises OSError where it is no regular file: reading a pipe could block for ever."""
        if not self.is_file():
            raise FileNotFoundError(f"no regular file for {self}")
        return self.file if isinstance(self.file, bytes) else self.file.read_bytes()


ImageLike = Image | Path | str | bytes | ImageFile
"""A decoded image, a file, or the bytes of a file. A file is opened only when its question is encoded."""

AnswerKey = Mapping[str, tuple[str, ...]]
"""Question id -> gold answers. Only `mm_spine.evaluation` receives one."""


@dataclass(frozen=True)
class AnswerSpec:
    """What a comparable answer to a question looks like. It never says which answer is right.

    `question` holds the words of the question, for kinds of free text: what it says already carries no answer. `iou`
    is the least overlap of two boxes that are the same, in (0, 1].
    """

    kind: str
    choices: tuple[str, ...] = ()
    precision: int | None = None
    unit: str | None = None
    value_type: str | None = None
    ordered: bool = True
    question: str = ""
    iou: float | None = None


@dataclass(frozen=True, init=False)
class Question:
    """An unlabelled question. There is no field for a gold answer, on purpose."""

    id: str
    images: tuple[ImageLike, ...]
    prompt: str
    spec: AnswerSpec
    benchmark: str = "own"

    def __init__(
        self,
        id: str,
        images: ImageLike | np.ndarray | Iterable[ImageLike | np.ndarray] | None,
        prompt: str,
        spec: AnswerSpec | str,
        benchmark: str = "own",
    ) -> None:
        """Make a question about one image, several, or none (None or an empty tuple).

        An array has shape (H, W), (H, W, 3) or (H, W, 4) and is of uint8; one of shape (H, W) may be of uint16 or
        float32 too, whose grey values are scaled as those of a file. The text "integer" as `spec` stands for
        AnswerSpec("integer"). Raises ValueError for another array, TypeError for an id or a prompt that is no text.
        """
        for name, text in (("id", id), ("prompt", prompt)):
            if not isinstance(text, str):
                raise TypeError(
                    f"the {name} of a question is text, not {type(text).__name__}: {text!r:.60}; the order is "
                    'Question(id, images, prompt, spec), such as Question("q0", image, "What is the sum?", "integer")'
                )
        given: Iterable[ImageLike | np.ndarray]
        if images is None:
            given = ()
        elif isinstance(images, Image | Path | str | bytes | np.ndarray | ImageFile):
            given = (images,)
        else:
            given = images
        values = {
            "id": id,
            "images": tuple(
                _picture(image, id) if isinstance(image, np.ndarray) else image_part(image) for image in given
            ),
            "prompt": prompt,
            "spec": AnswerSpec(spec) if isinstance(spec, str) else spec,
            "benchmark": benchmark,
        }
        # The fields of a frozen dataclass cannot be assigned.
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _picture(pixels: np.ndarray, question_id: str) -> Image:
    """Return an array as an image. Raises ValueError for shapes and types that say no colours or greys."""
    grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    colours = grey.ndim == 3 and grey.shape[2] in (3, 4)
    if (grey.dtype == np.uint8 and (colours or grey.ndim == 2)) or (
        grey.dtype in (np.uint16, np.float32) and grey.ndim == 2
    ):
        return fromarray(np.ascontiguousarray(grey))
    raise ValueError(
        f"{question_id}: an array of shape {pixels.shape} and type {pixels.dtype} is no image; give (H, W), (H, W, 3) "
        "or (H, W, 4) of uint8, or (H, W) of uint16 or float32"
    )


def image_part(image: ImageLike) -> ImageLike:
    """Split "scan.dcm#3" into file and part, unless a file has that whole name; return anything else as it is."""
    if not isinstance(image, str | Path) or "#" not in str(image) or os.path.isfile(image):
        return image
    file, _, how = str(image).rpartition("#")
    return ImagePart(Path(file), how) if file else image


class Answer(NamedTuple):
    """A parsed answer. `key` is its canonical form, None where the kind has no keys: equal keys mean equal answers."""

    text: str
    key: str | None


class Verdict(NamedTuple):
    """One graded response: `score` in [0, 1], whether it is `correct`, and one sentence that says `why`."""

    score: float
    correct: bool
    why: str


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response of T tokens, the end token included when it was drawn.

    `logp` (T,) are the log-probs of the drawn tokens, nats. `entropy` (T,) are exact token entropies, nats, None where
    the sampler gives none. `statistic` (T,) is the method's statistic of the head, None where it has none. A branch of
    a tree names its `parent` rollout's index and `fork_at`, the first token of its own. `weight` counts the identical
    rollouts that a leaf stands for. One that is `replayed` was drawn at an earlier step, by the policy of then.
    `thinking` counts the tokens up to the end of the first tag that closes thinking, None where there is no such tag.
    """

    question_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    logp: np.ndarray
    entropy: np.ndarray | None
    finish_reason: str
    parent: int | None = None
    fork_at: int | None = None
    weight: int = 1
    statistic: np.ndarray | None = None
    replayed: bool = False
    thinking: int | None = None

    @property
    def own_tokens(self) -> int:
        """How many tokens were drawn for this rollout. Those before its fork were drawn for its parent."""
        return len(self.token_ids) - (self.fork_at or 0)


@dataclass(frozen=True, eq=False)
class Request:
    """One response to sample: rollout `index` of `question`, continued after the token ids `prefix`.

    `barred` maps token ids that cannot be drawn first to their log-probs (nats) under the policy. `parent` is the index
    of the rollout that the prefix is the beginning of, None where it is of none.
    """

    question: Question
    index: int
    prefix: tuple[int, ...] = ()
    barred: Mapping[int, float] = field(default_factory=dict)
    parent: int | None = None


Propose = Callable[[Question, Sequence[Rollout], np.random.Generator], list[Request]]
"""(question, what is drawn of one family, its root first, draws of the family's own) -> what may be drawn now.

It is asked again after each rollout of the family, with draws that begin anew, until every index was requested. A
request of an index that was requested before is passed over, so that a proposal needs no memory. A request that names
a `parent` continues this rollout of the family, whose first tokens are its prefix.
"""


class Growth(NamedTuple):
    """How rollouts grow from others, in families: a root, drawn like any response, and `size` - 1 rollouts proposed.

    What is never proposed is drawn like any response once all that was proposed is drawn. With `reads_entropies` the
    root has exact entropies where the sampler gives none, too.
    """

    size: int
    propose: Propose
    reads_entropies: bool = False


@dataclass(frozen=True)
class Vote:
    """The outcome over all N rollouts.

    `answer` names the winning class, None when nothing voted. `counts` maps class names to votes, the winner first.
    `share` (of the winner) and `margin` (over the second) are shares of N. `n_parsed` counts the rollouts that voted.
    """

    answer: str | None
    share: float
    counts: Mapping[str, int]
    margin: float
    n_parsed: int

    @property
    def tied(self) -> bool:
        """Whether several classes have the most votes."""
        return self.answer is not None and self.margin == 0


@dataclass(frozen=True, eq=False)
class Group:
    """The N rollouts of one question, their vote and their label-free credit.

    `parsed[i]` is the answer parsed from rollout i, None when nothing was parsed. `answers[i]` is its vote class, None
    also where it does not vote (`sampling.votes.cut_off`). `vote` may be over more rollouts than are kept here.
    `rewards` and `advantages` have shape (N,), None until credit is assigned. `dropped` holds the indices
    (`Rollout.index`) of the rollouts that the policy term leaves out (`sampling.votes.ties`, `cut_off`). `measured` has
    what a method asked of each rollout beyond its own scores, None for a rollout of which it asked nothing.
    `wording_of` is the id of the question that `question` is a wording of (`sampling.wordings`), None without further
    wordings.
    """

    question: Question
    rollouts: tuple[Rollout, ...]
    answers: tuple[str | None, ...]
    vote: Vote
    rewards: Tensor | None = None
    advantages: Tensor | None = None
    parsed: tuple[Answer | None, ...] = field(kw_only=True)
    dropped: frozenset[int] = field(default=frozenset(), kw_only=True)
    measured: tuple[np.ndarray | None, ...] | None = field(default=None, kw_only=True)
    wording_of: str | None = field(default=None, kw_only=True)

    def at(self, chosen: list[int]) -> Group:
        """Return the group with the rollouts at these places, in this order, under the same vote."""
        return replace(
            self,
            rollouts=tuple(self.rollouts[i] for i in chosen),
            answers=tuple(self.answers[i] for i in chosen),
            parsed=tuple(self.parsed[i] for i in chosen),
            measured=None if self.measured is None else tuple(self.measured[i] for i in chosen),
            rewards=None if self.rewards is None else self.rewards[chosen],
            advantages=None if self.advantages is None else self.advantages[chosen],
        )


class Ask(NamedTuple):
    """Tokens whose log-probs under the policy a method wants to know, as if they were a response to the question.

    They are those of the last `counted` of `token_ids`, each given all tokens before it.
    """

    token_ids: tuple[int, ...]
    counted: int


class TokenStats(NamedTuple):
    """Log-probs and entropies of a micro-batch by the trainer: nats, with gradient; 0 where no token is selected."""

    logp_NT: Tensor
    entropy_NT: Tensor
    selected_NT: Tensor


@dataclass
class StepReport:
    """One line of steps.jsonl. Shares are in [0, 1], entropies and bounds in nats, lengths in tokens.

    `majority_share` to `cut_off` are over the `rollouts_sampled`; votes that stop early make those fewer.
    `tokens_sampled` counts a prefix that branches share once. `tokens_saved` adds what branches share and an estimate
    of the tokens that early stops did not draw. Entropies are None where nothing had to measure them. With
    `sampling.votes.keep`, shares of votes are over all `questions_sampled`, and `questions_kept` of these trained.
    `loss_terms` are the method's further terms by name, weighted; `loss_step` is its loss of the whole step.
    `ratio_truncated` is the share of selected tokens whose importance weight `method.truncate` cuts; `memory` has the
    numbers that the method remembers after the step. `replayed` counts the rollouts of earlier steps that trained.
    `reward_mean` is the mean reward of a method that has rollouts measured by a further forward.
    """

    step: int
    lr: float = 0.0
    loss: float = 0.0
    loss_policy: float = 0.0
    loss_band: float = 0.0
    loss_kl: float = 0.0
    grad_norm: float = 0.0
    update_norm: float | None = None
    majority_share: float = 0.0
    margin: float = 0.0
    unparsed: float = 0.0
    unanimous: float = 0.0
    ties: float = 0.0
    cut_off: float = 0.0
    length_mean: float = 0.0
    entropy_mean: float | None = None
    entropy_forks: float | None = None
    band_low: float | None = None
    band_high: float | None = None
    share_below: float | None = None
    share_above: float | None = None
    selected_share: float = 0.0
    ratio_clipped: float = 0.0
    parity_mean: float = 0.0
    parity_max: float = 0.0
    parity_kl: float = 0.0
    rollouts_sampled: int = 0
    tokens_sampled: int = 0
    tokens_saved: int = 0
    tokens_trained: int = 0
    cache_hits: int = 0
    questions_sampled: int | None = None
    questions_kept: int | None = None
    loss_terms: dict[str, float] | None = None
    loss_step: float | None = None
    ratio_truncated: float | None = None
    memory: dict[str, float] | None = None
    replayed: int | None = None
    reward_mean: float | None = None

    def row(self) -> dict[str, Any]:
        """Return the line of steps.jsonl. What only some methods and settings have is left out of other runs."""
        some = (
            *(
                "questions_sampled",
                "questions_kept",
                "loss_terms",
                "loss_step",
                "ratio_truncated",
                "memory",
                "replayed",
            ),
            "reward_mean",
        )
        return {name: value for name, value in vars(self).items() if value is not None or name not in some}


@dataclass(frozen=True)
class LabelledSet:
    """What a benchmark module loads: questions for everyone, the key only for `evaluation`.

    `tags` maps a question id to the tags that results are broken down by. `problems` has one sentence for each row
    that could not be used in full.
    """

    questions: tuple[Question, ...]
    key: AnswerKey
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


Reward = Callable[[Group], "Tensor"]
"""(group without rewards) -> rewards, shape (N,)."""

Statistic = Callable[["Tensor", "Tensor | None", "Tensor"], "Tensor"]
"""(log_probs_SV, the starting policy's log_probs_SV where they are known, target_S) -> a value of each token (S,).

A row of log-probs is that of a token's prediction; banned tokens have -inf."""
