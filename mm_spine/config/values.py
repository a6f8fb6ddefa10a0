"""Define what the sections of a configuration share: their base class, the ranges of numbers, and the errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Votes = Annotated[int, Field(ge=2)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Denominator = Literal["all", "selected", "response"]


def _whole_or_auto(least: int, unit: str) -> PlainValidator:
    def check(value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return value
        raise ValueError(f"a number of {unit}, {least} or more, or auto")

    return PlainValidator(check)


def expand_votes(section: Any) -> Any:
    """Expand `votes: 64` in a sampling section to `votes: {max: 64}`, so that layers merge key by key."""
    votes = section.get("votes") if isinstance(section, Mapping) else None
    return {**section, "votes": {"max": votes}} if votes is not None and not isinstance(votes, Mapping) else section


def expand_prompt(section: Any) -> Any:
    """Expand `prompt: short` to `prompt: {style: short}`, as it was written before `prompt` was a section."""
    return {"style": section} if isinstance(section, str) else section


Budget = Annotated[int | Literal["auto"], _whole_or_auto(1, "tokens")]
Interval = Annotated[int | Literal["auto"], _whole_or_auto(0, "steps")]


class ConfigError(ValueError):
    """Report a wrong configuration. It is raised before any model loads, and its message names the key."""


class RunStopped(RuntimeError):
    """Report a run that cannot continue. The message says what was found and what to do."""


class Section(BaseModel):
    """A part of the tree: frozen, without unknown keys, every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
