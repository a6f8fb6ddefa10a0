"""The nouns of this package: a benchmark, where its rows are released, and one row once it has been read.

Every other module here imports this one, and this one imports none of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_spine.processors.answers.choice import LABELS
from mm_spine.types import AnswerSpec, ImageLike, LabelledSet

Row = Mapping[str, Any]
"""One row of a table: column name -> value, as released."""

Images = Callable[[Any], ImageLike]
"""The value of an image field (a name, bytes, the hub's {"bytes", "path"}) -> an image that is opened later.

Raises ValueError where the value is no image, or a name that leads out of the release.
"""


@dataclass(frozen=True)
class Source:
    """Where the rows and images of a release are.

    `hub` is the id of a data set on the Hugging Face hub, with its `config` and `revision`. `files` maps each split to
    glob patterns, relative to the folder of a release: the first pattern that matches a file is used, and all files
    that it matches are read in order. Images are looked up by name in `images`, which are folders and zip archives.
    `hub_splits` maps a split to its name on the hub where the two differ.
    """

    hub: str
    files: Mapping[str, tuple[str, ...]]
    config: str | None = None
    revision: str = "main"
    images: tuple[str, ...] = (".", "images", "images.zip")
    hub_splits: Mapping[str, str] = field(default_factory=dict)

    def patterns(self, split: str) -> list[str]:
        """Return the glob patterns of `split`, each first below the folder of the configuration."""
        bases = [f"{self.config}/", ""] if self.config else [""]
        return [base + pattern for pattern in self.files[split] for base in bases]

    def hub_split(self, split: str) -> str:
        """Return the name that `split` has on the hub."""
        return self.hub_splits.get(split, split)


@dataclass(frozen=True)
class Entry:
    """One row, read.

    `body` is the question; `<image1>` marks the place of its first image. `golds` is empty where the answer is
    withheld. `tags` are what results are broken down by. `lists_options` is true where `body` shows the options
    itself, so that the prompt need not.
    """

    id: str
    body: str
    spec: AnswerSpec
    golds: tuple[str, ...]
    images: tuple[ImageLike, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    lists_options: bool = False


Read = Callable[[Row, Images, int], Entry | None]
"""(row, images, index of the row in its split) -> the entry, or None for a row of another split or language.

Raises KeyError, TypeError or ValueError where the row cannot be read. Such a row is skipped and reported.
"""


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A named set of questions with an answer key.

    `kind` is the answer kind of its questions, `metric` what its published results measure, and `breakdowns` the tags
    that these are broken down by. A run adapts to `adapt_split` and also evaluates `held_out_split`, where there is
    one. `default_model` is the folder of a model shipped with the benchmark; where there is none, `model_hint` may say
    in one clause how to come by one. `source` is None where the questions are not a public release.
    """

    name: str
    summary: str
    citation: str = ""
    licence: str = ""
    kind: str = "text"
    metric: str = "accuracy"
    breakdowns: tuple[str, ...] = ()
    adapt_split: str = "test"
    held_out_split: str | None = None
    default_model: Path | None = None
    model_hint: str = ""
    source: Source | None = None

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of all splits."""

    @abstractmethod
    def load(self, split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
        """Return the questions of `split`, their answer key and their tags.

        `source` is another place of the release, a folder or a hub id; `prompt` is one of `prompts.STYLES`. Both have
        the meaning of the configuration keys of that name. Raises ValueError where there is no such split, or nothing
        can be read.
        """


def golds(*values: Any) -> tuple[str, ...]:
    """Return the gold answers of a row as texts, without those that are withheld (None, empty or "?")."""
    texts = (str(value).strip() for value in values if value is not None)
    return tuple(text for text in texts if text not in ("", "?"))


def letter(index: Any) -> str | None:
    """Return the letter of the option at `index`, counted from 0, or None where it is withheld (None or -1)."""
    return LABELS[int(index)] if index is not None and 0 <= int(index) < len(LABELS) else None
