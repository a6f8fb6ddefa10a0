"""Define the section of a configuration that says when a run is stopped for getting worse."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mm_spine.config.values import BelowOne, Count, Section, Share

MoreThanOne = Annotated[float, Field(gt=1)]


class GuardConfig(Section):
    """The guard compares each step's votes with those that the starting model gave to the same questions in the
    evaluation before the run, and at the end asks some of them greedily. It reads no label. `stop` ends the run when a
    limit is passed, and takes back the weights of the last step that was within all limits by half their distance and
    no further from the starting model's votes than that model itself. `settle` ends a run whose votes no longer change,
    and keeps its weights; it does not depend on `act`. The limits are ours.
    """

    act: Literal["stop", "warn", "off"] = Field(
        default="stop", description="end the run and take back its last steps, only warn, or do nothing"
    )
    every: Count = Field(default=2, description="steps between weights that are kept to go back to")
    sure_votes: Count = Field(
        default=24, description="`kept` is judged over the newest steps with so many sure votes of the starting model"
    )
    questions: Count = Field(
        default=32, description="the other signals are judged over the newest steps with so many questions"
    )
    kept: Share = Field(default=0.8, description="least share of these votes that are still the winners")
    spread: Share = Field(
        default=0.8, description="least entropy of the answers over all questions of a step, as a share of the start's"
    )
    agreement: Share = Field(
        default=0.04,
        description="largest fall of the share of responses that give the starting model's vote; judged only where "
        "training draws as the evaluation does",
    )
    agreement_over: Count = Field(
        default=96, description="`agreement` is judged over the newest steps with so many questions"
    )
    greedy: Share = Field(
        default=0.09,
        description="largest fall, once the last step is done, of the share of greedy answers that are the starting "
        "model's vote",
    )
    greedy_over: Count = Field(default=256, description="most questions that are asked greedily for `greedy`")
    unparsed: Share = Field(default=0.25, description="largest rise of the share of responses without an answer")
    length: MoreThanOne = Field(default=3.0, description="largest factor by which responses get longer or shorter")
    settle: BelowOne | None = Field(
        default=None,
        description="end the run once at most this share of the votes has changed since the same questions were asked "
        "the last time; 0.01 is a tried value, null never ends it",
    )
    settle_over: Count = Field(
        default=256, description="`settle` is judged over the newest steps that asked so many questions again"
    )

    @field_validator("act", mode="before")
    @classmethod
    def _word(cls, given: Any) -> Any:
        """Read false as "off": that is what YAML makes of the word off."""
        return "off" if given is False else given
