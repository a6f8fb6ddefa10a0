"""Define the sections of a configuration that say what is evaluated and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mm_spine.config.sampling import DecodingConfig
from mm_spine.config.values import Count, Natural, Section


class EvaluationConfig(DecodingConfig):
    """One greedy response and `samples` sampled ones for each question, before and after adaptation. `before` reuses
    the evaluation of another run with the same start.

    The tasks of `lmms_eval` are evaluated before, after, and every `lmms_eval_every` steps (0: not in between), on
    the first `lmms_eval_limit` items of each. `lmms_eval_tasks` is a folder of further tasks.

    An evaluation that was stopped goes on at the next `block` of questions, with the same result; several ranks
    evaluate again from the start. A smaller block loses less and samples fewer responses together.
    """

    samples: Count = Field(default=16, description="sampled responses of each question, beside the greedy one")
    held_out: bool = Field(default=True, description="also evaluate the benchmark's held-out split")
    limit: Count | None = Field(default=None, description="only the first so many questions of each split")
    before: Path | None = Field(default=None, description="take the evaluation before from this finished run")
    block: Count = Field(default=256, description="questions sampled at a time, and kept if the evaluation is stopped")
    lmms_eval: tuple[str, ...] = Field(default=(), description="tasks of lmms-eval")
    lmms_eval_every: Natural = Field(default=0, description="steps between evaluations on these tasks")
    lmms_eval_limit: Count | None = Field(default=None, description="only the first so many items of each task")
    lmms_eval_tasks: Path | None = Field(default=None, description="a folder of your own tasks")


class ReportingConfig(Section):
    """What a run writes beyond its figures. With `images` the report shows thumbnails of the questions whose answer
    changed; with `images: false` no image reaches the folder, the report or a table. `rollouts` keeps every response
    with its tokens.

    `trackers` receive every figure, and of each step `tracked_completions` responses with their images. Images go to
    another machine only with `send_images`.
    """

    images: bool = Field(default=True, description="thumbnails in the report, and images for trackers")
    rollouts: bool = Field(default=True, description="write `rollouts/`")
    completions: Natural = Field(default=0, description="responses of each step that are printed")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="experiment trackers that receive the curves"
    )
    tracked_completions: Natural = Field(default=8, description="responses of each step that trackers receive")
    send_images: bool = Field(default=False, description="send images to trackers on another machine too")
